"""Fixtures: one tiny checkpoint for the whole run, and servers on real sockets."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from aiohttp import web
from PIL import Image

from backends.glm.api.report import Changes, LoadReporter
from backends.glm.api.server import make_app
from backends.glm.api.service import Service, Serving
from backends.glm.engine.adapters import Adapters
from backends.glm.engine.engine import Engine
from backends.glm.engine.seam import BatchModel
from backends.glm.model.load import Checkpoint, load_checkpoint
from backends.glm.request.limits import Limits

from .scripted import QUEUE_LIMIT, scheduler
from .tiny import WIDE, make_checkpoint

# Two threads that wait for each other on a shared core take longer than one alone.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def checkpoint(checkpoint_path: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_path, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def wide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("wide"), WIDE, torch.bfloat16)


@pytest.fixture(scope="session")
def wide(wide_path: Path) -> Checkpoint:
    return load_checkpoint(wide_path, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def wide_bfloat16(wide_path: Path) -> Checkpoint:
    return load_checkpoint(wide_path, device="cpu", dtype="bfloat16")


@dataclass(frozen=True)
class Served:
    """A worker without its process: the real HTTP server over a given model."""

    url: str
    service: Service
    engine: Engine
    reporter: LoadReporter


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve(checkpoint: Checkpoint) -> Serve:
    """`async with serve(runner, slots=1) as served`: a server on a free port of the loopback."""

    @asynccontextmanager
    async def running(
        runner: BatchModel, slots: int = 1, adapters: Adapters | None = None
    ) -> AsyncIterator[Served]:
        changes = Changes(asyncio.get_running_loop())
        service = Service(names=("tiny", "alias"), worker="w", on_change=changes.notify)
        reporter = LoadReporter(service, changes)
        engine = Engine(
            runner,
            scheduler=scheduler(slots, row_tokens=checkpoint.max_model_len),
            queue_limit=QUEUE_LIMIT,
            on_change=changes.notify,
        )
        engine.start()
        app_runner = web.AppRunner(make_app(service, reporter), handler_cancellation=True)
        await app_runner.setup()
        site = web.TCPSite(app_runner, "127.0.0.1", 0)
        await site.start()
        service.ready(
            Serving(
                engine=engine,
                preparer=checkpoint.preparer(Limits()),
                adapters=adapters or Adapters(no_adapter, None),
            )
        )
        host, port = app_runner.addresses[0][:2]
        try:
            yield Served(f"http://{host}:{port}", service, engine, reporter)
        finally:
            reporter.close()
            await asyncio.to_thread(service.close, 10.0)
            await app_runner.cleanup()

    return running


def no_adapter(folder: Path) -> NoReturn:
    raise AssertionError(f"nobody loads {folder}")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture whose every pixel depends on the seed: no two sizes or seeds look alike."""
    pixels = bytes(
        (x * (7 + seed) + y * 13 + c * 50) % 256
        for y in range(height)
        for x in range(width)
        for c in range(3)
    )
    return Image.frombytes("RGB", (width, height), pixels)


def data_url(image: Image.Image, form: str = "PNG", **options: object) -> str:
    """The picture as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    kind = form.lower()
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()
