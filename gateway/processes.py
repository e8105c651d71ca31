"""Child processes: started, watched, restarted with back-off, stopped in order."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import IO

from gateway.tasks import spawn

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
STEADY_S = 30.0  # a child that was well for so long starts again without delay
# So many ends in a row without having been well for STEADY_S: what is wrong will not go away by
# itself (a checkpoint that cannot be read, a card without memory), and starting loads the machine.
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

    name:   for messages and the log file `<logs>/<name>.log`
    say:    told about unexpected ends and restarts
    probed: it is well from the first `well()` after its launch, however long it loads; without, it
            is well once it runs
    fds:    open files that it gets, under their numbers here
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        logs: Path,
        say: Callable[[str], None],
        probed: bool = False,
        fds: Sequence[int] = (),
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
        self._probed = probed
        self._fds = tuple(fds)
        self._well_s: float | None = None  # since when, of this process
        self.why = ""  # the last end, in words
        self.state = ChildState.STARTING
        self._quick_ends = 0
        self._backoff_s = BACKOFF_FIRST_S
        # Somebody wants it anew: its end is no failure, and no pause is kept. Until it is launched.
        self._asked = asyncio.Event()
        self._stopping = False
        self._hurried = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Starts the process and watches it from now on."""
        self._watcher = spawn(self._watch(await self._launch()), name=f"watch {self.name}")

    def well(self) -> None:
        """Somebody has asked it, and it answers as it should."""
        if self.running and self._well_s is None:
            self._well_s = time.monotonic()

    async def stop(self, patience_s: float) -> None:
        """SIGTERM, then after `patience_s` SIGKILL. Returns when the process is gone."""
        self._stopping = True
        if self._watcher is not None:  # first, so that nothing is launched behind our back
            self._watcher.cancel()
            await asyncio.wait({self._watcher})
        await self._end(patience_s)
        self.state = ChildState.STOPPED

    async def restart(self, patience_s: float) -> None:
        """The same, and starts it anew at once, also one that waits for its next start or was
        given up. Returns when the new process is launched or could not be."""
        if self._stopping:
            return
        self._quick_ends, self._backoff_s = 0, BACKOFF_FIRST_S
        if self._watcher is None or self._watcher.done():
            self.restarts += 1
            await self.start()
            return
        launched, watcher = self.restarts, self._watcher  # which ends when it is stopped
        self._asked.set()
        await self._end(patience_s)
        while self.restarts == launched and not watcher.done():  # noqa: ASYNC110 - moments
            await asyncio.sleep(0.02)

    def hasten(self) -> None:
        """Whoever waits for its end, now or later, waits no longer: it is killed."""
        self._hurried.set()

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
        ended = spawn(process.wait(), name=f"end of {self.name}")
        hurried = spawn(self._hurried.wait(), name=f"hurry of {self.name}")
        try:
            both = {ended, hurried}
            await asyncio.wait(both, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()
        if not ended.done():
            late = f"did not stop within {patience_s:.0f} s"
            self._say(f"{self.name} {'had to hurry' if hurried.done() else late} and was killed")
            process.kill()
        await ended

    async def _launch(self) -> str:
        """Returns why no process could be made (no memory for one, the command is gone); empty:
        it runs. A log that cannot be written keeps nobody from running."""
        self._process = None
        try:
            log: IO[bytes] | int = self.log_file.open("ab")
        except OSError as error:
            self._say(f"{self.name} runs without its log {self.log_file}: {error.strerror}")
            log = subprocess.DEVNULL
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._env,
                start_new_session=True,
                pass_fds=self._fds,
                preexec_fn=partial(_die_with_parent, os.getpid()),
            )
        except (OSError, subprocess.SubprocessError) as error:
            return f"no process ({error})"
        finally:
            if not isinstance(log, int):
                log.close()
            self.launched_s = time.monotonic()
            self._well_s = None
        self.state = ChildState.RUNNING
        if not self._probed:
            self.well()
        return ""

    async def _watch(self, why: str) -> None:
        """why: the process could not be made; empty: it runs."""
        while True:
            if self._process is not None:
                why = _named(await self._process.wait())
            self.why = why
            if not self._asked.is_set():
                self._count_end()
                if self._quick_ends >= QUICK_ENDS_MAX:
                    self._give_up()
                    return
                await self._pause()
            why = await self._launch()
            self._asked.clear()
            self.restarts += 1

    def _count_end(self) -> None:
        self.failures += 1
        if self._well_s is not None and time.monotonic() - self._well_s > STEADY_S:
            self._backoff_s, self._quick_ends = BACKOFF_FIRST_S, 0
        self._quick_ends += 1

    async def _pause(self) -> None:
        """Until it is tried again, or somebody asks for it."""
        pause_s, self._backoff_s = self._backoff_s, min(2 * self._backoff_s, BACKOFF_MAX_S)
        self.state = ChildState.WAITING
        self._say(
            f"{self.name} ended with {self.why}; starting again in {pause_s:.1f} s "
            f"(its log: {self.log_file})"
        )
        with suppress(TimeoutError):
            await asyncio.wait_for(self._asked.wait(), pause_s)

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


def _die_with_parent(parent: int) -> None:
    """Runs in the child before exec: the kernel sends it SIGTERM when its parent has died."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked to be told
        os._exit(1)


def _named(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:  # most of those of real time have no name
        return f"signal {-code}"
