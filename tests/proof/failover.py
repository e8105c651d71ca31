"""A6: the server of the books dies under load, and comes back, or a replica takes over.

restart   one primary with appendfsync always: nothing may be lost or spent twice
replica   asynchronous replication, the primary killed, the replica promoted: what the replica
          had not heard of is put back by the gateways that made it; what is lost all the same
          is at most what was in flight, and is reported
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

from gateway.ledger.ledger import Exhausted, Ledger, LedgerUnavailable
from tests.gateway.ledger.kit import ZONE, hold, row
from tests.gateway.redis_servers import VALKEY, RealServer
from tests.ports import free_port
from tests.proof.proxy import Mishaps, Proxy
from tests.proof.traffic import CLOUD, WORST_NANO, Found, _insist, _quiet

NO_MISHAPS = Mishaps(twice=0.0, lost=0.0, reply_lost=0.0, delayed=0.0, delay_s=0.0)
CHECKED_S = 10.0
AOF = ("--appendonly", "yes", "--appendfsync", "always")


class Load:
    """Clients that hold and settle without pause, and what they were told."""

    def __init__(self, ledgers: list[Ledger], clients: int, seed: int) -> None:
        self._ledgers = ledgers
        self._clients = clients
        self._seed = seed
        self._stop = False
        self.acknowledged: dict[str, int] = {}
        self.held = 0  # nano-CNY of holds that are open at this moment
        self.refused = 0

    async def run(self) -> None:
        await asyncio.gather(*(self._client(n) for n in range(self._clients)))

    def stop(self) -> None:
        self._stop = True

    async def _client(self, number: int) -> None:
        rng = random.Random(self._seed * 1_000_003 + number)
        ledger, n = self._ledgers[number % len(self._ledgers)], 0
        while not self._stop:
            n += 1
            hold_id, worst = f"f{number}-{n}.0", rng.randint(1, WORST_NANO)
            asked = hold(hold_id, worst, CLOUD, sent=False, now_s=time.time())
            try:
                if isinstance(await ledger.reserve(asked, time.time()), Exhausted):
                    self.refused += 1
                    await asyncio.sleep(0.01)
                    continue
            except LedgerUnavailable:
                await asyncio.sleep(0.02)
                continue  # given back by the ledger itself
            self.held += worst
            if not await self._sent(ledger, hold_id):
                await _insist(lambda: ledger.void(hold_id))  # noqa: B023
                self.held -= worst
                continue
            await asyncio.sleep(rng.random() * 0.02)
            cost = rng.randint(0, worst)
            await _insist(lambda: ledger.settle(hold_id, row(hold_id, cost)))  # noqa: B023
            self.held -= worst
            self.acknowledged[hold_id] = cost

    async def _sent(self, ledger: Ledger, hold_id: str) -> bool:
        try:
            return await ledger.mark_sent(hold_id)
        except LedgerUnavailable:
            return False


async def _tend(ledgers: list[Ledger], frozen_s: list[float]) -> None:
    """What each gateway does every second, only oftener; how long the cloud was frozen."""
    since: dict[int, float] = {}
    while True:
        for n, ledger in enumerate(ledgers):
            if ledger.frozen:
                since.setdefault(n, time.monotonic())
            with contextlib.suppress(LedgerUnavailable):
                await ledger.renew_lease(time.time())
                await ledger.refresh(time.time())
            if not ledger.frozen and n in since:
                frozen_s.append(time.monotonic() - since.pop(n))
        await asyncio.sleep(0.2)


async def failover(times: int, *, seed: int, found: Found, seconds: float = 2.0) -> None:
    """Each profile `times` times."""
    for n in range(times):
        await _one("restart", seed + n, found, seconds)
        await _one("replica", seed + n, found, seconds)


async def _one(profile: str, seed: int, found: Found, seconds: float) -> None:
    primary = RealServer(VALKEY, *(AOF if profile == "restart" else ()))
    spare = RealServer(VALKEY)
    limit_nano, frozen_s = 2_000 * WORST_NANO, []  # type: int, list[float]
    try:
        if profile == "replica":
            port = free_port()
            with primary.client() as client, spare.client() as replica:
                client.config_set("port", port)
                client.config_set("repl-diskless-sync-delay", 0)
                replica.replicaof("127.0.0.1", port)
                for _ in range(200):
                    if replica.info("replication").get("master_link_status") == "up":
                        break
                    await asyncio.sleep(0.05)
                else:
                    found.wrong.append("replica: it never caught up, so nothing was shown")
        async with Proxy(str(primary.socket), NO_MISHAPS, seed) as proxy:
            ledgers = [
                await Ledger.connect(proxy.url, instance=f"gw-{n}", call_timeout_s=0.5)
                for n in range(2)
            ]
            await ledgers[0].set_budget(
                CLOUD, limit_nano=limit_nano, period="total", zone=ZONE, now_s=time.time()
            )
            before = {ledger._trusted for ledger in ledgers}
            load = Load(ledgers, 40, seed)
            loop = asyncio.get_running_loop()
            tending = loop.create_task(_tend(ledgers, frozen_s))
            running = loop.create_task(load.run())
            await asyncio.sleep(seconds / 2)
            in_flight = load.held
            primary.kill()
            if profile == "restart":
                primary.start()
            else:
                with spare.client() as replica:
                    replica.replicaof("NO", "ONE")
                proxy.switch(str(spare.socket))
            await asyncio.sleep(seconds / 2 + 1.0)
            load.stop()
            await running
            await _settled(ledgers)
            tending.cancel()
            if before & {ledger._trusted for ledger in ledgers}:
                found.wrong.append(f"{profile}: the other server was not noticed")
            await _judge(profile, ledgers, load, limit_nano, in_flight, found)
            for ledger in ledgers:
                await ledger.close()
        if max(frozen_s, default=0.0) > CHECKED_S:
            found.wrong.append(f"{profile}: frozen for {frozen_s} s")
        told = found.figures.setdefault(f"{profile}_frozen_s_max", 0.0)
        found.figures[f"{profile}_frozen_s_max"] = round(max([told, *frozen_s]), 2)
    finally:
        primary.close()
        spare.close()


async def _settled(ledgers: list[Ledger]) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with contextlib.suppress(LedgerUnavailable):
            for ledger in ledgers:
                await ledger.refresh(time.time())
                await ledger.sweep(time.time())
            checked = not any(ledger.frozen for ledger in ledgers)
            if checked and not (await ledgers[0].till()).held_nano:
                return
        await asyncio.sleep(0.1)


async def _judge(
    profile: str,
    ledgers: list[Ledger],
    load: Load,
    limit_nano: int,
    in_flight_nano: int,
    found: Found,
) -> None:
    await _quiet(ledgers[0], found)
    booked = {r.hold_id: r.posted_nano async for r in ledgers[0].rows(batch=2_000)}
    missing = [h for h, cost in load.acknowledged.items() if booked.get(h) != cost]
    lost_nano = sum(load.acknowledged[h] for h in missing)
    posted = sum(booked.values())
    over = max(0, posted + lost_nano - limit_nano)
    allowed = 0 if profile == "restart" else in_flight_nano
    found.overspend += max(0, over - allowed)
    if lost_nano > allowed:
        found.wrong.append(f"{profile}: {len(missing)} acknowledged settlements lost, {lost_nano}")
    if lost_nano and not any(ledger.lost_nano for ledger in ledgers):
        found.wrong.append(f"{profile}: {lost_nano} lost and not reported")
    found.operations += 3 * len(load.acknowledged)
    figures = found.figures
    for name, value in (("lost_nano", lost_nano), ("over_nano", over), ("settled", len(booked))):
        figures[f"{profile}_{name}"] = figures.get(f"{profile}_{name}", 0) + value
