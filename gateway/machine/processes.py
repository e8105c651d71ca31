"""Child processes of `yuzui up`: started, watched, restarted with back-off, stopped in order."""

from __future__ import annotations

import asyncio
import ctypes
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from gateway.tasks import spawn

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
STEADY_S = 30.0  # a child that lived so long starts again without delay
# So many ends in a row without having lived for STEADY_S: what is wrong will not go away by itself
# (a checkpoint that cannot be read, a card without memory), and starting loads the machine.
QUICK_ENDS_MAX = 6
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ChildState(StrEnum):
    """starting: not launched yet. waiting: it ended, and is started again after a pause. given_up:
    it ended too often in a row and is not started again."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    GIVEN_UP = "given_up"
    STOPPED = "stopped"


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
        self.restarts = 0  # launches after the first one
        self.launched_s = 0.0  # monotonic clock
        self.why = ""  # the last end, in words
        self.state = ChildState.STARTING
        self._quick_ends = 0
        self._asked_to_end = False  # its next end is a restart that somebody asked for
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
        await self._end(patience_s)
        self.state = ChildState.STOPPED
        if self._watcher is not None:
            self._watcher.cancel()

    async def restart(self, patience_s: float) -> None:
        """The same, and starts it anew at once. Returns when the new process is launched. One that
        was given up is tried again."""
        if self.state is ChildState.GIVEN_UP:
            self._quick_ends = 0
            await self.start()
            return
        launched = self.restarts
        self._asked_to_end = True
        await self._end(patience_s)
        while self.restarts == launched and not self._stopping:  # noqa: ASYNC110 - moments
            await asyncio.sleep(0.02)

    def kill(self, why: str) -> None:
        """SIGKILL for a process that hangs; it is started again like any other that ended."""
        if self.running and self._process is not None:
            self._say(f"{self.name} (pid {self.pid}) {why} and is killed")
            self._process.kill()

    async def _end(self, patience_s: float) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), patience_s)
        except TimeoutError:
            self._say(f"{self.name} did not stop within {patience_s:.0f} s and was killed")
            process.kill()
            await process.wait()

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
        self.launched_s = time.monotonic()
        self.state = ChildState.RUNNING

    async def _watch(self) -> None:
        backoff_s = BACKOFF_FIRST_S
        while not self._stopping:
            assert self._process is not None
            code = await self._process.wait()
            if self._stopping:
                return
            self.why = _named(code)
            if self._asked_to_end:
                self._asked_to_end = False
                self._quick_ends = 0
            else:
                self.failures += 1
                if time.monotonic() - self.launched_s > STEADY_S:
                    backoff_s, self._quick_ends = BACKOFF_FIRST_S, 0
                self._quick_ends += 1
                if self._quick_ends >= QUICK_ENDS_MAX:
                    self._give_up()
                    return
                self.state = ChildState.WAITING
                self._say(
                    f"{self.name} ended with {self.why}; starting again in {backoff_s:.1f} s "
                    f"(its log: {self.log_file})"
                )
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
            await self._launch()
            self.restarts += 1

    def _give_up(self) -> None:
        self.state = ChildState.GIVEN_UP
        self._say(
            f"{self.name} ended {self._quick_ends} times in a row, the last time with {self.why}, "
            f"and is not started again until somebody asks for it; the end of {self.log_file}:\n"
            f"{tail(self.log_file)}"
        )


def tail(file: Path, lines: int = 15) -> str:
    """The end of a log."""
    try:
        return "\n".join(file.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    """Runs in the child before exec: the kernel sends it SIGTERM when its parent has died."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _named(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
