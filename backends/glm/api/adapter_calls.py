"""HTTP: loading and unloading adapters while the worker runs.

The paths and fields are vLLM's (`/v1/load_lora_adapter`, `lora_name`, `lora_path`), so that who
operates both kinds of worker has one way to do it. Nothing of this is reached through the gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from aiohttp import web

from backends.glm.api.service import Service
from backends.glm.checkpoint.files import LoadError
from backends.glm.engine.adapters import Adapters
from backends.glm.engine.remembered import Remembered
from backends.glm.errors import WorkerUnavailable, bad_request

_log = structlog.get_logger("glm.adapters")


class _Load(msgspec.Struct):
    lora_name: str
    lora_path: str


class _Unload(msgspec.Struct):
    lora_name: str


def adapter_routes(service: Service) -> list[web.RouteDef]:
    """The two calls, over this service."""
    turn = asyncio.Lock()  # one at a time: two loads of one name must not both pass the check

    async def load(request: web.Request) -> web.Response:
        asked = _read(await request.read(), _Load)
        async with turn:
            adapters = _adapters(service)
            folder = adapters.check(asked.lora_name, asked.lora_path)
            try:
                adapter = await asyncio.to_thread(adapters.read, folder)
            except LoadError as error:
                raise bad_request(str(error), param="lora_path", code="invalid_adapter") from error
            adapters.add(asked.lora_name, adapter)
            await _remember(service, lambda kept: kept.add(asked.lora_name, asked.lora_path))
        service.changed()
        _log.info("adapter_loaded", adapter=asked.lora_name, rank=adapter.rank)
        return web.Response(text=f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    async def unload(request: web.Request) -> web.Response:
        asked = _read(await request.read(), _Unload)
        async with turn:
            _adapters(service).remove(asked.lora_name)
            await _remember(service, lambda kept: kept.drop(asked.lora_name))
        service.changed()
        _log.info("adapter_unloaded", adapter=asked.lora_name)
        return web.Response(text=f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

    return [
        web.post("/v1/load_lora_adapter", load),
        web.post("/v1/unload_lora_adapter", unload),
    ]


async def _remember(service: Service, note: Callable[[Remembered], None]) -> None:
    """For the next start. A folder that cannot be written is said, and is no reason to refuse."""
    kept = service.serving.remembered if service.serving is not None else None
    if kept is None:
        return
    try:
        await asyncio.to_thread(note, kept)
    except OSError as error:
        _log.warning("adapters_not_remembered", file=str(kept.file), why=error.strerror)


def _read(raw: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise bad_request(f"The body is not the JSON object expected: {error}.") from None


def _adapters(service: Service) -> Adapters:
    if service.serving is None:
        raise WorkerUnavailable(
            code="worker_loading", message="This worker is still loading its model."
        )
    return service.serving.adapters
