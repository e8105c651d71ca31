"""Experiments through whole gateways: cold starts (A5), callers that leave (A7), and engines that
report nonsense (A9)."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import aiohttp

from tests.gateway.ledger.kit import hold, row
from tests.proof.crash import PATIENCE_S, RESOLVED_S, Ground
from tests.proof.traffic import Found

NONSENSE: tuple[dict[str, Any], ...] = (
    {"prompt_tokens": -5, "completion_tokens": 10, "total_tokens": 5},
    {"prompt_tokens": 5, "completion_tokens": -(2**63), "total_tokens": 5},
    {"prompt_tokens": 5, "completion_tokens": 2**63, "total_tokens": 5},
    {"prompt_tokens": 2**62, "completion_tokens": 2**62, "total_tokens": 5},
    {"prompt_tokens": 5, "completion_tokens": 10**6, "total_tokens": 5},
    {"prompt_tokens": 5, "completion_tokens": 1e300, "total_tokens": 5},
    {"prompt_tokens": "5", "completion_tokens": "many", "total_tokens": None},
    {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
    {"prompt_tokens": 5, "completion_tokens": True, "total_tokens": 6},
    {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 900}},
    {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": -9}},
    {},
)


async def cold_start(processes: int, found: Found) -> None:
    """Books with figures in every counter; then N gateways start on them at once. Not one of the
    counters may change: a neighbour seeds its caches by increment, once for each process."""
    async with Ground() as ground:
        books = ground.survivor
        for scope, period in (("tenant:t", "day"), ("backend:cloud", "month")):
            await books.set_budget(
                scope, limit_nano=10**12, period=period, zone="UTC", now_s=time.time()
            )
        for n in range(50):
            asked = hold(f"c{n}.0", 100, "tenant:t", "backend:cloud", now_s=time.time())
            await books.reserve(asked, time.time())
            if n % 5:
                await books.settle(asked.id, row(asked.id, 60))
        before = _books(ground)
        started = await asyncio.gather(
            *(ground.gateways.start(ground.config()) for _ in range(processes))
        )
        if not all(await asyncio.gather(*(ground.ready(each) for each in started))):
            found.wrong.append("a gateway did not start")
        await books.renew_lease(time.time())
        after = _books(ground)
        found.drift += sum(
            abs(int(after.get(name, 0)) - int(before.get(name, 0)))
            for name in before.keys() | after.keys()
        )
        found.operations += processes
        for each in started:
            each.kill()


def _books(ground: Ground) -> dict[str, str]:
    with ground.server.client() as client:
        counters: Any = client.hgetall("yuzui:{main}:counters")
        till: Any = client.hgetall("yuzui:{main}:till")
    return {**counters, **till}


async def callers_leave(times: int, *, seed: int, found: Found, at_once: int = 20) -> None:
    """Callers that hang up at a random byte of a stream or a plain answer. Every request that an
    engine saw has its row, the engines are told, and nothing stays held."""
    rng = random.Random(seed)
    async with Ground() as ground:
        gateway = await ground.gateways.start(ground.config())
        assert await ground.ready(gateway)
        await ground.survivor.set_budget(
            "tenant:t", limit_nano=10**13, period="day", zone="UTC", now_s=time.time()
        )
        gate = asyncio.Semaphore(at_once)

        async def caller(n: int) -> None:
            async with gate:
                await _leave(ground, gateway.url, rng.choice(("local", "cloud")), rng)

        await asyncio.gather(*(caller(n) for n in range(times)))
        await _settled(ground, found)
        seen = {r.client_request_id for r in ground.cloud.books.received.rows}
        rows = [r async for r in ground.survivor.rows(batch=2_000)]
        final = {r.request_id for r in rows if r.final}
        missing = seen - final
        if missing:
            found.wrong.append(f"{len(missing)} requests at the cloud without a row")
        booked: dict[str, int] = {}
        for each in rows:
            booked[each.request_id] = booked.get(each.request_id, 0) + each.posted_nano
        for request_id, nano in ground.bills().items():
            found.overspend += max(0, nano - booked.get(request_id, 0))
        if ground.worker.running or ground.cloud.books.running:
            found.wrong.append("an engine still works for a caller that has left")
        found.operations += times
        found.figures["rows"] = len(rows)
        found.figures["left"] = sum(r.outcome == "client_gone" for r in rows)
        gateway.kill()


async def _leave(ground: Ground, url: str, side: str, rng: random.Random) -> None:
    body = {
        "model": f"{side}/glm-4.6v",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": rng.random() < 0.8,
        "max_tokens": 64,
    }
    patience_s = rng.choice([0.001, 0.005, 0.01, 0.02, 0.05])
    bytes_wanted = rng.choice([1, 100, 500, 1_000, 2_000, 10**6])
    try:
        async with asyncio.timeout(patience_s if rng.random() < 0.5 else PATIENCE_S):
            async with ground.http.post(
                f"{url}/v1/chat/completions", json=body, headers=ground.headers("t")
            ) as response:
                read = 0
                async for data in response.content.iter_any():
                    read += len(data)
                    if read >= bytes_wanted:
                        response.close()
                        return
    except (aiohttp.ClientError, OSError, TimeoutError):
        pass


async def _settled(ground: Ground, found: Found) -> None:
    """Nothing held within some seconds, and every sum agrees."""
    until = time.monotonic() + PATIENCE_S + RESOLVED_S
    till = await ground.survivor.till()
    while till.held_nano and time.monotonic() < until:
        await asyncio.sleep(0.1)
        await ground.survivor.renew_lease(time.time())
        till = await ground.survivor.till()
    posted = sum([r.posted_nano async for r in ground.survivor.rows(batch=2_000)])
    found.leaked += till.held_nano
    found.drift += abs(till.posted_nano - posted)
    for budget in await ground.survivor.budgets(time.time()):
        found.leaked += budget.held_nano
        found.drift += abs(budget.posted_nano - posted)
        found.overspend += max(0, budget.posted_nano + budget.held_nano - budget.limit_nano)


async def nonsense(found: Found) -> None:
    """Usage figures that cannot be true: the books clamp them, say so, and stay whole."""
    async with Ground() as ground:
        gateway = await ground.gateways.start(ground.config())
        assert await ground.ready(gateway)
        await ground.survivor.set_budget(
            "tenant:t", limit_nano=10**13, period="day", zone="UTC", now_s=time.time()
        )
        faults = ground.cloud.url.removesuffix("/api/v3") + "/emulator/faults"
        for usage in NONSENSE:
            for stream in (False, True):
                rule = {"fault": {"usage": usage}, "next": 1}
                async with ground.http.post(faults, json=rule) as response:
                    assert response.status == 200, await response.text()
                body = {
                    "model": "cloud/glm-4.6v",
                    "messages": [{"role": "user", "content": "hello"}],
                    "stream": stream,
                    "max_tokens": 64,
                }
                async with ground.http.post(
                    f"{gateway.url}/v1/chat/completions", json=body, headers=ground.headers("t")
                ) as response:
                    await response.read()
                found.operations += 1
        await _settled(ground, found)
        rows = [r async for r in ground.survivor.rows()]
        if len({r.request_id for r in rows}) != found.operations:
            found.wrong.append(f"{found.operations} requests left {len(rows)} rows")
        for each in rows:
            if not 0 <= each.posted_nano <= each.held_nano:
                found.wrong.append(f"{each.hold_id}: posted {each.posted_nano}")
        flagged = sum(bool(r.flags) for r in rows)
        found.figures |= {"rows": len(rows), "flagged": flagged}
        if flagged < len(rows) // 2:
            found.wrong.append("nonsense was believed")
        gateway.kill()
