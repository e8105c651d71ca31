"""Experiments on the ledger itself: a crowd on one budget (A1, A10), an unreliable network (A4), a
period's end (A8), and what a hold and its settlement cost in time.

    python -m tests.proof.traffic URL NAME CLIENTS REQUESTS SEED     one process of the crowd
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis
import uvloop

from gateway.ledger.ledger import Exhausted, HoldRequest, Ledger, LedgerUnavailable
from gateway.redis.link import LedgerFault
from tests.gateway.ledger.kit import NOW_S, ZONE, hold, row
from tests.gateway.redis_servers import VALKEY, RealServer
from tests.proof.proxy import Mishaps, Proxy

TENANT, CLOUD = "tenant:acme", "backend:cloud"
WORST_NANO = 1_000
DEMAND_SHARE = 0.4  # what the budget is worth of the demand


@dataclass
class Found:
    """Amounts in nano-CNY; `figures`: what is worth telling besides."""

    operations: int = 0
    overspend: int = 0
    drift: int = 0
    leaked: int = 0
    wrong: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------ A1: the crowd


async def crowd(clients: int, requests: int, *, processes: int, seed: int, found: Found) -> None:
    """`requests` from `processes` x `clients` at once on a budget worth two fifths of them. The
    judge is the server's own log: posted + held after every single operation, in its order."""
    server = RealServer(
        VALKEY, "--appendonly", "yes", "--appendfsync", "no", "--auto-aof-rewrite-percentage", "0"
    )
    try:
        limit_nano = int(DEMAND_SHARE * requests * (WORST_NANO + 1) / 2)
        ledger = await Ledger.connect(server.url, instance="onlooker", call_timeout_s=30.0)
        for scope, period in ((CLOUD, "day"), (CLOUD, "month"), (TENANT, "total")):
            limit = limit_nano if scope == CLOUD else 10 * limit_nano
            await ledger.set_budget(
                scope, limit_nano=limit, period=period, zone=ZONE, now_s=time.time()
            )
        each = requests // processes
        children = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.proof.traffic", server.url, f"gw-{n}", str(clients),
                str(each), str(seed + n), stdout=asyncio.subprocess.PIPE,
            )
            for n in range(processes)
        ]  # fmt: skip
        began_s = time.monotonic()
        told = [json.loads((await child.communicate())[0]) for child in children]
        took_s = time.monotonic() - began_s
        found.overspend += sum(each["over"] for each in told)
        await _quiet(ledger, found)
        budgets = {(b.scope, b.period): b for b in await ledger.budgets(time.time())}
        day = budgets[CLOUD, "day"]
        found.operations += sum(each["operations"] for each in told)
        found.figures |= {
            "requests": requests,
            "refused": sum(each["refused"] for each in told),
            "used_percent": round(100 * day.posted_nano / limit_nano, 2),
            "requests_per_s": round(requests / took_s),
        }
        await ledger.close()
        _replay(server.folder, limit_nano, found)
    finally:
        server.close()


async def _quiet(ledger: Ledger, found: Found) -> None:
    """A3: nothing held, and every sum agrees."""
    till = await ledger.till()
    posted, holds = 0, Counter[str]()
    async for booked in ledger.rows(batch=2_000):
        posted += booked.posted_nano
        holds[booked.hold_id] += 1
    found.leaked += till.held_nano
    found.drift += abs(till.posted_nano - posted)
    if twice := [hold_id for hold_id, n in holds.items() if n > 1]:
        found.wrong.append(f"booked twice: {twice[:5]}")
    for budget in await ledger.budgets(time.time()):
        found.drift += abs(budget.posted_nano - posted)
        found.leaked += budget.held_nano


def _replay(folder: Path, limit_nano: int, found: Found) -> None:
    """Reads the append-only file: each script's effects stand between MULTI and EXEC."""
    figures: Counter[bytes] = Counter()
    touched: set[bytes] = set()
    transactions = 0
    for command in _commands(folder):
        name = command[0].upper()
        if name in (b"HINCRBY", b"HSET") and command[1].endswith(b":counters"):
            for fld, value in zip(command[2::2], command[3::2], strict=True):
                figures[fld] = int(value) + (figures[fld] if name == b"HINCRBY" else 0)
                touched.add(fld[:-2])
        elif name == b"EXEC":
            transactions += 1
            for counter in touched:
                if counter.startswith((b"day|backend:", b"month|backend:")):
                    over = figures[counter + b"|p"] + figures[counter + b"|h"] - limit_nano
                    found.overspend += max(0, over)
                    if min(figures[counter + b"|p"], figures[counter + b"|h"]) < 0:
                        found.wrong.append(f"{counter!r} fell below nothing")
            touched.clear()
    found.figures["operations_replayed"] = transactions
    if not transactions:
        found.wrong.append("the server's log was not found, so nothing was judged")


def _commands(folder: Path) -> Any:
    for file in sorted((folder / "appendonlydir").glob("*.incr.aof")):
        reader = hiredis.Reader()
        with file.open("rb") as log:
            while data := log.read(1 << 20):
                reader.feed(b"".join(_plain(data)) if data.startswith(b"#") else data)
                while (command := reader.gets()) is not False:
                    yield command


def _plain(data: bytes) -> Any:
    """The file may begin with a line of remarks (#TS:...), which is no command."""
    for line in data.splitlines(keepends=True):
        if not line.startswith(b"#"):
            yield line


async def _one_process(url: str, name: str, clients: int, requests: int, seed: int) -> None:
    ledger = await Ledger.connect(url, instance=name, call_timeout_s=60.0)
    over = refused = operations = 0

    def look() -> None:
        nonlocal over
        for views in ledger.views().values():
            for view in views:
                over += max(0, view.posted_nano + view.held_nano - view.limit_nano)

    async def client(number: int) -> None:
        nonlocal refused, operations
        rng = random.Random(seed * 1_000_003 + number)
        for n in range(requests // clients + (number < requests % clients)):
            hold_id, worst = f"{name}-{number}-{n}.0", rng.randint(1, WORST_NANO)
            asked = hold(hold_id, worst, TENANT, CLOUD, now_s=time.time())
            operations += 2
            if isinstance(await ledger.reserve(asked, time.time()), Exhausted):
                refused += 1
                continue
            look()
            how = rng.random()
            if how < 0.1:
                await ledger.void(hold_id)
            else:  # a few cost more than was held, and are clamped
                cost = rng.randint(0, worst) if how < 0.9 else 5 * worst
                await ledger.settle(hold_id, row(hold_id, cost))
            look()

    await asyncio.gather(*(client(number) for number in range(clients)))
    await ledger.close()
    print(json.dumps({"over": over, "refused": refused, "operations": operations}))


# ------------------------------------------------------------------ A10: precision


async def precision(clients: int, each: int, found: Found) -> None:
    """Demand is exactly the limit and holds are three times the cost: whoever is refused comes
    again, as callers do; in the end the budget must be used up."""
    server = RealServer(VALKEY)
    try:
        ledger = await Ledger.connect(server.url, instance="gw", call_timeout_s=30.0)
        limit_nano = clients * each * WORST_NANO
        await ledger.set_budget(
            CLOUD, limit_nano=limit_nano, period="total", zone=ZONE, now_s=time.time()
        )
        never = 0

        async def client(number: int) -> None:
            nonlocal never
            for n in range(each):
                for _ in range(2_000):
                    hold_id = f"p{number}-{n}-{_}.0"
                    asked = hold(hold_id, 3 * WORST_NANO, CLOUD, now_s=time.time())
                    if not isinstance(await ledger.reserve(asked, time.time()), Exhausted):
                        await asyncio.sleep(0)
                        await ledger.settle(hold_id, row(hold_id, WORST_NANO))
                        break
                    found.operations += 1
                    await asyncio.sleep(0.001)
                else:
                    never += 1

        await asyncio.gather(*(client(number) for number in range(clients)))
        await _quiet(ledger, found)
        (budget,) = await ledger.budgets(time.time())
        used = 100 * budget.posted_nano / limit_nano
        found.figures["usable_percent"] = round(used, 2)
        found.figures["false_refusals_percent"] = round(100 * never / (clients * each), 3)
        if used < 97 or never > 0.01 * clients * each:
            found.wrong.append(f"only {used:.1f} % of a budget could be used")
        await ledger.close()
    finally:
        server.close()


# ------------------------------------------------------------------ A4: the network


async def network(
    clients: int, operations: int, *, delay_s: float, seed: int, found: Found
) -> None:
    """Script calls carried twice, lost, answered to nobody, and late; each must count once."""
    server = RealServer(VALKEY)
    mishaps = Mishaps(twice=0.05, lost=0.004, reply_lost=0.004, delayed=0.004, delay_s=delay_s)
    expected: dict[str, int] = {}
    rng = random.Random(seed)
    try:
        async with Proxy(str(server.socket), mishaps, seed) as proxy:
            proxy.mishaps = None
            ledgers = [
                await Ledger.connect(proxy.url, instance=f"gw-{n}", call_timeout_s=0.5)
                for n in range(3)
            ]
            proxy.mishaps = mishaps
            limit_nano = operations * WORST_NANO
            await _insist(
                lambda: ledgers[0].set_budget(
                    CLOUD, limit_nano=limit_nano, period="total", zone=ZONE, now_s=time.time()
                )
            )
            left, tries = operations // 2, 0

            async def client(number: int) -> None:
                nonlocal left, tries
                ledger = ledgers[number % len(ledgers)]
                while left > 0:
                    tries += 1
                    hold_id = f"n{tries}.0"
                    asked = hold(hold_id, WORST_NANO, CLOUD, now_s=time.time())
                    try:
                        await ledger.reserve(asked, time.time())
                    except LedgerUnavailable:
                        await asyncio.sleep(0.01)
                        continue  # given back by the ledger itself
                    left -= 1
                    cost = rng.randint(0, WORST_NANO)
                    expected[hold_id] = cost
                    await _insist(lambda: ledger.settle(hold_id, row(hold_id, cost)))  # noqa: B023

            await asyncio.gather(*(client(number) for number in range(clients)))
            proxy.mishaps = None
            until = time.monotonic() + 30
            while time.monotonic() < until:
                for ledger in ledgers:
                    with contextlib.suppress(LedgerUnavailable):
                        await ledger.refresh(time.time())
                with contextlib.suppress(LedgerUnavailable):
                    if not (await ledgers[0].till()).held_nano:
                        break
                await asyncio.sleep(0.1)
            await _quiet(ledgers[0], found)
            booked = {r.hold_id: r.posted_nano async for r in ledgers[0].rows(batch=2_000)}
            wrong = {k for k in booked.keys() | expected.keys() if booked.get(k) != expected.get(k)}
            if wrong:
                found.wrong.append(f"not booked as settled: {sorted(wrong)[:5]}")
            found.operations += sum(proxy.happened.values())
            found.figures["network"] = dict(proxy.happened)
            for ledger in ledgers:
                await ledger.close()
    finally:
        server.close()


async def _insist(call: Any) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            await call()
            return
        except LedgerUnavailable:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.02)


# ------------------------------------------------------------------ A8: the end of a period


async def rollover(settlements: int, found: Found) -> None:
    """Holds of before midnight settled after it: none is lost and none moves to the new day."""
    server = RealServer(VALKEY)
    before_s = NOW_S + 7 * 3600 - 1  # a second before midnight in Shanghai
    after_s = before_s + 2
    try:
        ledger = await Ledger.connect(server.url, instance="gw", server_clock=False)
        for period in ("minute", "hour", "day", "week", "total"):
            await ledger.set_budget(
                CLOUD, limit_nano=10**12, period=period, zone=ZONE, now_s=before_s
            )
        ids = [f"m{n}.0" for n in range(settlements)]
        await asyncio.gather(
            *(ledger.reserve(hold(i, 100, CLOUD, now_s=before_s), before_s) for i in ids)
        )
        await ledger.refresh(after_s)
        ledger._clock(after_s)
        await asyncio.gather(*(ledger.settle(i, row(i, 60)) for i in ids))
        with server.client() as client:
            counters: dict[str, str] = client.hgetall("yuzui:{main}:counters")  # type: ignore[assignment]
        for period in ("minute", "hour", "day", "week", "total"):
            names = [n for n in counters if n.startswith(f"{period}|") and n.endswith("|p")]
            if [int(counters[n]) for n in names] != [60 * settlements]:
                found.wrong.append(f"{period}: {[(n, counters[n]) for n in names]}")
        fresh = {str(b.period): b.posted_nano for b in await ledger.budgets(after_s)}
        old = 60 * settlements
        # that midnight begins a Monday, and a week, too
        if fresh != {"minute": 0, "hour": 0, "day": 0, "week": 0, "total": old}:
            found.wrong.append(f"moved into a new period: {fresh}")
        found.operations += 2 * settlements
        till = await ledger.till()
        found.leaked += till.held_nano
        found.drift += abs(till.posted_nano - old)
        await ledger.close()
    finally:
        server.close()


# ------------------------------------------------------------------ the price in time


async def latency(rate: int, seconds: float) -> dict[str, float]:
    """Hold and settlement of one request together, in ms, with `rate` requests a second that do not
    wait for each other. Same host, unix socket, three budgets a request."""
    server = RealServer(VALKEY, "--appendonly", "yes", "--appendfsync", "everysec")
    took_ms: list[float] = []
    bare_ms: list[float] = []  # two round trips that do nothing: what the machine itself takes
    gc.collect()  # as every gateway does, see gateway.app
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    try:
        ledger = await Ledger.connect(server.url, instance="gw", call_timeout_s=60.0)
        for scope, period in ((CLOUD, "day"), (TENANT, "month"), (TENANT, "total")):
            await ledger.set_budget(
                scope, limit_nano=10**15, period=period, zone=ZONE, now_s=time.time()
            )

        async def one(number: int) -> None:
            hold_id, now_s = f"l{number}.0", time.time()
            if number % 10 == 0:
                began_s = time.perf_counter()
                await ledger.ping()
                await ledger.ping()
                bare_ms.append(1000 * (time.perf_counter() - began_s))
            began_s = time.perf_counter()
            asked = HoldRequest(
                id=hold_id, amount_nano=1000, scopes=(TENANT, CLOUD), sent=False,
                deadline_s=now_s + 60, draft=row(hold_id),
            )  # fmt: skip
            await ledger.reserve(asked, now_s)
            held_s = time.perf_counter() - began_s
            await asyncio.sleep(0.02)
            began_s = time.perf_counter()
            await ledger.settle(hold_id, row(hold_id, 700))
            took_ms.append(1000 * (held_s + time.perf_counter() - began_s))

        began_s, tasks = time.perf_counter(), []
        for number in range(int(rate * seconds)):
            wait_s = began_s + number / rate - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            tasks.append(asyncio.get_running_loop().create_task(one(number)))
        await asyncio.gather(*tasks)
        await ledger.close()
    finally:
        server.close()
        gc.unfreeze()
    return {**_quantiles(took_ms, ""), **_quantiles(bare_ms, "bare_")}


def _quantiles(values_ms: list[float], prefix: str) -> dict[str, float]:
    values_ms.sort()
    return {
        f"{prefix}p{q}": round(values_ms[min(len(values_ms) - 1, len(values_ms) * q // 100)], 3)
        for q in (50, 90, 99)
    }


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, LedgerFault):
        uvloop.run(_one_process(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])))
