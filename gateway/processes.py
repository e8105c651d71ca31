"""Child processes of `yuzui up`: started, watched, restarted with back-off, stopped in order."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gateway.tasks import spawn

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
STEADY_S = 30.0  # a child that lived so long starts again without delay
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Child:
    """One process that is kept running until it is told to stop.

    The child gets a session of its own, so that Ctrl-C reaches only the parent, which drains in the
    right order; and a SIGTERM when the parent dies, so that nothing is left behind.

    name:  for messages and the log file `<logs>/<name>.log`
    say:   told about unexpected ends and restarts
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        logs: Path,
        say: Callable[[str], None],
    ) -> None:
        self.name = name
        self.log_file = logs / f"{name}.log"
        self._command = list(command)
        self._env = dict(env)
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self.failures = 0  # unexpected ends
        self._stopping = False
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Starts the process and watches it from now on."""
        await self._launch()
        self._watcher = spawn(self._watch(), name=f"watch {self.name}")

    async def stop(self, patience_s: float) -> None:
        """SIGTERM, then after `patience_s` SIGKILL. Returns when the process is gone."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), patience_s)
            except TimeoutError:
                self._say(f"{self.name} did not stop within {patience_s:.0f} s and was killed")
                process.kill()
                await process.wait()
        if self._watcher is not None:
            self._watcher.cancel()

    async def _launch(self) -> None:
        with self.log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    async def _watch(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while not self._stopping:
            assert self._process is not None
            started_s = time.monotonic()
            code = await self._process.wait()
            if self._stopping:
                return
            self.failures += 1
            if time.monotonic() - started_s > STEADY_S:
                backoff_s = BACKOFF_FIRST_S
            self._say(
                f"{self.name} ended with {_named(code)}; starting again in {backoff_s:.1f} s "
                f"(its log: {self.log_file})"
            )
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
            await self._launch()


_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    """Runs in the child before exec: the kernel sends it SIGTERM when its parent has died."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _named(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
