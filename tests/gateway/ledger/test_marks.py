from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis

from gateway.ledger.marks import ClaimLost, Hot, Marks
from tests.gateway.archive.kit import fill, hot_of
from tests.gateway.ledger.kit import books


@pytest.fixture
async def hot(redis_url: str) -> AsyncIterator[Hot]:
    async with hot_of(redis_url) as found:
        yield found


async def test_books_that_were_never_archived(hot: Hot) -> None:
    assert await hot.look() == Marks()
    assert await hot.entries(None, "+", limit=10) == []


async def test_a_claim_is_for_one_until_it_runs_out(hot: Hot, redis_url: str) -> None:
    async with hot_of(redis_url) as other:
        await hot.claim()
        await hot.claim()
        with pytest.raises(ClaimLost, match="its claim lasts 30 s more"):
            await other.claim()
        await other.release()  # not its own: nothing happens
        with redis.Redis.from_url(redis_url) as raw:
            raw.pexpire("yuzui:{main}:archiver", 1)
            while raw.exists("yuzui:{main}:archiver"):
                pass
        await other.claim()
        for late in (hot.plan(None, "1-0"), hot.commit("1-0", rows=0, posted_nano=0), hot.trim(9)):
            with pytest.raises(ClaimLost):
                await late


async def test_entries_come_in_pages_and_in_order(hot: Hot, redis_url: str) -> None:
    async with books(redis_url) as ledger:
        made = await fill(ledger, 25)
        found = await hot.entries(None, "+", limit=20)
        assert [one.row.request_id for one in found] == [one.request_id for one in made[:20]]
        rest = await hot.entries(found[-1].id, "+", limit=20)
        assert [one.row.request_id for one in rest] == [one.request_id for one in made[20:]]
        assert await ledger.hot().entries(None, found[4].id, limit=99) == found[:5]


async def test_a_plan_stands_until_it_is_committed(hot: Hot) -> None:
    await hot.claim()
    assert await hot.plan(None, "5-0") == "5-0"
    assert await hot.plan(None, "9-0") == "5-0"
    with pytest.raises(ClaimLost):
        await hot.commit("9-0", rows=1, posted_nano=1)
    await hot.commit("5-0", rows=2, posted_nano=-3)
    with pytest.raises(ClaimLost):
        await hot.commit("5-0", rows=2, posted_nano=-3)  # not twice
    with pytest.raises(ClaimLost):
        await hot.plan(None, "9-0")  # the cursor is elsewhere by now
    assert await hot.plan("5-0", "9-0") == "9-0"
    assert await hot.look() == Marks(cursor="5-0", plan="9-0", rows=2, posted_nano=-3)


async def test_only_archived_rows_leave_the_stream(hot: Hot, redis_url: str) -> None:
    async with books(redis_url) as ledger:
        await fill(ledger, 6)
        await hot.claim()
        assert await hot.trim(2**52) == 0
        entries = await hot.entries(None, "+", limit=99)
        await hot.plan(None, entries[3].id)
        assert await hot.trim(2**52) == 0  # planned is not archived
        await hot.commit(entries[3].id, rows=4, posted_nano=0)
        assert await hot.trim(0) == 0
        booked_ms = int(entries[0].id.partition("-")[0])
        assert await hot.trim(booked_ms) == 0  # all are younger than that
        assert await hot.trim(2**52) == 4
        assert await hot.entries(None, "+", limit=99) == entries[4:]
        assert (await hot.look()).trimmed == entries[3].id


async def test_the_books_keep_their_name(hot: Hot) -> None:
    assert await hot.name_books("a") == "a"
    assert await hot.name_books("b") == "a"
    assert (await hot.look()).books == "a"
