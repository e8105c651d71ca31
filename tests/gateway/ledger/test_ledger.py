"""The contract of the ledger, on a real Valkey 8 and a real Redis 6.2."""

from __future__ import annotations

import time

import pytest
import redis

from gateway.ledger.ledger import (
    Exhausted,
    HoldClosed,
    HoldRequest,
    Ledger,
    LedgerFault,
    Reserved,
    Settled,
    Till,
)
from gateway.ledger.rows import Outcome, RowState
from policies.budget import HoldState
from policies.types import MONEY_NANO_MAX, Site
from tests.gateway.ledger.kit import NOW_S, ZONE, books, hold, row, rows_of, settled_up

TENANT, CLOUD = "tenant:acme", "backend:cloud"


async def limit(ledger: Ledger, scope: str, limit_nano: int, period: str = "day") -> None:
    await ledger.set_budget(scope, limit_nano=limit_nano, period=period, zone=ZONE, now_s=NOW_S)


async def figures(ledger: Ledger) -> dict[str, tuple[int, int]]:
    """Posted and held by scope and period, from Redis."""
    return {
        f"{found.scope} {found.period}": (found.posted_nano, found.held_nano)
        for found in await ledger.budgets(NOW_S)
    }


async def test_held_then_posted_with_a_row(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger, TENANT, 1000)
        reserved = await ledger.reserve(hold("r.0", 600, TENANT, "org:none"), NOW_S)
        assert isinstance(reserved, Reserved)
        assert [(b.scope, b.posted_nano, b.held_nano, b.left_nano) for b in reserved.budgets] == [
            (TENANT, 0, 600, 400)
        ]
        assert await ledger.till() == Till(posted_nano=0, held_nano=600)

        final = row("r.0", 250, prompt_tokens=7, flags=("a",), site=Site.LOCAL, cloud_nano=900)
        assert await ledger.settle("r.0", final) == Settled(posted_nano=250, already=False)
        (booked,) = await rows_of(ledger)
        assert (booked.posted_nano, booked.held_nano, booked.claimed_nano) == (250, 600, None)
        assert (booked.prompt_tokens, booked.flags, booked.saved_nano) == (7, ("a",), 650)
        assert (booked.state, booked.final, booked.hold_id) == (RowState.FINAL, True, "r.0")
        assert ledger.views()[TENANT][0].posted_nano == 250
        assert ledger.views()[TENANT][0].held_nano == 0
        assert await settled_up(ledger) == Till(posted_nano=250, held_nano=0)


async def test_all_budgets_or_none(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger, TENANT, 1000)
        await limit(ledger, TENANT, 5000, "month")
        await limit(ledger, CLOUD, 700, "total")
        assert isinstance(await ledger.reserve(hold("a.0", 700, TENANT, CLOUD), NOW_S), Reserved)
        refused = await ledger.reserve(hold("b.0", 1, TENANT, CLOUD, CLOUD), NOW_S)
        assert isinstance(refused, Exhausted)
        assert (refused.budget.scope, refused.period) == (CLOUD, "total")
        assert (refused.budget.limit_nano, refused.budget.held_nano) == (700, 700)
        assert refused.budget.resets_at_s is None
        expected = {f"{TENANT} day": (0, 700), f"{TENANT} month": (0, 700)}
        assert await figures(ledger) == {**expected, f"{CLOUD} total": (0, 700)}
        # to the last unit: 300 are left for the day
        assert isinstance(await ledger.reserve(hold("c.0", 301), NOW_S), Exhausted)
        assert isinstance(await ledger.reserve(hold("d.0", 300), NOW_S), Reserved)


async def test_every_operation_may_be_repeated(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger, TENANT, 1000)
        first = await ledger.reserve(hold("r.0", 600, sent=False), NOW_S)
        assert await ledger.reserve(hold("r.0", 600, sent=False), NOW_S) == first
        assert [await ledger.mark_sent("r.0") for _ in "12"] == [True, True]
        assert await ledger.settle("r.0", row("r.0", 100)) == Settled(
            posted_nano=100, already=False
        )
        again = Settled(posted_nano=100, already=True)
        assert await ledger.settle("r.0", row("r.0", 999)) == again
        await ledger.void("r.0")
        assert not await ledger.mark_sent("r.0")
        assert await figures(ledger) == {f"{TENANT} day": (100, 0)}
        assert len(await rows_of(ledger)) == 1

        await ledger.reserve(hold("v.0", 600), NOW_S)
        await ledger.void("v.0")
        await ledger.void("v.0")
        voided = Settled(posted_nano=0, already=True, state=HoldState.VOIDED)
        assert await ledger.settle("v.0", row("v.0", 5)) == voided
        with pytest.raises(HoldClosed, match="voided already"):
            await ledger.reserve(hold("v.0", 600), NOW_S)
        assert await settled_up(ledger) == Till(posted_nano=100, held_nano=0)


async def test_a_reservation_that_comes_after_its_void_is_refused(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await ledger.void("late.0")
        with pytest.raises(HoldClosed):
            await ledger.reserve(hold("late.0", 5), NOW_S)
        assert not await ledger.mark_sent("late.0")
        assert await settled_up(ledger) == Till(posted_nano=0, held_nano=0)


async def test_what_was_never_reserved_posts_nothing(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        nothing = Settled(posted_nano=0, already=True, state=None)
        assert await ledger.settle("ghost.0", row("ghost.0", 5)) == nothing
        assert not await ledger.mark_sent("ghost.0")
        assert await rows_of(ledger) == []


async def test_a_cost_above_the_hold_is_clamped_and_kept(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger, TENANT, 100)
        await ledger.reserve(hold("r.0", 100), NOW_S)
        assert (await ledger.settle("r.0", row("r.0", 2**70))).posted_nano == 100
        (booked,) = await rows_of(ledger)
        assert (booked.posted_nano, booked.claimed_nano) == (100, MONEY_NANO_MAX)
        assert booked.flags == ("clamped",)
        with pytest.raises(ValueError, match="negative"):
            await ledger.settle("r.0", row("r.0", -1))
        for hold_id, cost_nano, flags in (("just.0", 7, ()), ("one_more.0", 8, ("clamped",))):
            await ledger.reserve(hold(hold_id, 7, "org:o"), NOW_S)
            assert (await ledger.settle(hold_id, row(hold_id, cost_nano))).posted_nano == 7
            assert (await rows_of(ledger))[-1].flags == flags


async def test_a_row_for_what_cost_nothing_and_none_for_what_was_given_back(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger, TENANT, 10)
        await ledger.reserve(hold("zero.0", 0), NOW_S)
        await ledger.settle("zero.0", row("zero.0", 0, outcome=Outcome.FAILED))
        await ledger.reserve(hold("back.0", 7), NOW_S)
        await ledger.void("back.0")
        assert [(found.hold_id, found.outcome) for found in await rows_of(ledger)] == [
            ("zero.0", "failed")
        ]
        assert await settled_up(ledger) == Till(posted_nano=0, held_nano=0)


async def test_a_hold_past_its_deadline(redis_url: str) -> None:
    """Pending: nothing was sent, so it is given back. Sent: posted in full, with the draft."""
    async with books(redis_url) as ledger:
        await limit(ledger, TENANT, 100)
        await ledger.reserve(hold("p.0", 30, sent=False, life_s=5), NOW_S)
        await ledger.reserve(hold("s.0", 40, life_s=5), NOW_S)
        await ledger.reserve(hold("m.0", 20, sent=False, life_s=5), NOW_S)
        assert await ledger.mark_sent("m.0")
        await ledger.reserve(hold("later.0", 10, life_s=50), NOW_S)
        assert (await ledger.sweep(NOW_S + 4)).expired == 0
        swept = await ledger.sweep(NOW_S + 5, batch=1)  # several calls, one sweep
        assert (swept.voided, swept.expired) == (1, 2)
        assert await figures(ledger) == {f"{TENANT} day": (60, 10)}
        booked = {found.hold_id: found for found in await rows_of(ledger)}
        assert sorted(booked) == ["m.0", "s.0"]
        assert booked["s.0"].state == RowState.UNRECONCILED
        assert booked["s.0"].outcome == Outcome.EXPIRED
        assert (booked["s.0"].posted_nano, booked["s.0"].held_nano) == (40, 40)

        late = await ledger.settle("s.0", row("s.0", 3))
        assert late == Settled(posted_nano=40, already=True, state=HoldState.EXPIRED)
        assert not await ledger.mark_sent("p.0")
        await ledger.void("later.0")
        assert (await settled_up(ledger)).posted_nano == 60


async def test_the_holds_of_a_dead_owner_are_resolved_when_its_lease_runs_out(
    redis_url: str,
) -> None:
    async with books(redis_url, "alive") as alive, books(redis_url, "dies") as dies:
        await dies.reserve(hold("sent.0", 40), NOW_S)
        await dies.reserve(hold("pending.0", 30, sent=False), NOW_S)
        await alive.reserve(hold("mine.0", 5), NOW_S)
        for second in range(1, 10):
            await alive.renew_lease(NOW_S + second)
            swept = await alive.sweep(NOW_S + second)
            assert (swept.voided, swept.expired) == (0, 0)
        swept = await alive.sweep(NOW_S + 10)
        assert (swept.voided, swept.expired) == (1, 1)
        assert await alive.till() == Till(posted_nano=40, held_nano=5)
        assert (await dies.settle("sent.0", row("sent.0", 1))).already  # it was only slow


async def test_nobody_is_declared_dead_right_after_redis_was_away(redis_url: str) -> None:
    """Nobody could renew: whoever comes back first must not expire the holds of the others."""
    async with books(redis_url, "a") as a, books(redis_url, "b") as b:
        await a.sweep(NOW_S)
        await b.reserve(hold("b.0", 40), NOW_S)
        assert (await a.sweep(NOW_S + 60)).expired == 0
        assert (await a.sweep(NOW_S + 69)).expired == 0
        await b.renew_lease(NOW_S + 69)
        assert (await a.sweep(NOW_S + 75)).expired == 0
        assert (await a.sweep(NOW_S + 79)).expired == 1  # and this time b is silent


async def test_a_good_bye_leaves_nothing_open(redis_url: str) -> None:
    async with books(redis_url, "stays") as stays:
        await stays.sweep(NOW_S)
        async with books(redis_url, "leaves") as leaves:
            await leaves.reserve(hold("x.0", 9), NOW_S)
        assert (await stays.sweep(NOW_S + 60)).expired == 1  # no grace for who said good-bye


async def test_a_hold_belongs_to_its_gateway(redis_url: str) -> None:
    async with books(redis_url, "a") as a, books(redis_url, "b") as b:
        await a.reserve(hold("a.0", 9), NOW_S)
        with pytest.raises(LedgerFault, match="another gateway"):
            await b.settle("a.0", row("a.0", 1))
        with pytest.raises(LedgerFault, match="another gateway"):
            await b.void("a.0")
        assert await a.till() == Till(posted_nano=0, held_nano=9)


async def test_outcomes_are_forgotten_after_a_minute(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        for n in range(5):
            await ledger.reserve(hold(f"r{n}.0", 1), NOW_S)
            await ledger.settle(f"r{n}.0", row(f"r{n}.0", 1))
        await ledger.sweep(NOW_S + 59)
        assert (await ledger.settle("r0.0", row("r0.0"))).state is HoldState.POSTED
        await ledger.reserve(hold("new.0", 1, now_s=NOW_S + 60), NOW_S + 60)  # takes two along
        found = [(await ledger.settle(f"r{n}.0", row(f"r{n}.0"))).state for n in range(5)]
        assert found.count(None) == 2
        await ledger.sweep(NOW_S + 61)
        assert (await ledger.settle("r4.0", row("r4.0"))).state is None
        await ledger.void("new.0")
        assert (await settled_up(ledger)).posted_nano == 5


async def test_nothing_is_left_behind(redis_url: str) -> None:
    """When all is resolved and forgotten, only rows, figures and definitions remain."""
    async with books(redis_url) as ledger, redis.asyncio.from_url(redis_url) as client:
        await limit(ledger, TENANT, 1000)
        for n in range(9):
            await ledger.reserve(hold(f"r{n}.0", n, sent=n % 2 == 0), NOW_S)
        for n in range(3):
            await ledger.settle(f"r{n}.0", row(f"r{n}.0", 1))
            await ledger.void(f"r{n + 3}.0")
            await ledger.void(f"never{n}.0")
        assert await client.zcard("yuzui:{main}:open:gw-1") == 3
        assert await client.hlen("yuzui:{main}:drafts") == 3
        await ledger.sweep(NOW_S + 300)
        await ledger.sweep(NOW_S + 360)
        left = {key.decode().removeprefix("yuzui:{main}:") for key in await client.keys()}
        assert left == {
                "audit", "counters", "defs", "limits", "periods", "rows", "swept", "till",
            }  # fmt: skip


async def test_money_is_exact_up_to_the_largest_figure(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger, TENANT, MONEY_NANO_MAX)
        await ledger.reserve(hold("a.0", MONEY_NANO_MAX - 1), NOW_S)
        assert isinstance(await ledger.reserve(hold("b.0", 2), NOW_S), Exhausted)
        assert isinstance(await ledger.reserve(hold("c.0", 1), NOW_S), Reserved)
        await ledger.settle("a.0", row("a.0", MONEY_NANO_MAX - 2))
        assert await figures(ledger) == {f"{TENANT} day": (MONEY_NANO_MAX - 2, 1)}
        await ledger.settle("c.0", row("c.0", 1))
        # the till has no limit: it goes on where a Lua number would begin to round
        for n in range(3):
            await ledger.reserve(hold(f"t{n}.0", MONEY_NANO_MAX, "org:free"), NOW_S)
            await ledger.settle(f"t{n}.0", row(f"t{n}.0", MONEY_NANO_MAX))
        assert (await settled_up(ledger)).posted_nano == 4 * MONEY_NANO_MAX - 1


async def test_what_is_out_of_range_is_refused_before_redis_hears_of_it(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        for amount_nano in (-1, MONEY_NANO_MAX + 1):
            with pytest.raises(ValueError, match="out of range"):
                await ledger.reserve(hold("r.0", amount_nano), NOW_S)
        for life_s in (0, -1, 86_401, float("nan")):
            with pytest.raises(ValueError, match="a hold lives"):
                await ledger.reserve(hold("r.0", 1, life_s=life_s), NOW_S)
        for scope, limit_nano, period, zone in (
            ("tenant:", 1, "day", ZONE), (TENANT, -1, "day", ZONE), (TENANT, 2**53, "day", ZONE),
            (TENANT, 1, "fortnight", ZONE), (TENANT, 1, "day", "Mars/Olympus"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=r"scope|limit|fortnight|zone"):
                await ledger.set_budget(
                    scope, limit_nano=limit_nano, period=period, zone=zone, now_s=NOW_S
                )
        assert await ledger.till() == Till(posted_nano=0, held_nano=0)


async def test_hostile_names_are_only_data(redis_url: str) -> None:
    """Ids, scopes and rows of any spelling change nothing but themselves."""
    async with books(redis_url) as ledger:
        await limit(ledger, "user:a|b|p", 100)
        await limit(ledger, "user:a", 100)
        names = ["S\n5\nx.0", "\x00.0", "}{\r\n*1\r\n$8\r\nFLUSHALL\r\n.0", "鱼.0", "'; drop.0"]
        for name in names:
            asked = HoldRequest(
                id=name, amount_nano=5, scopes=("user:a|b|p", "user:x\ny"), sent=True,
                deadline_s=NOW_S + 9, draft=row("d.0", tenant=name),
            )  # fmt: skip
            assert isinstance(await ledger.reserve(asked, NOW_S), Reserved)
            assert (await ledger.settle(name, row("d.0", 3, tenant=name))).posted_nano == 3
        assert [found.tenant for found in await rows_of(ledger)] == names
        assert await figures(ledger) == {"user:a day": (0, 0), "user:a|b|p day": (15, 0)}


async def test_rows_are_paged_and_found_by_arrival(redis_url: str) -> None:
    async with books(redis_url, server_clock=True) as ledger:
        now_s = time.time()
        for n in range(25):
            at_ms = int(1000 * now_s) - 1000 * n
            await ledger.reserve(hold(f"r{n}.0", 1, now_s=now_s), now_s)
            await ledger.settle(f"r{n}.0", row(f"r{n}.0", 1, at_ms=at_ms))
        since, until = int(1000 * now_s) - 10_000, int(1000 * now_s)
        found = [r.attempt async for r in ledger.rows(since_ms=since, until_ms=until, batch=4)]
        assert len(found) == 10  # 1 to 10 seconds old; the one of now is not before `until`
        assert len([r async for r in ledger.rows(batch=25)]) == 25
        assert [r async for r in ledger.rows(until_ms=since - 86_400_000 * 3)] == []
