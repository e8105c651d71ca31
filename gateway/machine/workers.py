"""The GLM workers that `yuzui up` runs: how many, on what, and that each of them answers.

One for each GPU, or for every so many cores. Each is started again when it ends (`Child`), killed
and started again when it has answered no probe for `hang_s`, and restarted one after the other when
somebody asks for it: the next one is touched only when the last one answers again, so with two or
more of them no request notices. With one, requests wait at the gateway for its return.

What they are doing is written to `workers.json` in the data folder, where the admin port reads it;
names to be restarted are read from `restart.json` when SIGUSR1 comes.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from gateway.data_dir import DataDir
from gateway.processes import Child, ChildState

LOOK_EVERY_S = 1.0
# From launch to the first answer: importing the server takes seconds on a busy machine.
FIRST_ANSWER_S = 60.0
# After a worker answers again the gateways have heard of it (they try four times a second).
SEEN_S = 1.0
WORKER_STOP_S = 35.0  # when all of it stops: the gateways have drained before
# After a worker has given its answers their time it ends the step under way, and sends last bytes.
WORKER_END_S = 20.0
READY_PATIENCE_S = 300.0  # a large checkpoint takes minutes to load

_DEVICE = re.compile(r"nvidia\d+")


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One supervised worker, for people. why: how its last process ended."""

    name: str
    url: str
    pid: int | None
    state: str  # of ChildState; "loading" while it runs and is not ready; "hanging"
    restarts: int
    why: str = ""


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """One worker to start: its name and what is added to the command line."""

    name: str
    options: tuple[str, ...]


def planned(
    wanted: int | str, *, gpus: int, cores: int, cores_per_worker: int
) -> tuple[Command, ...]:
    """Which workers to start. wanted: a number, or `auto`: one for each GPU, and without one for
    every `cores_per_worker` cores, at least one."""
    if isinstance(wanted, str):
        count = gpus or max(1, cores // cores_per_worker)
    else:
        count = wanted
    found = []
    for number in range(count):
        options: tuple[str, ...] = ()
        if gpus and count > 1:
            options = ("--device", f"cuda:{number % gpus}")
        elif count > 1:
            options = ("--threads", str(max(1, cores // count)))
        found.append(Command(name=f"w{number + 1}", options=options))
    return tuple(found)


def count_gpus(environ: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """NVIDIA cards that a process started with this environment may use. Asking the driver's
    library would load it into a process that has no use for it; the kernel's files say as much."""
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    try:
        there = sum(bool(_DEVICE.fullmatch(file.name)) for file in devices.iterdir())
    except OSError:
        there = 0
    if chosen is None:
        return there
    named = [part for part in chosen.split(",") if part.strip() and part.strip() != "-1"]
    return min(there, len(named))


class LocalWorkers:
    """Keeps them well.

    probe: the HTTP status of a URL; None: nothing answers. It may take seconds, in a thread.
    """

    def __init__(
        self,
        workers: Sequence[tuple[Child, str]],
        *,
        data: DataDir,
        hang_s: float,
        drain_s: float,
        probe: Callable[[str], Awaitable[int | None]],
        say: Callable[[str], None],
    ) -> None:
        """workers: each with its base URL, started already. drain_s: how long answers may take
        that run on a worker when it is restarted."""
        self._workers = list(workers)
        self._data = data
        self._hang_s = hang_s
        self._drain_s = drain_s
        self._probe = probe
        self._say = say
        self._answered_s = {child.name: float("-inf") for child, _ in workers}
        self._status: dict[str, int | None] = {child.name: None for child, _ in workers}
        self._rolling = asyncio.Lock()
        self._trouble: dict[str, str] = {}  # of what, and what was said of it

    async def watch(self) -> None:
        """Never returns, whatever happens: looks after all of them."""
        while True:
            looks = (self._look(child, url) for child, url in self._workers)
            found = await asyncio.gather(*looks, return_exceptions=True)
            failed = [error for error in found if isinstance(error, Exception)]
            self._complain("a worker cannot be looked at", failed[0] if failed else None)
            self.write_status()
            await asyncio.sleep(LOOK_EVERY_S)

    async def roll(self, names: Sequence[str] = ()) -> bool:
        """Restarts them one after the other (all, or those named). False, and the rest is left
        alone, when one does not come back."""
        async with self._rolling:
            chosen = [(c, u) for c, u in self._workers if not names or c.name in names]
            # First those that are of no use now: they may be, before others go for a while.
            chosen.sort(key=lambda pair: self._status[pair[0].name] == 200)
            for child, url in chosen:
                if not await self._spared(child, url):
                    self._say(f"no other worker gets ready, so {child.name} is left alone")
                    return False
                self._say(f"restarting {child.name}")
                await child.restart(self._drain_s + WORKER_END_S)
                if not await self._back(child, url):
                    self._say(f"{child.name} did not come back; the others are left alone")
                    return False
                await asyncio.sleep(SEEN_S)
            self._say("all restarted")
            return True

    def write_status(self) -> None:
        """For the admin port. A folder that cannot be written is said, and tried again."""
        try:
            status = msgspec.json.encode([self._of(c, u) for c, u in self._workers])
            self._data.write_workers(status)
            failed = None
        except OSError as error:
            failed = error
        self._complain("`yuzui workers` shows old news", failed)

    def _complain(self, what: str, error: Exception | None) -> None:
        """Says it once for as long as it lasts. error: None when it is well."""
        why = "" if error is None else str(error) or type(error).__name__
        if why and why != self._trouble.get(what):
            self._say(f"{what}: {why}")
        self._trouble[what] = why

    async def _back(self, child: Child, url: str) -> bool:
        end_s = time.monotonic() + READY_PATIENCE_S
        while time.monotonic() < end_s and child.state is not ChildState.GIVEN_UP:
            if await self._ready(child, url):
                self._answered_s[child.name] = time.monotonic()
                child.well()
                return True
            await asyncio.sleep(LOOK_EVERY_S / 4)
        return False

    async def _spared(self, child: Child, url: str) -> bool:
        """Waits until another worker answers while this one is restarted. At once when it answers
        nobody itself, or has no others: those that were given up are none, and requests wait then
        at the gateway, as they do with one worker. False: the others do not get ready."""
        if not await self._ready(child, url):
            return True
        end_s = time.monotonic() + READY_PATIENCE_S
        while time.monotonic() < end_s:
            others = [(c, u) for c, u in self._workers if c is not child]
            others = [(c, u) for c, u in others if c.state is not ChildState.GIVEN_UP]
            ready = [await self._ready(other, its_url) for other, its_url in others]
            if not others or any(ready):
                return True
            await asyncio.sleep(LOOK_EVERY_S / 4)
        return False

    async def _ready(self, child: Child, url: str) -> bool:
        if not child.running:
            return False
        try:
            return await self._probe(f"{url}/health") == 200
        except Exception as error:  # as in `watch`: no probe may end what is under way
            self._complain(f"{child.name} cannot be looked at", error)
            return False

    async def _look(self, child: Child, url: str) -> None:
        if child.state is not ChildState.RUNNING:
            self._status[child.name] = None
            return
        status = self._status[child.name] = await self._probe(f"{url}/health")
        now_s = time.monotonic()
        if status is not None:
            self._answered_s[child.name] = now_s
            if status == 200:
                child.well()
            return
        since_s = self._answered_s[child.name]
        if since_s < child.launched_s:  # it has not answered yet at all
            since_s = child.launched_s + FIRST_ANSWER_S
        if now_s - since_s >= self._hang_s:
            child.kill(f"has not answered for {self._hang_s:.0f} s")

    def _of(self, child: Child, url: str) -> WorkerStatus:
        state = child.state.value
        if child.state is ChildState.RUNNING and self._status[child.name] != 200:
            answered = self._answered_s[child.name] > child.launched_s
            silent = self._status[child.name] is None
            state = "hanging" if silent and answered else "loading"
        return WorkerStatus(
            name=child.name,
            url=url,
            pid=child.pid if child.running else None,
            state=state,
            restarts=child.restarts,
            why=child.why,
        )
