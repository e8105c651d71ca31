"""A2: gateways that are killed at every point of an exchange, and what their books are worth then.

Each run is a gateway process of its own with a tenant and a budget of its own. Three requests go to
it at once; at the n-th time that one of them reaches the point, the process kills itself. Then a
survivor sweeps, and:

    leaked     money that is still held long after (lease + 5 s)
    drift      posted in the till against the sum of the rows; a hold with two rows
    overspend  posted above the limit; or a bill of the emulated cloud above what was posted for it
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from backends.ark.emulator.server import Emulator
from backends.ark.emulator.settings import Settings
from backends.scripted_server import ScriptedServer, ServerOptions
from gateway.keys import from_secret, issue
from gateway.ledger.ledger import Ledger
from gateway.ledger.rows import Row
from gateway.prices.cards import load_book
from policies.price import cost
from policies.types import Usage
from tests.gateway.redis_servers import VALKEY, RealServer
from tests.proof.gateways import POINTS, Gateways, Running

SECRET = "a secret of the proof, 32 bytes or more"
ADMIN_TOKEN = "an admin token of the proof"
ARK_KEY = "ark-key-of-the-proof"
SIDES = ("local", "cloud")
REQUESTS = 3
LEASE_S = 1.0  # of most batches; every tenth has the real one
RESOLVED_S = 5.0  # after the lease: "swept within 5 s of expiry"
PATIENCE_S = 20.0
BATCH = 12
STARTS_MAX = 3  # of one gateway: a free port is free only until somebody takes it


@dataclass
class Crashes:
    """What the runs found; amounts in nano-CNY."""

    runs: int = 0
    missed: int = 0  # the point was not reached: the run does not count
    overspend: int = 0
    drift: int = 0
    leaked: int = 0
    resolved_s_max: float = 0.0  # after the end of the lease
    killed_at: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)  # by state
    wrong: list[str] = field(default_factory=list)


@dataclass
class Run:
    point: str
    side: str
    seed: int
    tenant: str = ""
    gateway: Running | None = None
    limit_nano: int = 0


class Ground:
    """Servers that outlive the killed: books, a worker, an emulated cloud, and a survivor."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Ground:
        stack = self._stack
        self.server = RealServer(VALKEY)
        stack.callback(self.server.close)
        self.worker = await stack.enter_async_context(
            ScriptedServer(ServerOptions(chunks=8, pace_ms=2.0, first_ms=2.0))
        )
        latency = {"first_ms_min": 1.0, "first_ms_max": 3.0, "token_ms": 2.0}
        settings = {"port": 0, "latency": latency, "answer_tokens": 8}
        settings["burst"] = {"enabled": False}
        settings["limits"] = {"*": {"rpm": 10**9, "tpm": 10**12}}
        self.cloud = Emulator(msgspec.convert(settings, Settings))
        await self.cloud.start()
        stack.push_async_callback(self.cloud.close)
        self.gateways = await stack.enter_async_context(Gateways())
        self.survivor = await Ledger.connect(self.server.url, instance="survivor")
        stack.push_async_callback(self.survivor.close)
        self.http = await stack.enter_async_context(
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=PATIENCE_S),
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
            )
        )
        self.card = load_book().at(int(1000 * time.time()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def config(self, **more: Any) -> dict[str, Any]:
        return {
            "redis_url": self.server.url,
            "auth.secret": SECRET,
            "admin_token": ADMIN_TOKEN,
            "workers": [self.worker.url],
            "ark.base_url": self.cloud.url,
            "ark.api_key": ARK_KEY,
            "log.level": "error",
            **more,
        }

    def headers(self, tenant: str) -> dict[str, str]:
        key = from_secret("default", SECRET.encode())
        token = issue(
            key, tenant=tenant, subject="s", ttl_s=3_600, issuer="yuzui", audience="yuzui"
        )
        return {"Authorization": f"Bearer {token}"}

    async def ready(self, gateway: Running) -> bool:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until and gateway.alive:
            try:
                async with self.http.get(f"{gateway.url}/readyz") as response:
                    if response.status == 200:
                        return True
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(0.02)
        return False

    def bills(self) -> dict[str, int]:
        """What the cloud charges for, in nano-CNY by request id."""
        found: Counter[str] = Counter()
        for charged in self.cloud.books.charged.rows:
            usage = Usage(
                prompt_tokens=charged.prompt_tokens,
                completion_tokens=charged.completion_tokens,
                cached_tokens=charged.cached_tokens,
            )
            nano = cost(self.card, charged.model, usage).nano
            found[charged.client_request_id or "?"] += nano
        return dict(found)


async def crash(seeds: int, *, found: Crashes, first_seed: int = 0, note: Any = None) -> None:
    """`seeds` runs at each of the 8 points on both sides, in a random order."""
    runs = [
        Run(point, side, first_seed + n) for n in range(seeds) for point in POINTS for side in SIDES
    ]
    random.Random(first_seed).shuffle(runs)
    async with Ground() as ground:
        for i in range(0, len(runs), BATCH):
            await _batch(ground, runs[i : i + BATCH], found, real_lease=i // BATCH % 10 == 9)
            if note is not None:
                note(f"crash: {found.runs}/{len(runs)} runs, slowest {found.resolved_s_max:.1f} s")


async def _batch(ground: Ground, runs: list[Run], found: Crashes, *, real_lease: bool) -> None:
    sweeping = asyncio.get_running_loop().create_task(_sweep(ground))
    lease_s = 10.0 if real_lease else LEASE_S
    try:
        await asyncio.gather(*(_kill(ground, run, lease_s, found) for run in runs))
        killed_s = time.monotonic()
        until = killed_s + lease_s + RESOLVED_S
        held = (await ground.survivor.till()).held_nano
        while held and time.monotonic() < until:
            await asyncio.sleep(0.05)
            held = (await ground.survivor.till()).held_nano
        found.resolved_s_max = max(found.resolved_s_max, time.monotonic() - killed_s - lease_s)
        found.leaked += held
    finally:
        sweeping.cancel()
    await _audit(ground, runs, found)


async def _sweep(ground: Ground) -> None:
    """What every living gateway does once a second."""
    while True:
        await ground.survivor.renew_lease(time.time())
        await ground.survivor.sweep(time.time())
        await asyncio.sleep(0.5)


async def _kill(ground: Ground, run: Run, lease_s: float, found: Crashes) -> None:
    rng = random.Random(f"{run.point} {run.side} {run.seed}")
    run.tenant = f"{run.side}-{run.point}-{run.seed}-{rng.randrange(10**6)}"
    # sometimes two of the three requests fit, sometimes all, so that killed ones compete
    each_nano = 400_000 if run.side == "cloud" else 60_000
    run.limit_nano = rng.choice([2 * each_nano, 100 * each_nano])
    await ground.survivor.set_budget(
        f"tenant:{run.tenant}", limit_nano=run.limit_nano, period="day", zone="UTC",
        now_s=time.time(),
    )  # fmt: skip
    last = 15 if run.point == "mid_stream" else 2
    for nth in (rng.randint(1, last), 1):  # a refusal or a short answer may be before the n-th
        for _ in range(STARTS_MAX):
            run.gateway = await ground.gateways.start(
                ground.config(), point=run.point, nth=nth, lease_s=lease_s
            )
            if await ground.ready(run.gateway):
                break
            run.gateway.kill()  # somebody else took its port
        else:
            found.wrong.append(f"{run.tenant}: the gateway did not start")
            return
        assert run.gateway is not None
        await asyncio.gather(*(_ask(ground, run, rng.random()) for _ in range(REQUESTS)))
        if await run.gateway.gone(2.0):
            found.runs += 1
            found.killed_at[f"{run.point}/{run.side}"] += 1
            return
        run.gateway.kill()
        await run.gateway.gone(3.0)
        run.limit_nano += 100 * each_nano
        await ground.survivor.raise_budget(
            f"tenant:{run.tenant}", "day", add_nano=100 * each_nano, now_s=time.time()
        )
    found.missed += 1


async def _ask(ground: Ground, run: Run, draw: float) -> None:
    assert run.gateway is not None
    body = {
        "model": f"{run.side}/glm-4.6v",
        "messages": [{"role": "user", "content": "hello " * int(1 + 20 * draw)}],
        "stream": run.point == "mid_stream" or draw < 0.7,
        "max_tokens": 64,
    }
    await asyncio.sleep(0.01 * draw)
    url = f"{run.gateway.url}/v1/chat/completions"
    try:
        async with ground.http.post(url, json=body, headers=ground.headers(run.tenant)) as response:
            await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError):
        pass  # that is what happens to callers of a killed gateway


async def _audit(ground: Ground, runs: list[Run], found: Crashes) -> None:
    """Every sum that must agree, and every bill that must be covered."""
    survivor = ground.survivor
    rows = [row async for row in survivor.rows()]
    till = await survivor.till()
    found.drift += abs(till.posted_nano - sum(row.posted_nano for row in rows))
    twice = [hold for hold, n in Counter(row.hold_id for row in rows).items() if n > 1]
    if twice:
        found.drift += sum(row.posted_nano for row in rows if row.hold_id in twice)
        found.wrong.append(f"booked twice: {twice[:5]}")
    budgets = {b.scope: b for b in await survivor.budgets(time.time())}
    await _cloud_is_quiet(ground)
    bills = ground.bills()
    by_tenant: dict[str, list[Row]] = {}
    for row in rows:
        by_tenant.setdefault(row.tenant, []).append(row)
    for run in runs:
        mine = by_tenant.get(run.tenant, [])
        budget = budgets[f"tenant:{run.tenant}"]
        posted = sum(row.posted_nano for row in mine)
        found.overspend += max(0, budget.posted_nano + budget.held_nano - run.limit_nano)
        found.drift += abs(budget.posted_nano - posted)
        found.leaked += budget.held_nano
        found.rows.update(f"{row.state}/{row.outcome}" for row in mine)
        await survivor.delete_budget(budget.scope, "day", now_s=time.time())
    booked: Counter[str] = Counter()
    for row in rows:
        booked[row.request_id] += row.posted_nano
    for request_id, nano in bills.items():
        if nano > booked[request_id]:
            found.overspend += nano - booked[request_id]
            found.wrong.append(f"{request_id}: billed {nano}, booked {booked[request_id]}")
    await _forget(ground)


async def _cloud_is_quiet(ground: Ground) -> None:
    """The emulator notices within milliseconds that a killed caller has left."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if all(r.state != "open" for r in ground.cloud.books.received.rows):
            return
        await asyncio.sleep(0.02)


async def _forget(ground: Ground) -> None:
    """The books and the cloud begin anew for the next batch: sums stay short. Open leases stay."""
    with ground.server.client() as client:
        client.flushall()
    async with ground.http.post(
        ground.cloud.url.removesuffix("/api/v3") + "/emulator/reset"
    ) as response:
        await response.read()
    await ground.survivor.refresh(time.time())


if __name__ == "__main__":
    result = Crashes()
    asyncio.run(
        crash(int(sys.argv[1]), found=result, note=lambda text: print(text, file=sys.stderr))
    )
    print(result)
