"""The load report: one JSON object on demand, or a stream of them for who routes requests here."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from backends.glm.api.service import Service
from backends.glm.engine.speeds import EngineLoad

WATCH_INTERVAL_S = 1.0  # a silent line means a dead worker, so there is one at least this often
WATCH_COALESCE_S = 0.02  # a burst of 50 requests is one line, not 100


class Changes:
    """Tells coroutines that something changed. `notify` may be called from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._next = asyncio.Event()

    def notify(self) -> None:
        """Wake everybody who waits now; those who come later wait for the next change."""
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop is closed: the process ends, nobody waits
            return

    def _wake(self) -> None:
        change, self._next = self._next, asyncio.Event()
        change.set()

    async def wait(self, timeout_s: float | None) -> bool:
        """Return at the next change, or after the time-out; whether there was a change."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._next.wait()
        except TimeoutError:
            return False


class LoadReporter:
    """Builds reports, and streams of them."""

    def __init__(self, service: Service, changes: Changes) -> None:
        self._service = service
        self._changes = changes
        self._seq = itertools.count(1)
        self._closing = False

    def close(self) -> None:
        """End all watches after one last line."""
        self._closing = True
        self._changes.notify()

    def header(self) -> str:
        """The value of `x-yuzui-load`."""
        load = self._engine_load()
        return f"running={load.running},waiting={load.waiting},slots={load.slots}"

    def snapshot(self) -> dict[str, Any]:
        """The report. Speeds: tokens a second of one request; `seq` grows with every report."""
        service = self._service
        serving = service.serving
        load = asdict(self._engine_load())
        limits = None if serving is None else asdict(serving.prompts.vision.limits)
        return {
            "engine": "yuzui",
            "model": service.names[0],
            "worker": service.worker,
            "pid": os.getpid(),
            **load,
            "max_model_len": None if serving is None else serving.prompts.max_model_len,
            "state": service.state,
            "reason": service.trouble,
            "adapters": [] if serving is None else list(serving.adapters.loaded),
            "seq": next(self._seq),
            "image_limits": limits,
        }

    async def watch(self) -> AsyncIterator[dict[str, Any]]:
        """A report at once, then one at every change (coalesced) and at least once a second."""
        while True:
            report = self.snapshot()
            yield report
            if self._closing:
                return
            sent_s = time.monotonic()
            await asyncio.sleep(WATCH_COALESCE_S)
            while self._visible() == _visible_in(report) and not self._closing:
                left_s = sent_s + WATCH_INTERVAL_S - time.monotonic()
                if left_s <= 0:
                    break
                await self._changes.wait(left_s)

    def _visible(self) -> tuple[Any, ...]:
        load = self._engine_load()
        serving = self._service.serving
        adapters = [] if serving is None else list(serving.adapters.loaded)
        return (load.running, load.waiting, self._service.state, adapters)

    def _engine_load(self) -> EngineLoad:
        serving = self._service.serving
        if serving is not None:
            return serving.engine.load()
        return EngineLoad()


def _visible_in(report: dict[str, Any]) -> tuple[Any, ...]:
    return (report["running"], report["waiting"], report["state"], report["adapters"])
