"""Corrections: what the bill says of a hold that was posted in full. On a real Valkey and Redis."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from gateway.ledger.ledger import Ledger, LedgerFault
from gateway.ledger.rows import Row, RowState
from tests.gateway.ledger.kit import NOW_S, ZONE, books, hold, row, rows_of, settled_up

TENANT, CLOUD = "tenant:acme", "backend:cloud"


async def limit(ledger: Ledger, scope: str, limit_nano: int, period: str = "day") -> None:
    await ledger.set_budget(scope, limit_nano=limit_nano, period=period, zone=ZONE, now_s=NOW_S)


async def posted(ledger: Ledger) -> dict[str, int]:
    return {f"{b.scope} {b.period}": b.posted_nano for b in await ledger.budgets(NOW_S)}


async def unreconciled(ledger: Ledger, hold_id: str, amount_nano: int, *scopes: str) -> Row:
    """A hold that was settled at its bound, as read back."""
    await ledger.reserve(hold(hold_id, amount_nano, *scopes), NOW_S)
    await ledger.settle(hold_id, row(hold_id, amount_nano, state=RowState.UNRECONCILED))
    return next(found for found in await rows_of(ledger) if found.hold_id == hold_id)


def correction(of: Row, difference_nano: int, **more: object) -> Row:
    known = {"state": RowState.CORRECTION, "final": False, "posted_nano": difference_nano}
    return replace(of, **{**known, **more})


async def test_every_budget_gets_back_what_the_bill_did_not_take(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger, TENANT, 5000)
        await limit(ledger, CLOUD, 9000, "month")
        await limit(ledger, "tenant:other", 700)
        await ledger.reserve(hold("ok.0", 100, TENANT, CLOUD), NOW_S)
        await ledger.settle("ok.0", row("ok.0", 40))
        lost = await unreconciled(ledger, "r.0", 600, TENANT, CLOUD)
        assert len(lost.drawn) == 2

        done = await ledger.correct(lost, correction(lost, -450, prompt_tokens=11))
        assert (done.difference_nano, done.already) == (-450, False)
        assert await posted(ledger) == {
            "backend:cloud month": 190,
            "tenant:acme day": 190,
            "tenant:other day": 0,
        }
        assert (await settled_up(ledger)).posted_nano == 190
        last = (await rows_of(ledger))[-1]
        assert (last.hold_id, last.state, last.posted_nano) == ("r.0", "correction", -450)
        assert (last.prompt_tokens, last.held_nano, last.at_ms) == (11, 0, lost.at_ms)


async def test_a_row_that_needs_no_bill_keeps_no_counters(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger, TENANT, 5000)
        await ledger.reserve(hold("ok.0", 100, TENANT), NOW_S)
        await ledger.settle("ok.0", row("ok.0", 140))
        (found,) = await rows_of(ledger)
        assert (found.drawn, found.claimed_nano) == ((), 140)


async def test_what_the_sweeper_posted_can_be_corrected_as_well(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger, TENANT, 5000)
        await ledger.reserve(hold("r.0", 600, TENANT), NOW_S)
        assert (await ledger.sweep(NOW_S + 86_400)).expired == 1
        (lost,) = await rows_of(ledger)
        assert (lost.state, len(lost.drawn)) == (RowState.UNRECONCILED, 1)
        await ledger.correct(lost, correction(lost, -600))
        assert (await settled_up(ledger)).posted_nano == 0
        assert await posted(ledger) == {"tenant:acme day": 0}


async def test_a_correction_is_booked_once_whoever_asks(redis_url: str) -> None:
    async with books(redis_url) as ledger, books(redis_url, instance="gw-2") as other:
        await limit(ledger, TENANT, 5000)
        lost = await unreconciled(ledger, "r.0", 600, TENANT)
        asked = [
            each.correct(lost, correction(lost, -d)) for each in (ledger, other) for d in (1, 2)
        ]
        done = await asyncio.gather(*asked)
        assert sum(not each.already for each in done) == 1
        assert len({each.difference_nano for each in done}) == 1
        assert (await settled_up(ledger)).posted_nano == 600 + done[0].difference_nano
        assert len(await rows_of(ledger)) == 2


async def test_a_budget_that_is_gone_is_not_revived(redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger, TENANT, 5000)
        lost = await unreconciled(ledger, "r.0", 600, TENANT)
        await ledger.delete_budget(TENANT, "day", now_s=NOW_S)
        await ledger.sweep(NOW_S + 40 * 86_400)  # drops the counters of what is over
        before = await ledger._control.call("HLEN", ledger._keys.counters)
        await ledger.correct(lost, correction(lost, -10))
        assert await ledger._control.call("HLEN", ledger._keys.counters) == before == 0
        assert (await settled_up(ledger)).posted_nano == 590


async def test_a_count_that_has_begun_anew_never_goes_below_nothing(redis_url: str) -> None:
    """Reset to nothing and 50 spent since: what was held before is not in it."""
    async with books(redis_url) as ledger:
        await limit(ledger, TENANT, 5000)
        lost = await unreconciled(ledger, "r.0", 600, TENANT)
        (counter,) = lost.drawn
        await ledger._control.call("HSET", ledger._keys.counters, f"{counter}|p", 50)
        await ledger.correct(lost, correction(lost, -450))
        assert await posted(ledger) == {"tenant:acme day": 0}
        assert (await settled_up(ledger)).posted_nano == 150


@pytest.mark.parametrize(
    ("difference", "state"),
    [(-601, RowState.CORRECTION), (1, RowState.CORRECTION), (-1, RowState.FINAL)],
)
async def test_what_no_bill_can_say_is_refused(
    redis_url: str, difference: int, state: RowState
) -> None:
    async with books(redis_url) as ledger:
        lost = await unreconciled(ledger, "r.0", 600, TENANT)
        with pytest.raises(ValueError, match=r"r\.0"):
            await ledger.correct(lost, correction(lost, difference, state=state))
        with pytest.raises(ValueError, match="not unreconciled"):
            await ledger.correct(replace(lost, state=RowState.FINAL), correction(lost, -1))
        assert (await settled_up(ledger)).posted_nano == 600


async def test_the_till_never_goes_below_nothing(redis_url: str) -> None:
    """The script's own check, for a caller that has made a row up."""
    async with books(redis_url) as ledger:
        made_up = row("x.0", 600, state=RowState.UNRECONCILED)
        with pytest.raises(LedgerFault, match="out of its range"):
            await ledger.correct(made_up, correction(made_up, -600))
        assert await rows_of(ledger) == []


async def test_a_late_correction_is_found_on_the_day_of_its_request(redis_url: str) -> None:
    """It may be booked days after the rows of that day, where a look by time would not reach."""
    async with books(redis_url) as ledger:
        old_ms = int(1000 * NOW_S) - 30 * 86_400_000
        lost = await unreconciled(ledger, "r.0", 600, TENANT)
        lost = replace(lost, at_ms=old_ms)
        await ledger.correct(lost, correction(lost, -10))

        async def between(since_ms: int, until_ms: int) -> list[int]:
            found = ledger.rows(since_ms=since_ms, until_ms=until_ms)
            return [each.posted_nano async for each in found]

        assert await between(old_ms, old_ms + 1) == [-10]
        assert await between(old_ms + 1, old_ms + 1000) == []
        assert [each.posted_nano for each in await rows_of(ledger)] == [600, -10]
        now_ms = int(1000 * NOW_S)
        wide = await between(old_ms, now_ms + 365 * 86_400_000)
        assert sorted(wide) == [-10, 600]  # once, though both ways lead to it
