from __future__ import annotations

import pytest
import redis

from gateway.ledger.control import CLOCK_SLACK_S
from tests.gateway.ledger.kit import NOW_S, books, hold, row, rows_of, settled_up

NOW_MS = int(1000 * NOW_S)
DAY_MS = 86_400_000
LIMIT = {"limit_nano": 1_000, "period": "day", "zone": "UTC"}


async def test_a_sweep_takes_a_bite_that_redis_can_swallow(valkey_url: str) -> None:
    async with books(valkey_url) as ledger:
        for batch in (0, -1, 10**9):
            with pytest.raises(ValueError, match="a sweep's batch is 1 to"):
                await ledger.sweep(NOW_S, batch=batch)
        for number in range(5):  # more than one bite of two
            await ledger.reserve(hold(f"yz-{number}.0", 10, life_s=10), NOW_S)
        swept = await ledger.sweep(NOW_S + 11, batch=2)
        assert (swept.voided, swept.expired) == (0, 5)
        assert (await settled_up(ledger)).posted_nano == 50


@pytest.mark.parametrize("later_ms", [-int(1000 * CLOCK_SLACK_S), 0, DAY_MS])
async def test_rows_are_found_by_arrival_whenever_they_were_booked(
    valkey_url: str, later_ms: int
) -> None:
    """Booked by a clock that is a minute behind, at once, and a day later: page by page."""
    async with books(valkey_url) as ledger:
        arrivals = [NOW_MS - 1, NOW_MS, NOW_MS + 999, NOW_MS + 1000]
        for number, at_ms in enumerate(arrivals):
            await ledger.reserve(hold(f"yz-{number}.0", 10), NOW_S)
            await ledger.settle(f"yz-{number}.0", row(f"yz-{number}.0", number, at_ms=at_ms))
        with redis.Redis.from_url(valkey_url) as raw:
            entries = raw.xrange("yuzui:{main}:rows")
            raw.delete("yuzui:{main}:rows")
            for number, (_, fields) in enumerate(entries):
                raw.xadd("yuzui:{main}:rows", fields, id=f"{NOW_MS + later_ms}-{number + 1}")
        for batch in (1, 2, 500):
            found = ledger.rows(since_ms=NOW_MS, until_ms=NOW_MS + 1000, batch=batch)
            assert [one.at_ms async for one in found] == arrivals[1:3]
        assert [one.at_ms async for one in ledger.rows(since_ms=NOW_MS)] == arrivals[1:]
        assert [one.at_ms async for one in ledger.rows(until_ms=NOW_MS)] == arrivals[:1]
        assert [one.at_ms async for one in ledger.latest_rows(2)] == arrivals[2:]


async def test_what_was_spooled_is_booked_once_and_on_the_day_of_its_request(
    valkey_url: str,
) -> None:
    async with books(valkey_url) as ledger:
        await ledger.set_budget("tenant:acme", now_s=NOW_S, **LIMIT)  # type: ignore[arg-type]
        yesterday = row("yz-1.0", 30, at_ms=NOW_MS - DAY_MS)
        today = row("yz-2.0", 4)
        for number, one in ((1, yesterday), (2, today)):
            assert await ledger.book("s", number, ("tenant:acme",), one) is True
            assert await ledger.book("s", number, ("tenant:acme",), one) is False
        assert await ledger.book("s", 3, ("tenant:acme",), None) is True
        (budget,) = await ledger.budgets(NOW_S)
        assert (budget.posted_nano, budget.held_nano) == (4, 0)
        (before,) = await ledger.budgets(NOW_S - 86_400)
        assert before.posted_nano == 30
        assert len(await rows_of(ledger)) == 2
        assert (await settled_up(ledger)).posted_nano == 34
