"""The worker process: listen first, load behind it, serve, drain on a signal."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import structlog
from aiohttp import web

from backends.glm import heap
from backends.glm.api.report import Changes, LoadReporter
from backends.glm.api.server import make_app
from backends.glm.api.service import Service, Serving
from backends.glm.checkpoint.files import LoadError, check_files
from backends.glm.engine.progress import Watch
from backends.glm.options import Options
from backends.glm.priority import Breath, gently, take_part
from backends.listen import ListenError, listen

STOP_STEP_S = 10.0  # how long one step of the model may take to notice that all is over
LOOK_S = 1.0  # how often somebody looks whether the engine gets on, while it has something to do
REST_S = 1.0  # without a request for so long, a worker is at rest: longer than most gaps in a crowd
LAST_BYTES_S = 5.0  # for replies that are made but not written yet

_log = structlog.get_logger("glm.worker")


@dataclass(frozen=True, slots=True)
class LoadFailure:
    """Loading ended without a model; `message` is for the operator."""

    message: str

    @classmethod
    def by(cls, error: Exception) -> LoadFailure:
        """A LoadError speaks for itself; of another the text alone may be a bare key."""
        named = str(error) if isinstance(error, LoadError) else f"{type(error).__name__}: {error}"
        return cls(named)


def run(options: Options) -> int:
    """Run the worker until a signal ends it; the process's exit code."""
    heap.keep_freed()
    configure_logging()

    async def life() -> int:
        return await _Worker(options).run()

    return asyncio.run(life())


def configure_logging() -> None:
    """JSON lines on stderr, also for what libraries say through `logging` and `warnings`."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)


class _Worker:
    """One process's life, on one event loop."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._changes = Changes(self._loop)
        self._service = Service(
            names=options.names, worker=options.worker, on_change=self._changes.notify
        )
        self._reporter = LoadReporter(self._service, self._changes)
        self._loaded: Serving | LoadFailure | None = None
        self._signals = 0
        self._port_file: Path | None = None  # once it is written, and by us
        self._loader = threading.Thread(target=self._load, name="glm-start", daemon=True)

    async def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal)
        app_runner = web.AppRunner(
            make_app(self._service, self._reporter),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=LAST_BYTES_S,
        )
        await app_runner.setup()
        code = 1
        try:
            await self._listen(app_runner)
            self._loader.start()
            while self._loaded is None and not self._signals:
                await self._changes.wait(None)
            if isinstance(self._loaded, LoadFailure):
                _log.error("load_failed", error=self._loaded.message)
                return code
            if self._loaded is not None:
                self._service.ready(self._loaded)
                _log.info(
                    "ready",
                    model=self._options.names[0],
                    worker=self._options.worker,
                    stall_s=round(self._loaded.stall_s),
                )
                await self._serve(self._loaded)
            if self._service.trouble is None:
                await self._drain()
                code = 0
            else:
                await self._fail(self._service.trouble)
            return code
        finally:
            self._reporter.close()
            await app_runner.cleanup()
            if self._port_file is not None:
                self._port_file.unlink(missing_ok=True)
            if self._loader.is_alive() or self._engine_runs() or self._service.trouble is not None:
                # Neither loading nor a step can be interrupted, and a thread inside torch while the
                # interpreter is taken down crashes; there is nothing left to save.
                sys.stderr.flush()
                os._exit(code)

    async def _listen(self, app_runner: web.AppRunner) -> None:
        host, port = self._options.host, self._options.port
        site = web.TCPSite(app_runner, host, port)
        try:
            await listen(site, host=host, port=port, names=("--host", "--port"))
        except ListenError as error:
            _log.error("cannot_listen", error=str(error))
            raise SystemExit(error.code) from None
        host, port = app_runner.addresses[0][:2]
        address = f"[{host}]" if ":" in host else host
        if self._options.port_file is not None:
            self._write_port(self._options.port_file, port)
        # After the file, so that whoever reads this line finds it.
        sys.stdout.write(json.dumps({"listening": f"http://{address}:{port}"}) + "\n")
        sys.stdout.flush()

    def _write_port(self, file: Path, port: int) -> None:
        """Written beside and renamed: a reader never sees half a number."""
        draft = file.with_name(file.name + ".tmp")
        try:
            draft.write_text(f"{port}\n")
            draft.replace(file)
            self._port_file = file
        except OSError as error:
            _log.error("cannot_write", error=f"--port-file {file}: {error.strerror}")
            raise SystemExit(1) from None

    def _load(self) -> None:
        """Runs in a thread: importing torch and loading weights would stop the loop for seconds."""
        try:
            check_files(self._options.model)
            with heap.filling(), Breath():
                # Imports torch, hence not at the top.
                gently(lambda: import_module("backends.glm.startup"))
                from backends.glm import startup

                startup.set_threads(self._options)
                assembled = gently(lambda: startup.assemble(self._options, self._changes.notify))
            self._loaded = assembled.start(take_part)
        except Exception as error:  # whatever it is, the process must end with its reason
            self._loaded = LoadFailure.by(error)
        self._changes.notify()

    async def _serve(self, serving: Serving) -> None:
        """Until a signal comes or the engine is over. Once in every rest, memory is given back."""
        tidy = True
        watch = Watch(serving.stall_s)
        while not (self._signals or self._service.trouble):
            at_rest_s = None if tidy else REST_S
            changed = await self._changes.wait(at_rest_s if self._service.idle else LOOK_S)
            if stalled := watch.look(serving.engine.pulse(), time.monotonic()):
                serving.engine.give_up(stalled)
            elif changed or not self._service.idle:
                tidy = False
            else:
                await asyncio.to_thread(heap.give_back)
                tidy = True

    def _engine_runs(self) -> bool:
        """A thread of the engine's is still at work, or hangs."""
        names = {thread.name for thread in threading.enumerate()}
        return not names.isdisjoint(("glm-engine", "glm-vision"))

    async def _fail(self, why: str) -> None:
        """Let everybody inside hear of it; whoever started this process starts another."""
        deadline_s = time.monotonic() + LAST_BYTES_S
        while not self._service.idle and (left_s := deadline_s - time.monotonic()) > 0:
            await self._changes.wait(left_s)
        _log.error("engine_failed", error=why)

    def _on_signal(self) -> None:
        self._signals += 1
        self._changes.notify()

    async def _drain(self) -> None:
        """Finish what is inside; a second signal or the time limit ends it early."""
        _log.info("draining")
        self._service.drain()
        deadline_s = time.monotonic() + self._options.drain_s
        while not self._service.idle and self._signals < 2:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                break
            await self._changes.wait(left_s)
        await asyncio.to_thread(self._service.close, STOP_STEP_S)
        _log.info("stopped")
