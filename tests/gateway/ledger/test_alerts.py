"""Alerts over a real Redis to a real receiver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web

from backends.egress import Egress
from gateway.ledger import alerts
from gateway.ledger.alerts import Alerts, signature
from gateway.ledger.ledger import Ledger
from gateway.tasks import spawn
from policies.budget import BudgetOptions
from tests.gateway.ledger.kit import NOW_S, books, hold, row
from tests.gateway.rig import until
from tests.ports import free_port

SECRET = "a webhook secret"
TENANT = "tenant:acme"


class Receiver:
    """`refuse`: how many posts are answered 503 first."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self.refuse = 0
        self.got: list[dict[str, Any]] = []
        self.forged = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/hook", self._post)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.read()
        fields = dict(
            part.split("=", 1) for part in request.headers["x-yuzui-signature"].split(",")
        )
        self.forged += fields["v1"] != signature(SECRET.encode(), fields["t"], body)
        if self.refuse:
            self.refuse -= 1
            return web.Response(status=503)
        self.got.append(msgspec.json.decode(body))
        return web.Response()


@asynccontextmanager
async def telling(ledgers: list[Ledger], url: str | None) -> AsyncIterator[list[Alerts]]:
    tasks: list[asyncio.Task[None]] = []
    egress = Egress(allowed=[url] if url else [])
    yield [
        Alerts(
            ledger, egress, webhook_url=url, webhook_secret=SECRET,
            later=lambda coro: tasks.append(spawn(coro, name="alert")),
        )
        for ledger in ledgers
    ]  # fmt: skip
    await asyncio.gather(*tasks)
    await egress.close()


async def spend(ledger: Ledger, hold_id: str, nano: int) -> None:
    await ledger.reserve(hold(hold_id, nano), NOW_S)
    await ledger.settle(hold_id, row(hold_id, nano))


async def test_each_crossing_is_told_once_by_one_of_many_and_anew_after_a_raise(
    redis_url: str,
) -> None:
    receiver = Receiver()
    async with AsyncExitStack() as stack:
        ledgers = [await stack.enter_async_context(books(redis_url, f"gw-{n}")) for n in range(4)]
        await stack.enter_async_context(receiver.listening())
        tellers = await stack.enter_async_context(telling(ledgers, receiver.url))

        async def look() -> None:
            for _ in range(2):
                await asyncio.gather(*(ledger.refresh(NOW_S) for ledger in ledgers))
                await asyncio.gather(*(teller.look(NOW_S) for teller in tellers))
                await asyncio.sleep(0.05)

        await ledgers[0].set_budget(
            TENANT, limit_nano=100, period="total", zone="UTC", now_s=NOW_S,
            options=BudgetOptions(alerts=(50, 100)),
        )  # fmt: skip
        await spend(ledgers[1], "a.0", 49)
        await look()
        assert sum(sum(teller.counts.values()) for teller in tellers) == 0
        await spend(ledgers[2], "b.0", 1)
        await look()
        await until(lambda: len(receiver.got) == 1)
        await spend(ledgers[2], "c.0", 50)
        await look()
        await until(lambda: len(receiver.got) == 2)
        assert [each["percent"] for each in receiver.got] == [50, 100]
        await ledgers[0].raise_budget(TENANT, "total", add_nano=100, now_s=NOW_S)
        await look()
        await until(lambda: len(receiver.got) == 3)
        await look()
        assert [each["percent"] for each in receiver.got] == [50, 100, 50]
        assert receiver.forged == 0
        assert sum(teller.counts["threshold"] for teller in tellers) == 3
        assert len({each["id"] for each in receiver.got}) == 3


async def test_a_receiver_that_is_away_is_asked_again_and_a_lost_claim_is_taken_over(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "BACKOFF_S", 0.01)
    monkeypatch.setattr(alerts, "CLAIM_S", 0.3)
    receiver = Receiver()
    receiver.refuse = 2
    async with books(redis_url, "a") as one, books(redis_url, "b") as other:
        await one.set_budget(TENANT, limit_nano=100, period="total", zone="UTC", now_s=NOW_S)
        await spend(one, "a.0", 80)
        async with receiver.listening(), telling([one], receiver.url) as (teller,):
            await one.refresh(NOW_S)
            await teller.look(NOW_S)
            await until(lambda: len(receiver.got) == 1)  # the third try
        await spend(one, "b.0", 20)
        async with telling([one], receiver.url) as (teller,):  # nobody listens: all tries fail
            await one.refresh(NOW_S)
            await teller.look(NOW_S)
        assert teller.counts["webhook_failed"] == 1
        await asyncio.sleep(0.4)  # its claim runs out
        async with receiver.listening(), telling([other], receiver.url) as (teller,):
            await other.refresh(NOW_S)
            await teller.look(NOW_S)
            await until(lambda: len(receiver.got) == 2)
    assert [each["percent"] for each in receiver.got] == [80, 100]


async def test_without_a_webhook_the_log_and_the_counter_tell(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await ledger.set_budget(TENANT, limit_nano=0, period="day", zone="UTC", now_s=NOW_S)
        async with telling([ledger], None) as (teller,):
            await teller.look(NOW_S)
        async with telling([ledger], None) as (again,):  # a process that starts later
            await again.look(NOW_S)
    assert (teller.counts["threshold"], again.counts["threshold"]) == (2, 0)


async def test_a_notice_that_is_about_no_budget_is_told_once_by_one_of_many(redis_url: str) -> None:
    receiver = Receiver()
    async with AsyncExitStack() as stack:
        ledgers = [await stack.enter_async_context(books(redis_url, f"gw-{n}")) for n in range(3)]
        await stack.enter_async_context(receiver.listening())
        tellers = await stack.enter_async_context(telling(ledgers, receiver.url))
        for _ in range(2):
            told = [t.notice("drift|cloud:m", "drift", "too many", counted=9) for t in tellers]
            await asyncio.gather(*told)
        assert [(got["kind"], got["text"], got["counted"]) for got in receiver.got] == [
            ("drift", "too many", 9)
        ]
        await tellers[1].notice("drift|cloud:other", "drift", "too few")
        assert len({got["id"] for got in receiver.got}) == 2
        assert sum(teller.counts["drift"] for teller in tellers) == 2
        assert receiver.forged == 0
