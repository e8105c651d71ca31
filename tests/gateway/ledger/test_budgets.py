"""Definitions that change under a reservation, and periods that end under a hold."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime

import pytest
import redis

from gateway.ledger.budgets import NoSuchBudget
from gateway.ledger.ledger import Exhausted, Ledger, Reserved, Till
from policies.budget import BudgetOptions
from tests.gateway.ledger.kit import NOW_S, ZONE, books, hold, row, settled_up

TENANT = "tenant:acme"
DAY_S = 86_400.0


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def limit(
    ledger: Ledger, limit_nano: int, *, period: str = "day", zone: str = ZONE, now_s: float = NOW_S
) -> None:
    await ledger.set_budget(TENANT, limit_nano=limit_nano, period=period, zone=zone, now_s=now_s)


async def test_a_budget_binds_every_gateway_the_moment_it_is_set(redis_url: str) -> None:
    """Without a refresh: the reservation itself finds out that its definitions are stale."""
    async with books(redis_url, "admin") as admin, books(redis_url, "busy") as busy:
        assert isinstance(await busy.reserve(hold("a.0", 500), NOW_S), Reserved)
        await limit(admin, 100)  # counts from now on: the 500 are not in it
        assert isinstance(await busy.reserve(hold("b.0", 101), NOW_S), Exhausted)
        assert isinstance(await busy.reserve(hold("c.0", 100), NOW_S), Reserved)
        await limit(admin, 300)  # raised: the count goes on
        assert isinstance(await busy.reserve(hold("d.0", 201), NOW_S), Exhausted)
        assert isinstance(await busy.reserve(hold("e.0", 200), NOW_S), Reserved)
        await limit(admin, 50)  # lowered below what is held: nothing more, not even one
        assert isinstance(await busy.reserve(hold("f.0", 1), NOW_S), Exhausted)
        assert await admin.delete_budget(TENANT, "day", now_s=NOW_S)
        assert not await admin.delete_budget(TENANT, "day", now_s=NOW_S)
        assert isinstance(await busy.reserve(hold("g.0", 10**9), NOW_S), Reserved)
        assert await busy.budgets(NOW_S) == []
        for name in "acdeg":
            if name != "d":
                await busy.settle(f"{name}.0", row(f"{name}.0", 1))
        assert await settled_up(busy) == Till(posted_nano=4, held_nano=0)


async def test_a_budget_made_again_begins_at_nothing(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger, 100)
        await ledger.reserve(hold("a.0", 100), NOW_S)
        await ledger.settle("a.0", row("a.0", 90))
        await ledger.delete_budget(TENANT, "day", now_s=NOW_S)
        await limit(ledger, 100)
        assert [b.posted_nano for b in await ledger.budgets(NOW_S)] == [0]
        assert isinstance(await ledger.reserve(hold("b.0", 100), NOW_S), Reserved)


async def test_a_settlement_after_midnight_is_posted_to_the_day_it_was_reserved_in(
    redis_url: str,
) -> None:
    before_s, after_s = at("2026-11-22T23:59:59.9+08:00"), at("2026-11-23T00:00:00+08:00")
    async with books(redis_url) as ledger:
        await limit(ledger, 1000, now_s=before_s)
        await limit(ledger, 1500, period="month", now_s=before_s)
        for n in range(10):
            await ledger.reserve(hold(f"r{n}.0", 100, now_s=before_s), before_s)
        assert isinstance(await ledger.reserve(hold("x.0", 1, now_s=before_s), before_s), Exhausted)
        # the new day has a budget of its own; the month is the same
        fresh = await ledger.reserve(hold("y.0", 500, now_s=after_s), after_s)
        assert isinstance(fresh, Reserved)
        assert [(b.held_nano, b.resets_at_s) for b in fresh.budgets] == [
            (500, at("2026-11-24T00:00+08:00")), (1500, at("2026-12-01T00:00+08:00")),
        ]  # fmt: skip
        for n in range(10):
            await ledger.settle(f"r{n}.0", row(f"r{n}.0", 70))
        # what yesterday's holds report is not taken for today's figures
        assert ledger.views()[TENANT][0].posted_nano == 0
        assert ledger.views()[TENANT][0].held_nano == 500
        await ledger.settle("y.0", row("y.0", 5))
        assert [view.posted_nano for view in ledger.views()[TENANT]] == [5, 705]
        day, month = sorted(await ledger.budgets(after_s), key=lambda found: found.period)
        assert (day.posted_nano, day.held_nano) == (5, 0)
        assert (month.posted_nano, month.held_nano) == (705, 0)
        (yesterday, _) = sorted(await ledger.budgets(before_s), key=lambda found: found.period)
        assert (yesterday.posted_nano, yesterday.held_nano) == (700, 0)
        assert (await settled_up(ledger)).posted_nano == 705


async def test_each_budget_follows_its_own_clock(redis_url: str) -> None:
    """The night in which Berlin's clock goes back: its day has 25 hours, Shanghai's 24."""
    noon_s = at("2026-10-25T12:00:00+01:00")
    async with books(redis_url) as ledger:
        await limit(ledger, 100, zone="Europe/Berlin", now_s=noon_s)
        await ledger.set_budget(
            "org:o", limit_nano=100, period="day", zone="Asia/Shanghai", now_s=noon_s
        )
        resets = {b.scope: b.resets_at_s for b in await ledger.budgets(noon_s)}
        assert resets == {
            TENANT: at("2026-10-26T00:00:00+01:00"),
            "org:o": at("2026-10-26T00:00:00+08:00"),
        }
        await ledger.reserve(hold("a.0", 100, TENANT, "org:o", now_s=noon_s), noon_s)
        evening_s = at("2026-10-25T23:30:00+01:00")  # Shanghai has its next day, Berlin has not
        found = await ledger.reserve(hold("b.0", 1, TENANT, "org:o", now_s=evening_s), evening_s)
        assert isinstance(found, Exhausted)
        assert found.budget.scope == TENANT
        await ledger.reserve(hold("c.0", 100, "org:o", now_s=evening_s), evening_s)
        assert {b.scope: b.held_nano for b in await ledger.budgets(evening_s)} == {
            TENANT: 100, "org:o": 100,
        }  # fmt: skip


async def test_another_zone_begins_another_count_but_a_total_has_no_zone(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger, 100)
        await limit(ledger, 100, period="total")
        await ledger.reserve(hold("a.0", 60), NOW_S)
        await limit(ledger, 100, zone="Europe/Berlin")
        await limit(ledger, 100, zone="Europe/Berlin", period="total")
        assert {b.period: (b.zone, b.held_nano) for b in await ledger.budgets(NOW_S)} == {
            "day": ("Europe/Berlin", 0), "total": ("UTC", 60),
        }  # fmt: skip
        await ledger.void("a.0")
        assert [b.held_nano for b in await ledger.budgets(NOW_S)] == [0, 0]


async def test_the_counters_of_periods_long_over_are_dropped(redis_url: str) -> None:
    async with books(redis_url) as ledger, redis.asyncio.from_url(redis_url) as client:
        await limit(ledger, 10**6)
        for day in range(20):
            now_s = NOW_S + day * DAY_S
            await ledger.reserve(hold(f"d{day}.0", 5, now_s=now_s), now_s)
            if day != 3:
                await ledger.settle(f"d{day}.0", row(f"d{day}.0", 5))
            await ledger.renew_lease(now_s)
        counters = "yuzui:{main}:counters"
        assert await client.hlen(counters) == 2 * 20
        await ledger.sweep(NOW_S + 20 * DAY_S)  # resolves d3 as well
        assert await client.hlen(counters) == 2 * 7  # the days that ended within the last seven
        assert (await settled_up(ledger)).posted_nano == 20 * 5


async def test_a_counter_is_not_dropped_under_an_open_hold(redis_url: str) -> None:
    """Nobody swept for a month; then in steps of one hold, so that some are open in between."""
    async with books(redis_url) as ledger, redis.asyncio.from_url(redis_url) as client:
        await limit(ledger, 100)
        for n in range(4):
            await ledger.reserve(hold(f"r{n}.0", 5, sent=n % 2 == 0), NOW_S)
        swept = await ledger.sweep(NOW_S + 30 * DAY_S, batch=1)
        assert (swept.voided, swept.expired) == (2, 2)
        counters = "yuzui:{main}:counters"
        assert sorted(await client.hvals(counters)) == [b"0", b"10"]
        await ledger.sweep(NOW_S + 30 * DAY_S + 3601)
        assert await client.hlen(counters) == 0
        assert (await settled_up(ledger)).posted_nano == 10


async def test_a_gateway_whose_clock_is_wrong_draws_on_the_servers_day(redis_url: str) -> None:
    async with books(redis_url, "right", server_clock=True) as right:
        async with books(redis_url, "wrong", server_clock=True) as wrong:
            now_s = time.time()
            ahead_s = now_s + 3 * DAY_S
            await limit(right, 100, now_s=now_s)
            await wrong.refresh(ahead_s)  # learns how far off it is
            await right.reserve(hold("a.0", 60, now_s=now_s), now_s)
            asked = hold("b.0", 60, now_s=ahead_s)
            assert isinstance(await wrong.reserve(asked, ahead_s), Exhausted)
            assert (await wrong.sweep(ahead_s)).expired == 0  # and expires nobody's holds
            await right.void("a.0")


async def test_two_who_raise_at_once_both_count(redis_url: str) -> None:
    async with books(redis_url, "a") as one, books(redis_url, "b") as other:
        await limit(one, 100)
        await asyncio.gather(
            *(
                each.raise_budget(TENANT, "day", add_nano=10 + n, now_s=NOW_S, who=f"w{n}")
                for n, each in enumerate((one, other))
            )
        )
        (found,) = await one.budgets(NOW_S)
        assert found.limit_nano == 121
        trail = await other.audit()
        assert (trail[0].act, trail[0].who) == ("set", "unknown")
        assert sorted(entry.who for entry in trail[1:]) == ["w0", "w1"]
        last = trail[-1]
        assert last.before is not None
        assert last.after is not None
        assert last.after.limit_nano == 121 == last.before.limit_nano + int(last.who[1:]) + 10


async def test_a_frozen_budget_refuses_everything_and_lets_what_runs_end(redis_url: str) -> None:
    async with books(redis_url, "admin") as admin, books(redis_url, "busy") as busy:
        await limit(admin, 100)
        assert isinstance(await busy.reserve(hold("a.0", 10), NOW_S), Reserved)
        await admin.freeze_budget(TENANT, "day", frozen=True, now_s=NOW_S, who="ada")
        for amount in (0, 1):
            refused = await busy.reserve(hold(f"b{amount}.0", amount), NOW_S)
            assert isinstance(refused, Exhausted)
            assert refused.budget.frozen
        await limit(admin, 200)  # a frozen budget that is changed stays frozen
        assert isinstance(await busy.reserve(hold("c.0", 1), NOW_S), Exhausted)
        assert (await busy.settle("a.0", row("a.0", 7))).posted_nano == 7
        await admin.freeze_budget(TENANT, "day", frozen=False, now_s=NOW_S, who="ada")
        assert isinstance(await busy.reserve(hold("d.0", 193), NOW_S), Reserved)
        assert [entry.act for entry in await admin.audit(scope=TENANT)] == [
            "set", "freeze", "set", "unfreeze",
        ]  # fmt: skip
        for act in (
            admin.freeze_budget(TENANT, "week", frozen=True, now_s=NOW_S),
            admin.raise_budget("tenant:none", "day", add_nano=1, now_s=NOW_S),
            admin.reset_budget(TENANT, "total", now_s=NOW_S),
        ):
            with pytest.raises(NoSuchBudget, match="there is no budget"):
                await act


async def test_a_soft_budget_counts_and_never_refuses(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await ledger.set_budget(
            TENANT, limit_nano=10, period="day", zone=ZONE, now_s=NOW_S,
            options=BudgetOptions(hard=False),
        )  # fmt: skip
        assert isinstance(await ledger.reserve(hold("a.0", 1000), NOW_S), Reserved)
        await ledger.settle("a.0", row("a.0", 900))
        (found,) = await ledger.budgets(NOW_S)
        assert (found.posted_nano, found.options.hard) == (900, False)
        assert not ledger.views()[TENANT][0].hard


async def test_a_reset_counts_from_nothing_and_the_trail_keeps_what_was(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger, 100)
        await ledger.reserve(hold("a.0", 60), NOW_S)
        await ledger.settle("a.0", row("a.0", 50))
        await ledger.reserve(hold("b.0", 30), NOW_S)
        await ledger.reset_budget(TENANT, "day", now_s=NOW_S, who="ada")
        (found,) = await ledger.budgets(NOW_S)
        assert (found.posted_nano, found.held_nano) == (0, 0)
        await ledger.settle("b.0", row("b.0", 20))  # into the old count
        assert [b.posted_nano for b in await ledger.budgets(NOW_S)] == [0]
        assert await settled_up(ledger) == Till(posted_nano=70, held_nano=0)
        last = (await ledger.audit())[-1]
        assert (last.act, last.who, last.posted_nano, last.held_nano) == ("reset", "ada", 50, 30)
        await ledger.sweep(NOW_S + 8 * DAY_S)
        with redis.Redis.from_url(redis_url, decode_responses=True) as client:
            counters = client.hgetall("yuzui:{main}:counters")
        assert not any("|1|" in name for name in counters)  # the old count is dropped in the end


async def test_weeks_that_begin_on_a_sunday_and_a_first_day_that_moves(redis_url: str) -> None:
    saturday_s, sunday_s = at("2026-11-21T23:59:59+08:00"), at("2026-11-22T00:00:00+08:00")
    async with books(redis_url) as ledger:

        async def week(start_day: int, now_s: float) -> None:
            await ledger.set_budget(
                TENANT, limit_nano=100, period="week", zone=ZONE, start_day=start_day, now_s=now_s
            )

        await week(7, saturday_s)
        assert isinstance(
            await ledger.reserve(hold("a.0", 100, now_s=saturday_s), saturday_s), Reserved
        )
        assert isinstance(
            await ledger.reserve(hold("b.0", 1, now_s=saturday_s), saturday_s), Exhausted
        )
        assert isinstance(
            await ledger.reserve(hold("c.0", 100, now_s=sunday_s), sunday_s), Reserved
        )
        await week(7, sunday_s)  # nothing changes
        assert [b.held_nano for b in await ledger.budgets(sunday_s)] == [100]
        await week(1, sunday_s)  # another week, another count
        assert [b.held_nano for b in await ledger.budgets(sunday_s)] == [0]
        with pytest.raises(ValueError, match="starts on day"):
            await week(8, sunday_s)


async def test_books_of_before_there_were_options_are_read(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        base = "yuzui:{main}:"
        client.hset(base + "defs", f"day|{TENANT}", "1\n1\nAsia/Shanghai\n0")
        client.hset(base + "limits", mapping={f"day|{TENANT}": "100", "epoch": "x", "serial": "1"})
    async with books(redis_url) as ledger:
        assert isinstance(await ledger.reserve(hold("a.0", 60), NOW_S), Reserved)
        await limit(ledger, 200)
        (found,) = await ledger.budgets(NOW_S)
        assert (found.limit_nano, found.held_nano, found.start_day) == (200, 60, 1)
