"""That a worker which is killed or hangs takes no request with it: `make proof-pool`.

Real processes: a Valkey, three workers kept running by the supervisor of `yuzui up`, one gateway,
and callers in a closed loop, half of them streaming. In the middle of the load one worker is killed
(SIGKILL), later one is stopped (SIGSTOP) until the supervisor kills it for hanging; then all three
are restarted one after the other.

    failed_before      requests that failed and had not begun to stream            must be 0
    false_done         streams that ended with [DONE] and were not whole           must be 0
    broken_streams     streams of the dead worker: each ended with an in-band error
    unexplained        streams that ended neither with [DONE] nor with an error    must be 0
    charged_twice      requests with more than one row that costs                  must be 0
    ratio_kill, ratio_stop   p99 of the answers that needed one attempt, beside that of all calm
                       times: from the fault until the worker is back, its restart on the same
                       cores included                                          at most 1.2
    resent_ms          from the kill to the new attempt of a request that the dead worker had and
                       had not begun to answer: the longest

The workers answer from a script (`--nano`: three glm-4.6v-nano workers instead), so what is
measured is the pool. With nano workers that share their cores with gateway and callers, the ratios
are noisy, and now and then above their bound. Prints a table and, as its last line, one JSON
object; ends with 1 when a bound is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec

from gateway.commands.tables import table
from gateway.data_dir import DataDir
from gateway.keys import from_secret, issue
from gateway.ledger.ledger import Ledger
from gateway.machine.processes import Child
from gateway.machine.stack import _probe
from gateway.machine.workers import LocalWorkers
from gateway.tasks import spawn
from tests.gateway.redis_servers import VALKEY, RealServer
from tests.ports import free_port

SECRET = "a secret of the proof, 32 bytes or more"
ADMIN = "an admin token of the proof"
CHUNKS = 10
HANG_S = 8.0
CALM = ("before", "between", "after")  # nothing is wrong then
WARM_S = 1.0  # connections are made, and nothing is counted
PATIENCE_S = 60.0
RATIO_MAX = 1.2  # of the p99 of those who have nothing to do with the dead worker


class Answered(NamedTuple):
    """One request: when it began and ended, and how."""

    phase: str
    stream: bool
    began_s: float
    total_ms: float
    how: str  # ok | broken | failed | false_done | unexplained
    attempts: int
    detail: str = ""
    request_id: str = ""


class House:
    """The processes, and what is known of them."""

    def __init__(self, folder: Path, *, nano: bool) -> None:
        self.nano = nano
        self.data = DataDir(folder)
        self.data.make()
        self.books = RealServer(VALKEY)
        self.said: list[str] = []
        self.workers: list[tuple[Child, str]] = []
        self.supervised: LocalWorkers | None = None
        self.port, self.admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.gateway: subprocess.Popen[bytes] | None = None
        self.log = folder / "gateway.log"

    @property
    def token(self) -> str:
        key = from_secret("default", SECRET.encode())
        return issue(key, issuer="yuzui", audience="yuzui", tenant="t", subject="s", ttl_s=3_600)

    def worker_command(self, port: int) -> list[str]:
        if self.nano:
            return [sys.executable, "-m", "backends.glm", "--port", str(port), "--threads", "1"]
        return [
            sys.executable, "-m", "tests.scripted_worker", "--port", str(port),
            "--chunks", str(CHUNKS), "--first-ms", "150", "--pace-ms", "15", "--slots", "16",
        ]  # fmt: skip

    async def admin(self, http: aiohttp.ClientSession, path: str) -> Any:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        async with http.get(url, headers=headers) as response:
            return await response.json()

    def start_gateway(self) -> None:
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("YUZUI_")},
            "YUZUI_PORT": str(self.port),
            "YUZUI_ADMIN_PORT": str(self.admin_port),
            "YUZUI_ADMIN_TOKEN": ADMIN,
            "YUZUI_AUTH_SECRET": SECRET,
            "YUZUI_REDIS_URL": self.books.url,
            "YUZUI_WORKERS": ",".join(url for _, url in self.workers),
            "YUZUI_DATA_DIR": str(self.data.path),
        }
        with self.log.open("wb") as out:
            self.gateway = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "serve"], env=env, stdout=out, stderr=out
            )


@asynccontextmanager
async def running(folder: Path, *, nano: bool = False) -> AsyncIterator[House]:
    house = House(folder, nano=nano)
    watching = None
    try:
        for number in range(1, 4):
            port = free_port()
            child = Child(
                f"worker-{number}", house.worker_command(port), env=dict(os.environ),
                logs=house.data.logs, say=house.said.append,
            )  # fmt: skip
            house.workers.append((child, f"http://127.0.0.1:{port}"))
            await child.start()
        supervised = house.supervised = LocalWorkers(
            house.workers, data=house.data, hang_s=HANG_S, probe=_probe, say=house.said.append
        )
        await _until_well(house)
        watching = spawn(supervised.watch(), name="watch")
        house.start_gateway()
        await _until_up(house, 3)
        yield house
    finally:
        if watching is not None:
            watching.cancel()
        if house.gateway is not None:
            house.gateway.terminate()
            await asyncio.to_thread(house.gateway.wait, 30)
        await asyncio.gather(*(child.stop(10) for child, _ in house.workers))
        house.books.close()


async def _until_well(house: House) -> None:
    async with asyncio.timeout(4 * PATIENCE_S):
        for _, url in house.workers:
            while await _probe(f"{url}/health") != 200:  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(0.1)


async def _until_up(house: House, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession() as http:
        while True:
            try:
                if len(_up(await house.admin(http, "/admin/pool"))) >= count:
                    return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


def _up(pool: Any) -> list[str]:
    return [worker["id"] for worker in pool["workers"] if worker["health"] == "up"]


class Load:
    """Callers in a closed loop. `phase` names what is going on while they ask."""

    def __init__(self, house: House, callers: int) -> None:
        self._house = house
        self._callers = callers
        self._numbers = itertools.count()
        self.phase = "warm"
        self.answers: list[Answered] = []
        self.stop = False

    async def run(self) -> None:
        limits = aiohttp.ClientTimeout(total=4 * PATIENCE_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=limits, connector=connector) as http:
            await asyncio.gather(*(self._caller(http) for _ in range(self._callers)))

    async def _caller(self, http: aiohttp.ClientSession) -> None:
        while not self.stop:
            stream = next(self._numbers) % 2 == 0
            phase, began_s = self.phase, time.monotonic()
            how, attempts, detail, request_id = await self._ask(http, stream)
            total_ms = 1000 * (time.monotonic() - began_s)
            self.answers.append(
                Answered(phase, stream, began_s, total_ms, how, attempts, detail, request_id)
            )

    async def _ask(self, http: aiohttp.ClientSession, stream: bool) -> tuple[str, int, str, str]:
        body = {
            "model": "glm-4.6v",
            "stream": stream,
            "max_tokens": 24,
            "messages": [{"role": "user", "content": "Say what you see."}],
        }
        headers = {"Authorization": f"Bearer {self._house.token}"}
        seen, attempts, request_id = b"", 0, ""
        try:
            async with http.post(
                f"{self._house.url}/v1/chat/completions", json=body, headers=headers
            ) as response:
                attempts = int(response.headers.get("x-yuzui-attempts", "0"))
                request_id = response.headers.get("x-yuzui-request-id", "")
                if response.status != 200:
                    text = f"{response.status} {await response.text()}"
                    return "failed", attempts, text, request_id
                async for data in response.content.iter_any():
                    seen += data
        except aiohttp.ClientError as error:
            return ("unexplained" if seen else "failed"), attempts, repr(error), request_id
        if not stream:
            whole = bool(msgspec.json.decode(seen)["choices"][0]["message"]["content"])
            return ("ok" if whole else "failed"), attempts, "", request_id
        return judged(seen, words=None if self._house.nano else CHUNKS), attempts, "", request_id


def judged(seen: bytes, *, words: int | None) -> str:
    """How a stream ended. words: how many a whole one has; None: it is not known."""
    events = [line[6:] for line in seen.split(b"\n") if line.startswith(b"data: ")]
    chunks = [msgspec.json.decode(event) for event in events if event.startswith(b"{")]
    done = bool(events) and events[-1] == b"[DONE]"
    if any("error" in chunk for chunk in chunks):
        return "false_done" if done else "broken"
    if not done:
        return "unexplained"
    finished = any(c["finish_reason"] for chunk in chunks for c in chunk.get("choices", ()))
    text = "".join(
        c["delta"].get("content") or "" for chunk in chunks for c in chunk.get("choices", ())
    )
    whole = finished and (words is None or len(text.split()) == words)
    return "ok" if whole else "false_done"


async def prove(folder: Path, *, nano: bool, quick: bool) -> dict[str, Any]:
    """Runs it; the figures."""
    calm_s, callers = (3.0, 12) if quick else (20.0, 24)
    if nano:
        callers = 6
    async with running(folder, nano=nano) as house, aiohttp.ClientSession() as http:
        load = Load(house, callers)
        asking = spawn(load.run(), name="load")
        await asyncio.sleep(WARM_S)
        load.phase = "before"
        await asyncio.sleep(calm_s)
        load.phase = "kill"
        killed = house.workers[1][0]
        assert killed.pid is not None
        killed_s = time.monotonic()
        os.kill(killed.pid, signal.SIGKILL)
        out_kill_s = await _out_of_rotation(house, http, "w2")
        await asyncio.sleep(calm_s / 2)
        await _until_up(house, 3)
        load.phase = "between"
        await asyncio.sleep(calm_s / 4)
        load.phase = "stop"
        stopped = house.workers[2][0]
        before = stopped.pid
        assert before is not None
        os.kill(before, signal.SIGSTOP)
        out_stop_s = await _out_of_rotation(house, http, "w3")
        async with asyncio.timeout(PATIENCE_S):
            while stopped.pid == before:  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(0.1)
        await _until_up(house, 3)
        load.phase = "roll"
        assert house.supervised is not None
        rolled = await house.supervised.roll()
        load.phase = "after"
        await asyncio.sleep(calm_s / 4)
        load.stop = True
        await asking
        rows = await _rows(house)
    figures = _figures(load.answers, rows, out_kill_s, out_stop_s)
    return {
        **figures,
        "resent_ms": resent_ms(load.answers, rows, killed_s),
        "rolled": rolled,
        "at_the_roll": _of_phase(load.answers, "roll"),
    }


def resent_ms(answers: list[Answered], rows: list[Any], killed_s: float) -> int | None:
    """The longest time from the death of a worker to the new attempt of a request that it had and
    had not begun to answer. None: it had none such.

    The new attempt began as long before the answer came as its row says that it took. That is known
    of answers in one piece (a row's TTFT is then the whole answer's), so these are looked at.
    """
    took_ms = {row.request_id: row.ttft_ms for row in rows if row.final and row.ttft_ms}
    found = [
        1000 * (answer.began_s - killed_s) + answer.total_ms - took_ms[answer.request_id]
        for answer in answers
        if answer.how == "ok" and answer.attempts > 1 and not answer.stream
        and answer.request_id in took_ms
        and answer.began_s < killed_s < answer.began_s + answer.total_ms / 1000
    ]  # fmt: skip
    return round(max(found)) if found else None


def _of_phase(answers: list[Answered], phase: str) -> str:
    """How the requests of one phase ended, in words."""
    hows = Counter(answer.how for answer in answers if answer.phase == phase)
    return ", ".join(f"{count} {how}" for how, count in sorted(hows.items()))


async def _out_of_rotation(house: House, http: aiohttp.ClientSession, worker: str) -> float:
    began_s = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        while worker in _up(await house.admin(http, "/admin/pool")):  # noqa: ASYNC110 - another process has no event
            await asyncio.sleep(0.02)
    return time.monotonic() - began_s


async def _rows(house: House) -> list[Any]:
    ledger = await Ledger.connect(house.books.url, instance="onlooker")
    try:
        async with asyncio.timeout(PATIENCE_S):
            while (await ledger.till()).held_nano:  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(0.05)
        return [row async for row in ledger.rows()]
    finally:
        await ledger.close()


def _figures(
    answers: list[Answered], rows: list[Any], out_kill_s: float, out_stop_s: float
) -> dict[str, Any]:
    hows = Counter(answer.how for answer in answers)
    costly = Counter(row.request_id for row in rows if row.posted_nano)
    others = {
        name: [
            a.total_ms for a in answers if a.phase in phases and a.how == "ok" and a.attempts == 1
        ]
        for name, phases in {"calm": CALM, "kill": ("kill",), "stop": ("stop",)}.items()
    }
    p99 = {phase: _p99(found) for phase, found in others.items()}
    return {
        "requests": len(answers),
        "answered": hows["ok"],
        "failed_before": hows["failed"],
        "broken_streams": hows["broken"],
        "false_done": hows["false_done"],
        "unexplained": hows["unexplained"],
        "resent": sum(a.attempts > 1 for a in answers),
        "charged_twice": sum(count > 1 for count in costly.values()),
        "out_of_rotation_kill_s": round(out_kill_s, 2),
        "out_of_rotation_stop_s": round(out_stop_s, 2),
        "p99_calm_ms": round(p99["calm"]),
        "ratio_kill": round(p99["kill"] / p99["calm"], 2),
        "ratio_stop": round(p99["stop"] / p99["calm"], 2),
        "first_failure": next((a.detail for a in answers if a.how == "failed"), ""),
    }


def _p99(values: list[float]) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))] if ranked else float("nan")


def holds(figures: dict[str, Any]) -> bool:
    """Whether what was promised is true."""
    zero = ("failed_before", "false_done", "unexplained", "charged_twice")
    return not any(figures[name] for name in zero) and figures["out_of_rotation_stop_s"] <= 10.0


def undisturbed(figures: dict[str, Any]) -> bool:
    """Whether the answers of the others took hardly longer, whatever became of one worker."""
    return all(figures[name] <= RATIO_MAX for name in ("ratio_kill", "ratio_stop"))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make proof-pool", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="half a minute instead of two")
    parser.add_argument("--nano", action="store_true", help="real glm-4.6v-nano workers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(prove(Path(folder), nano=args.nano, quick=args.quick))
    print(table(["figure", "value"], [[k, str(v)] for k, v in figures.items()], left=1))
    found = {"holds": holds(figures), "undisturbed": undisturbed(figures)}
    print(json.dumps({**figures, **found}))
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
