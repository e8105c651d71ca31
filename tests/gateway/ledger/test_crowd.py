"""Many clients at once, and a Redis that is killed, stopped or slow under them."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from gateway.ledger.ledger import Exhausted, Ledger, LedgerUnavailable, Reserved
from tests.gateway.ledger.kit import NOW_S, ZONE, books, hold, row, rows_of, settled_up
from tests.gateway.redis_servers import RealServer

PATIENCE_S = 30.0
TENANT, CLOUD = "tenant:acme", "backend:cloud"


async def test_two_hundred_clients_on_a_budget_worth_two_fifths_of_the_demand(
    redis_url: str,
) -> None:
    """Every reply that changes a budget carries its figures, so looking at each reply is looking
    after each operation."""
    clients, each, worst_nano = 200, 8, 1000
    limit_nano = clients * each * worst_nano * 2 // 5
    over: list[int] = []
    refused = 0

    async def client(ledger: Ledger, number: int) -> None:
        nonlocal refused
        rng = random.Random(number)
        for n in range(each):
            hold_id = f"c{number}-{n}.0"
            found = await ledger.reserve(hold(hold_id, worst_nano, TENANT, CLOUD), NOW_S)
            look(ledger)
            if isinstance(found, Exhausted):
                refused += 1
                continue
            await asyncio.sleep(0)
            how = rng.random()
            if how < 0.1:
                await ledger.void(hold_id)
            elif how < 0.2:  # over the bound: clamped
                await ledger.settle(hold_id, row(hold_id, 5 * worst_nano))
            else:
                await ledger.settle(hold_id, row(hold_id, worst_nano))
            look(ledger)

    def look(ledger: Ledger) -> None:
        for views in ledger.views().values():
            over.extend(-view.left_nano for view in views if view.left_nano < 0)

    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(books(redis_url, f"gw-{n}")) for n in range(3)]
        for scope, period in ((CLOUD, "day"), (CLOUD, "month"), (TENANT, "total")):
            limit = limit_nano if scope == CLOUD else 10 * limit_nano
            await gateways[0].set_budget(
                scope, limit_nano=limit, period=period, zone=ZONE, now_s=NOW_S
            )
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(client(gateways[number % 3], number))
        assert over == []
        assert refused > clients  # the budget was really in the way
        till = await settled_up(gateways[0])
        assert 0.97 * limit_nano <= till.posted_nano <= limit_nano
        for budget in await gateways[1].budgets(NOW_S):
            assert (budget.posted_nano, budget.held_nano) == (till.posted_nano, 0)


async def test_after_sigkill_of_the_server_everything_acknowledged_is_there(
    own_server: Callable[..., RealServer],
) -> None:
    server = own_server("--appendonly", "yes", "--appendfsync", "always")
    posted: dict[str, int] = {}
    unsettled: list[str] = []
    async with books(server.url, call_timeout_s=2.0) as ledger:
        await ledger.set_budget(TENANT, limit_nano=10**9, period="day", zone=ZONE, now_s=NOW_S)

        async def client(number: int) -> None:
            for n in range(100):
                hold_id = f"k{number}-{n}.0"
                try:
                    await ledger.reserve(hold(hold_id, 100), NOW_S)
                except LedgerUnavailable:
                    return
                try:
                    await ledger.settle(hold_id, row(hold_id, 60 + number))
                    posted[hold_id] = 60 + number
                except LedgerUnavailable:
                    unsettled.append(hold_id)
                    return

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(client(number))
            while len(posted) < 200:  # noqa: ASYNC110 - in mid-traffic, however fast that is
                await asyncio.sleep(0)
            server.kill()
        assert len(posted) < 2000, "the server was killed too late"
        server.start()
        await until_back(ledger)
        for hold_id in unsettled:  # posted or not, the repetition tells
            await ledger.settle(hold_id, row(hold_id, 61))
        await ledger.refresh(NOW_S)  # gives back what was reserved without an answer
        booked = {found.hold_id: found.posted_nano for found in await rows_of(ledger)}
        assert posted.items() <= booked.items()
        assert booked.keys() - posted.keys() <= set(unsettled)
        till = await settled_up(ledger)
        (budget,) = await ledger.budgets(NOW_S)
        assert (budget.posted_nano, budget.held_nano) == (till.posted_nano, 0)


async def until_back(ledger: Ledger) -> None:
    """The link comes back within two seconds of the server, plus what a busy machine adds."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            await ledger.ping()
            await ledger.till()
            return
        except LedgerUnavailable:
            assert time.monotonic() < until
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(("call_timeout_s", "patience_s"), [(0.4, None), (PATIENCE_S, 0.05)])
async def test_a_reservation_without_an_answer_is_given_back(
    own_server: Callable[..., RealServer], call_timeout_s: float, patience_s: float | None
) -> None:
    """The server is stopped: the call may or may not take effect. It does, later, and is voided."""
    server = own_server()
    async with books(server.url, call_timeout_s=call_timeout_s) as ledger:
        await ledger.set_budget(TENANT, limit_nano=100, period="day", zone=ZONE, now_s=NOW_S)
        server.signal(signal.SIGSTOP)
        with pytest.raises(LedgerUnavailable) as caught:
            async with asyncio.timeout(PATIENCE_S / 2):
                await ledger.reserve(hold("r.0", 80), NOW_S, patience_s=patience_s)
        assert caught.value.ambiguous
        if patience_s is None:
            with pytest.raises(LedgerUnavailable):
                await ledger.void("v.0")
        server.signal(signal.SIGCONT)
        await until_back(ledger)
        await ledger.refresh(NOW_S)
        assert isinstance(await ledger.reserve(hold("s.0", 100), NOW_S), Reserved)
        assert (await ledger.till()).held_nano == 100


async def test_a_reservation_whose_caller_is_cancelled_is_given_back(valkey_url: str) -> None:
    async with books(valkey_url) as ledger:
        await ledger.set_budget(TENANT, limit_nano=100, period="day", zone=ZONE, now_s=NOW_S)
        for n in range(20):
            asking = asyncio.ensure_future(ledger.reserve(hold(f"r{n}.0", 80), NOW_S))  # noqa: TID251
            await asyncio.sleep(0)  # written, not answered
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        assert isinstance(await ledger.reserve(hold("s.0", 100), NOW_S), Reserved)
        assert (await ledger.till()).held_nano == 100


async def test_when_redis_is_down_nothing_is_held_and_the_caller_knows_at_once(
    own_server: Callable[..., RealServer],
) -> None:
    server = own_server()
    async with books(server.url) as ledger:
        server.kill()
        async with asyncio.timeout(PATIENCE_S):
            while ledger._hot.up or ledger._control.up:  # noqa: ASYNC110 - the socket has no event
                await asyncio.sleep(0.01)
        for attempt in (
            ledger.reserve(hold("r.0", 1), NOW_S),
            ledger.settle("r.0", row("r.0", 1)),
            ledger.mark_sent("r.0"),
            ledger.sweep(NOW_S),
            ledger.refresh(NOW_S),
            ledger.till(),
            ledger.ping(),
        ):
            with pytest.raises(LedgerUnavailable) as caught:
                attempt.send(None)  # in its first step: whoever waits for anything gives a future
            assert not caught.value.ambiguous
