"""That a worker which is killed or hangs takes no request with it: `make proof-pool`.

Real processes: a Valkey, three workers kept running by the supervisor of `yuzui up`, one gateway,
and callers who do not wait for each other (`tests.proof.callers`), half of them streaming, at six
tenths of what the pool answers in a closed loop. In each round the same arrivals are played three
times: in calm; while one worker is killed (SIGKILL) and comes back; while another is stopped
(SIGSTOP), is killed by the supervisor for hanging, and comes back. At the end all three are
restarted one after the other.

    failed_before      requests that failed and had not begun to stream            must be 0
    false_done         streams that ended with [DONE] and were not whole           must be 0
    broken_streams     streams of the dead worker: each ended with an in-band error
    unexplained        streams that ended neither with [DONE] nor with an error    must be 0
    charged_twice      requests with more than one row that costs                  must be 0
    ratio_kill, ratio_stop   p99 of the answers that needed one attempt, beside that of the same
                       arrivals in calm: from the fault until three seconds after the worker is
                       back, its restart on the same cores included; the median of the rounds,
                       and each of them (ratios_kill, ratios_stop)                 at most 1.2
    ratios_calm        the same of calm windows beside the calm windows before them: how far the
                       measure itself is off when nothing happens
    resent_ms          from the kill to the new attempt of a request that the dead worker had and
                       had not begun to answer: the longest
    kept_waiting       requests that were sent to the stopped worker and made again elsewhere when
                       it was given up, and how long the slowest took (kept_waiting_ms)

The workers answer from a script (`--nano`: three glm-4.6v-nano workers instead, on the same cores
as gateway and callers). Why the ratios are measured in this way is told in `tests.proof.windows`.
Prints a table and, as its last line, one JSON object; ends with 1 when a bound is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp

from gateway.commands.tables import table
from gateway.ledger.ledger import Ledger
from tests.proof.callers import Answered, Callers
from tests.proof.house import CHUNKS, PATIENCE_S, House, running
from tests.proof.windows import median, p99, ratio, twins

WARM_S = 1.0  # connections are made
MEASURE_S = 4.0  # what the pool can do
SHARE = 0.6  # of it: meant to be less than the two workers can carry that are left
TAIL_S = 3.0  # after a worker is back: its caches are empty, and it gets its share little by little
RATIO_MAX = 1.2  # of the p99 of those who have nothing to do with the dead worker


class Proof:
    """One run over a house."""

    def __init__(self, house: House, http: aiohttp.ClientSession, callers: int) -> None:
        self._house = house
        self._http = http
        words = None if house.nano else CHUNKS
        self.callers = Callers(http, house.url, house.token, words=words)
        self._closed = callers
        self._rate = 0.0
        self.killed_s: list[float] = []
        self.out_kill_s: list[float] = []
        self.out_stop_s: list[float] = []
        self.windows_s: dict[str, float] = {}

    async def measure(self) -> None:
        await self.callers.capacity(self._closed, WARM_S)
        self._rate = SHARE * await self.callers.capacity(self._closed, MEASURE_S)
        self.callers.answers.clear()

    @property
    def rate(self) -> float:
        return self._rate

    async def window(self, name: str, what: Any) -> None:
        self.windows_s[name] = await self.callers.window(name, self._rate, what)

    async def calm(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def kill(self, number: int) -> None:
        """SIGKILL; until some seconds after it is back."""
        pid = self._house.workers[number][0].pid
        assert pid is not None
        self.killed_s.append(time.monotonic())
        os.kill(pid, signal.SIGKILL)
        self.out_kill_s.append(await self._house.out_of_rotation(self._http, f"w{number + 1}"))
        await self._house.until_up(3)
        await asyncio.sleep(TAIL_S)

    async def stop(self, number: int) -> None:
        """SIGSTOP; until some seconds after the supervisor has killed it and it is back."""
        stopped = self._house.workers[number][0]
        pid = stopped.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        self.out_stop_s.append(await self._house.out_of_rotation(self._http, f"w{number + 1}"))
        async with asyncio.timeout(PATIENCE_S):
            while stopped.pid == pid:  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(0.1)
        await self._house.until_up(3)
        await asyncio.sleep(TAIL_S)

    async def roll(self) -> bool:
        assert self._house.supervised is not None
        return await self._house.supervised.roll()


async def prove(folder: Path, *, nano: bool, quick: bool, rounds: int = 3) -> dict[str, Any]:
    """Runs it; the figures."""
    calm_s = 1.5 if quick else 20.0
    rounds = 1 if quick else rounds
    limits = aiohttp.ClientTimeout(total=4 * PATIENCE_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        running(folder, nano=nano) as house,
        aiohttp.ClientSession(timeout=limits, connector=connector) as http,
    ):
        proof = Proof(house, http, 6 if nano else 24)
        await proof.measure()
        for number in range(rounds):
            await proof.window(f"calm {number}", proof.calm(calm_s))
            await proof.window(f"kill {number}", proof.kill((1 + 2 * number) % 3))
            await proof.window(f"stop {number}", proof.stop((2 + 2 * number) % 3))
        await proof.window(f"calm {rounds}", proof.calm(calm_s))
        rolled: list[bool] = []
        await proof.window("roll", _noted(proof.roll(), rolled))
        await proof.callers.quiet()
        rows = await _rows(house)
    answers = proof.callers.answers
    return {
        **_counted(answers, rows),
        **_compared(answers, rounds),
        "rate_per_s": round(proof.rate, 1),
        "out_of_rotation_kill_s": round(max(proof.out_kill_s), 2),
        "out_of_rotation_stop_s": round(max(proof.out_stop_s), 2),
        "resent_ms": _longest(resent_ms(answers, rows, at_s) for at_s in proof.killed_s),
        **_kept_waiting(answers),
        "window_kill_s": round(proof.windows_s["kill 0"], 1),
        "window_stop_s": round(proof.windows_s["stop 0"], 1),
        "rolled": rolled == [True],
        "at_the_roll": _of_window(answers, "roll"),
    }


async def _noted(what: Any, found: list[bool]) -> None:
    found.append(await what)


def _longest(found: Any) -> int | None:
    return max((ms for ms in found if ms is not None), default=None)


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


def _of_window(answers: list[Answered], window: str) -> str:
    """How the requests of one window ended, in words."""
    hows = Counter(answer.how for answer in answers if answer.window == window)
    return ", ".join(f"{count} {how}" for how, count in sorted(hows.items()))


def _kept_waiting(answers: list[Answered]) -> dict[str, int]:
    waited = [a.total_ms for a in answers if a.window.startswith("stop") and a.attempts > 1]
    return {"kept_waiting": len(waited), "kept_waiting_ms": round(max(waited, default=0.0))}


async def _rows(house: House) -> list[Any]:
    ledger = await Ledger.connect(house.books.url, instance="onlooker")
    try:
        async with asyncio.timeout(PATIENCE_S):
            while (await ledger.till()).held_nano:  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(0.05)
        return [row async for row in ledger.rows()]
    finally:
        await ledger.close()


def _counted(answers: list[Answered], rows: list[Any]) -> dict[str, Any]:
    hows = Counter(answer.how for answer in answers)
    costly = Counter(row.request_id for row in rows if row.posted_nano)
    return {
        "requests": len(answers),
        "answered": hows["ok"],
        "failed_before": hows["failed"],
        "broken_streams": hows["broken"],
        "false_done": hows["false_done"],
        "unexplained": hows["unexplained"],
        "resent": sum(a.attempts > 1 for a in answers),
        "charged_twice": sum(count > 1 for count in costly.values()),
        "first_failure": next((a.detail for a in answers if a.how == "failed"), ""),
    }


def _compared(answers: list[Answered], rounds: int) -> dict[str, Any]:
    """The windows of each round beside its calm one, and that beside the one before it."""
    ratios = {
        fault: [ratio(answers, f"{fault} {n}", f"calm {n}") for n in range(rounds)]
        for fault in ("kill", "stop")
    }
    calm = [ratio(answers, f"calm {n + 1}", f"calm {n}") for n in range(rounds)]
    compared = [len(twins(answers, f"kill {n}", f"calm {n}")[0]) for n in range(rounds)]
    return {
        "p99_calm_ms": round(p99([a.total_ms for a in answers if a.window.startswith("calm")])),
        "ratio_kill": round(median(ratios["kill"]), 2),
        "ratio_stop": round(median(ratios["stop"]), 2),
        "ratios_kill": ratios["kill"],
        "ratios_stop": ratios["stop"],
        "ratios_calm": calm,
        "compared": compared,
    }


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
    parser.add_argument("--quick", action="store_true", help="half a minute instead of three")
    parser.add_argument("--nano", action="store_true", help="real glm-4.6v-nano workers")
    parser.add_argument("--rounds", type=int, default=3, help="of some 45 s each (default: 3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(
            prove(Path(folder), nano=args.nano, quick=args.quick, rounds=args.rounds)
        )
    print(table(["figure", "value"], [[k, str(v)] for k, v in figures.items()], left=1))
    found = {"holds": holds(figures), "undisturbed": undisturbed(figures)}
    print(json.dumps({**figures, **found}))
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
