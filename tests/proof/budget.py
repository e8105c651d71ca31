"""Proof that budgets cannot be overspent and holds do not leak: `make proof-budget`.

    sequences   any sequence of operations, on the real ledger and on an oracle        (all of A)
    crash       gateways killed at eight points of an exchange, local and cloud        (A2, A3)
    crowd       3 processes x 1,000 clients on one budget worth 40 % of the demand     (A1)
    network     script calls carried twice, lost, unanswered, late                     (A4)
    cold        eight gateways start on full books at once                             (A5)
    failover    a server that dies, and a replica that takes over                      (A6)
    leave       callers that hang up at a random byte                                  (A7)
    rollover    settlements after the end of their period                              (A8)
    nonsense    usage figures that cannot be true                                      (A9)
    precision   demand equals limit: how much of a budget is usable                    (A10)
    latency     a hold and its settlement under 1,000 requests a second

Everything is real: Valkey, Lua, gateway processes, sockets, SIGKILL. Progress on stderr; the last
line on stdout is one JSON object. Exit code 1 when overspend, drift or leaked is not 0, or anything
else was wrong; Ctrl-C prints what was done so far (exit code 130).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import queue
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import uvloop

from tests.gateway.ledger.machine import Op, Player, draw
from tests.gateway.redis_servers import REDIS_6_2, VALKEY, RealServer
from tests.proof import flows, traffic
from tests.proof.crash import Crashes, crash
from tests.proof.failover import failover
from tests.proof.traffic import Found

BATCH = 250  # sequences that are played at once
STEPS = 20


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    sequences: int
    seeds: int  # crash runs: times 16
    crowd_clients: int
    crowd_requests: int
    network: int
    delay_s: float
    leave: int
    rollover: int
    precision: int
    failovers: int
    latency_s: float
    latency_rate: int = 1_000

    def scaled(self, by: float) -> Size:
        """So much of it; what is a matter of kind and not of number stays."""
        counts = ("sequences", "seeds", "crowd_requests", "network", "leave", "failovers")
        changes = {name: max(1, round(by * getattr(self, name))) for name in counts}
        return replace(self, **changes)


FULL = Size(
    sequences=100_000, seeds=100, crowd_clients=1_000, crowd_requests=1_000_000, network=100_000,
    delay_s=5.0, leave=10_000, rollover=1_000, precision=50, failovers=20, latency_s=30.0,
)  # fmt: skip
QUICK = Size(
    sequences=1_000, seeds=2, crowd_clients=200, crowd_requests=6_000, network=2_000,
    delay_s=0.3, leave=200, rollover=1_000, precision=10, failovers=1, latency_s=5.0,
)  # fmt: skip


class Report:
    """What is known so far; printed at the end, however that comes."""

    def __init__(self) -> None:
        self.sums = {"overspend": 0, "drift": 0, "leaked": 0}
        self.wrong: list[str] = []
        self.figures: dict[str, Any] = {
            "sequences": 0, "crash_runs": 0, **self.sums, "hold_settle_p99_ms": None
        }  # fmt: skip

    def add(self, name: str, found: Any) -> None:
        for each in self.sums:
            self.sums[each] += getattr(found, each)
        self.wrong += [f"{name}: {text}" for text in found.wrong]
        self.figures |= self.sums

    @property
    def good(self) -> bool:
        return not any(self.sums.values()) and not self.wrong

    def print(self) -> None:
        for text in self.wrong[:20]:
            print(f"WRONG  {text}", file=sys.stderr)
        print(json.dumps({**self.figures, "wrong": len(self.wrong), "ok": self.good}), flush=True)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------ sequences


def _play(size: int, seed: int, binary: str, out: Any) -> None:
    """One process: draws batches and plays them on a server of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process tells us when to stop
    logging.disable(logging.CRITICAL)
    rng = random.Random(seed)
    server = RealServer(VALKEY if binary == "valkey" else REDIS_6_2)

    def end(*_: object) -> None:  # an exception would be taken for a finding by the drawing
        server.close()
        os._exit(0)

    signal.signal(signal.SIGTERM, end)

    async def play(drawn: list[list[Op]]) -> Any:
        async with Player(server.url) as player:
            await player.play(drawn)
        return player.verdict

    seen: set[int] = set()
    try:
        while len(seen) < size:
            drawn: list[list[Op]] = []
            batch_seed = rng.randrange(2**32)
            draw(BATCH, STEPS, drawn.append, batch_seed)
            fresh = []
            for ops in drawn:  # the same sequence twice is one sequence
                mark = hash(repr([(op.name, op.owner, op.args, op.now_s) for op in ops]))
                if mark not in seen and len(seen) < size:
                    seen.add(mark)
                    fresh.append(ops)
            verdict = uvloop.run(play(fresh))
            out.put((verdict, batch_seed))
    finally:
        server.close()
        out.put((None, seed))


def sequences(size: int, seed: int, processes: int, report: Report) -> None:
    """Draws and plays in several processes; every tenth sequence on Redis 6.2."""
    out: Any = multiprocessing.Queue()
    shares = [(size - size // 10) // processes] * processes + [size // 10]
    shares[0] += size - sum(shares)
    children = [
        multiprocessing.Process(
            target=_play,
            args=(share, seed + n, "valkey" if n < processes else "redis", out),
            daemon=True,
        )
        for n, share in enumerate(shares)
        if share
    ]
    for child in children:
        child.start()
    try:
        _gather(out, children, size, report)
    finally:
        for child in children:
            child.terminate()
            child.join(10)


def _gather(out: Any, children: list[Any], size: int, report: Report) -> None:
    left, operations, told_s = len(children), 0, time.monotonic()
    while left:
        try:
            verdict, batch_seed = out.get(timeout=60)
        except queue.Empty:
            if not any(child.is_alive() for child in children):
                report.wrong.append("sequences: a process ended without a word")
                return
            continue
        if verdict is None:
            left -= 1
            continue
        report.add(f"sequences (seed {batch_seed})", verdict)
        report.figures["sequences"] += verdict.sequences
        operations += verdict.operations
        report.figures["sequence_operations"] = operations
        if time.monotonic() > told_s + 5:
            told_s = time.monotonic()
            say(f"sequences: {report.figures['sequences']}/{size}, {operations} operations")


# ------------------------------------------------------------------ the rest


async def _crash(size: Size, seed: int, report: Report) -> None:
    found = Crashes()
    try:
        await crash(size.seeds, found=found, first_seed=seed, note=say)
    finally:
        report.add("crash", found)
        report.figures["crash_runs"] = found.runs
        report.figures["crash_points"] = dict(sorted(found.killed_at.items()))
        report.figures["crash_missed"] = found.missed
        report.figures["resolved_after_lease_s_max"] = round(found.resolved_s_max, 2)


async def _part(name: str, report: Report, run: Callable[[Found], Any]) -> None:
    found, began_s = Found(), time.monotonic()
    try:
        await run(found)
    finally:
        report.add(name, found)
        report.figures[name] = {"operations": found.operations, **found.figures}
        say(f"{name}: {found.operations} operations in {time.monotonic() - began_s:.0f} s")


async def _latency(size: Size, report: Report) -> None:
    found = await traffic.latency(size.latency_rate, size.latency_s)
    report.figures["hold_settle_ms"] = found
    report.figures["hold_settle_p99_ms"] = found["p99"]
    say(
        f"latency: hold and settlement p50 {found['p50']} ms, p99 {found['p99']} ms; two bare "
        f"round trips p50 {found['bare_p50']} ms, p99 {found['bare_p99']} ms"
    )


def parts(size: Size, seed: int, processes: int, report: Report) -> dict[str, Callable[[], None]]:
    def run(name: str, what: Callable[[Found], Any]) -> Callable[[], None]:
        return lambda: uvloop.run(_part(name, report, what))

    return {
        "latency": lambda: uvloop.run(_latency(size, report)),
        "sequences": lambda: sequences(size.sequences, seed, processes, report),
        "crash": lambda: uvloop.run(_crash(size, seed, report)),
        "crowd": run(
            "crowd",
            lambda found: traffic.crowd(
                size.crowd_clients, size.crowd_requests, processes=3, seed=seed, found=found
            ),
        ),
        "network": run(
            "network",
            lambda found: traffic.network(
                60, size.network, delay_s=size.delay_s, seed=seed, found=found
            ),
        ),
        "cold": run("cold", lambda found: flows.cold_start(8, found)),
        "failover": run("failover", lambda found: failover(size.failovers, seed=seed, found=found)),
        "leave": run(
            "leave", lambda found: flows.callers_leave(size.leave, seed=seed, found=found)
        ),
        "rollover": run("rollover", lambda found: traffic.rollover(size.rollover, found)),
        "nonsense": run("nonsense", flows.nonsense),
        "precision": run("precision", lambda found: traffic.precision(50, size.precision, found)),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.proof.budget", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="about a hundredth of everything")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="so much of it")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31), help="repeats a run")
    parser.add_argument("--sequences", type=int, metavar="N", help="instead of 100,000")
    parser.add_argument("--seeds", type=int, metavar="N", help="crash runs / 16, instead of 100")
    parser.add_argument("--processes", type=int, default=2, help="that draw sequences (default 2)")
    parser.add_argument("--only", metavar="PART,PART", help="these parts alone")
    args = parser.parse_args(argv)
    size = QUICK if args.quick else FULL.scaled(args.scale)
    given = {"sequences": args.sequences, "seeds": args.seeds}
    changes = {name: value for name, value in given.items() if value is not None}
    size = replace(size, **changes)
    logging.disable(logging.CRITICAL)
    report = Report()
    report.figures["seed"] = args.seed
    todo = parts(size, args.seed, args.processes, report)
    wanted = args.only.split(",") if args.only else list(todo)
    if unknown := [name for name in wanted if name not in todo]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(todo)}")
    try:
        for name in wanted:
            say(f"{name} ...")
            todo[name]()
    except KeyboardInterrupt:
        say("stopped; what was done so far:")
        report.print()
        return 130
    report.print()
    return 0 if report.good else 1


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
