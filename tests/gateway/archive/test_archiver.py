from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest
import redis

from gateway.archive.archiver import Archiver, divide, uncommitted
from gateway.archive.files import ArchiveError, Files
from gateway.archive.layout import FIRST, parse
from gateway.ledger.entries import Entry
from gateway.ledger.marks import ClaimLost
from tests.gateway.archive.kit import (
    add_up,
    archive,
    archived,
    book,
    contents,
    fill,
    hot_of,
    rows_by_id,
)
from tests.gateway.ledger.kit import books, row

CLAIM = "yuzui:{main}:archiver"
STEPS = ["claimed", "named", "read", "planned", "written", "committed", "trimmed"]


async def test_rows_arrive_as_they_were(redis_url: str, tmp_path: Path) -> None:
    async with books(redis_url) as ledger:
        made = await fill(ledger, 20)
        moved = await archive(redis_url, tmp_path)
        assert (moved.rows, moved.batches, moved.trimmed) == (20, 3, 20)
        found = rows_by_id(await archived(redis_url, tmp_path))
        for one in made:
            assert found[one.request_id].posted_nano == one.posted_nano
            assert found[one.request_id].tenant == one.tenant
            assert found[one.request_id].flags == one.flags
        assert [one async for one in ledger.rows()] == []
    await add_up(redis_url, tmp_path)


async def test_a_second_run_has_nothing_to_do(valkey_url: str, tmp_path: Path) -> None:
    async with books(valkey_url) as ledger:
        await fill(ledger, 10)
        await archive(valkey_url, tmp_path)
        before = contents(tmp_path)
        moved = await archive(valkey_url, tmp_path)
        assert (moved.rows, moved.trimmed) == (0, 0)
        assert contents(tmp_path) == before
        await fill(ledger, 5, start=10)
        await archive(valkey_url, tmp_path)
    await add_up(valkey_url, tmp_path)
    assert len(await archived(valkey_url, tmp_path)) == 15


async def test_young_rows_stay_hot_after_they_are_archived(valkey_url: str, tmp_path: Path) -> None:
    async with books(valkey_url) as ledger:
        await fill(ledger, 10)
        moved = await archive(valkey_url, tmp_path, keep_s=3600)
        assert (moved.rows, moved.trimmed) == (10, 0)
        assert len([one async for one in ledger.rows()]) == 10
    await add_up(valkey_url, tmp_path)


async def test_a_row_that_has_just_been_booked_waits(valkey_url: str, tmp_path: Path) -> None:
    async with books(valkey_url) as ledger, hot_of(valkey_url) as hot:
        await fill(ledger, 3)
        moved = await Archiver(hot, Files.open(tmp_path)).run(keep_s=0.0, settle_s=60.0)
        assert (moved.rows, moved.trimmed) == (0, 0)
    await add_up(valkey_url, tmp_path)


async def test_a_row_that_cannot_be_read_is_kept_with_its_money(
    valkey_url: str, tmp_path: Path
) -> None:
    async with books(valkey_url) as ledger:
        await fill(ledger, 2)
        with redis.Redis.from_url(valkey_url) as raw:
            raw.xadd("yuzui:{main}:rows", {"p": "77", "h": "99", "r": "{}", "s": "x"})
            raw.hincrby("yuzui:{main}:till", "posted", 77)
        await archive(valkey_url, tmp_path)
    await add_up(valkey_url, tmp_path)
    (lost,) = [x for x in await archived(valkey_url, tmp_path) if "unreadable" in x["flags"]]
    assert (lost["posted_nano"], lost["held_nano"], lost["state"]) == (77, 99, "unreconciled")


async def _killed(url: str, folder: Path, step: str, number: int) -> bool:
    """Whether the archiver was killed there; False: it came to its end first."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.gateway.archive.victim", url, str(folder), step, str(number),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    if process.returncode == -signal.SIGKILL:
        return True
    assert process.returncode == 0, err.decode()
    assert out == b"worked to its end\n"
    return False


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
async def test_kill_9_at_every_step(valkey_url: str, tmp_path: Path, step: str) -> None:
    """Killed at the first, second and third time it comes there, with rows booked in between."""
    killed = 0
    async with books(valkey_url) as ledger:
        for number in (1, 2, 3):
            await fill(ledger, 9, start=9 * number)
            killed += await _killed(valkey_url, tmp_path, step, number)
            await add_up(valkey_url, tmp_path)
            with redis.Redis.from_url(valkey_url) as raw:
                raw.delete(CLAIM)  # its lease, which would run out by itself
        await archive(valkey_url, tmp_path)
    await add_up(valkey_url, tmp_path)
    assert len(await archived(valkey_url, tmp_path)) == 27
    assert killed >= 1, "the step was never come to, so nothing was shown"


async def test_one_archiver_at_a_time(valkey_url: str, tmp_path: Path) -> None:
    async with books(valkey_url) as ledger, hot_of(valkey_url) as first:
        await fill(ledger, 3)
        await first.claim()
        with pytest.raises(ClaimLost, match="another archiver works"):
            await archive(valkey_url, tmp_path)
        await first.release()
        assert (await archive(valkey_url, tmp_path)).rows == 3


async def test_an_archiver_that_was_away_too_long_changes_nothing(
    valkey_url: str, tmp_path: Path
) -> None:
    """Its claim went to another one while it was stopped in mid-batch."""
    with redis.Redis.from_url(valkey_url) as raw:
        for number, step in enumerate(("read", "planned", "written", "committed")):

            def steal(name: str, step: str = step) -> None:
                if name == step:
                    raw.set(CLAIM, "another one")

            async with books(valkey_url) as ledger, hot_of(valkey_url) as hot:
                await fill(ledger, 9, start=9 * number)
                with pytest.raises(ClaimLost):
                    await Archiver(hot, Files.open(tmp_path), step=steal).run(
                        keep_s=-1.0, settle_s=-1.0, batch_rows=7
                    )
            await add_up(valkey_url, tmp_path)
            raw.delete(CLAIM)
    await archive(valkey_url, tmp_path)
    await add_up(valkey_url, tmp_path)


@pytest.mark.parametrize("forgotten", ["plan", "commit"])
async def test_a_redis_that_forgets_its_last_second(
    valkey_url: str, tmp_path: Path, forgotten: str
) -> None:
    """The files were durable before it: nothing counts twice when the batch is made again."""
    async with books(valkey_url) as ledger:
        await fill(ledger, 10)
        await archive(valkey_url, tmp_path, keep_s=3600, batch_rows=100)
        await fill(ledger, 10, start=10)
        with redis.Redis.from_url(valkey_url) as raw:
            before = raw.hgetall("yuzui:{main}:archive")
            if forgotten == "plan":
                assert await _killed(valkey_url, tmp_path, "written", 2)
                raw.delete(CLAIM)
            else:
                await archive(valkey_url, tmp_path, keep_s=3600, batch_rows=4)
            raw.delete("yuzui:{main}:archive")
            raw.hset("yuzui:{main}:archive", mapping=before)
        await fill(ledger, 10, start=20)
        await archive(valkey_url, tmp_path, batch_rows=100)
    await add_up(valkey_url, tmp_path)
    assert len(await archived(valkey_url, tmp_path)) == 30


async def test_other_books_are_refused(valkey_url: str, redis6_url: str, tmp_path: Path) -> None:
    async with books(valkey_url) as ledger, books(redis6_url) as other:
        await fill(ledger, 3)
        await archive(valkey_url, tmp_path / "a")
        await fill(other, 3)
        with pytest.raises(ArchiveError, match="holds the rows of other books"):
            await archive(redis6_url, tmp_path / "a")
        with pytest.raises(ArchiveError, match="is empty, but 3 rows of these books"):
            await archive(valkey_url, tmp_path / "b")


async def test_days_and_sides_have_folders(valkey_url: str, tmp_path: Path) -> None:
    async with books(valkey_url) as ledger:
        await book(ledger, 1)
        await book(ledger, 2, at_ms=1_795_391_999_999)  # the last millisecond of a UTC day
        await archive(valkey_url, tmp_path)
    found = sorted(str(path.parent.relative_to(tmp_path)) for path in contents(tmp_path))
    assert found == ["day=2026-11-22/site=cloud", "day=2026-11-22/site=local"]


def test_a_batch_is_divided_by_day_and_side_in_order() -> None:
    rows = [row(f"a-{number}.0", at_ms=number * 40_000_000) for number in range(5)]
    entries = [Entry(id=f"{n + 1}-0", row=one) for n, one in enumerate(rows)]
    parts = divide(entries, after=None, upto="5-0")
    assert [file.day for file in parts] == ["1970-01-01", "1970-01-02"]
    assert [one for part in parts.values() for one in part] == entries


def test_files_beyond_the_cursor_are_not_committed() -> None:
    file = parse("day=1970-01-01/site=cloud/0000000000000-000000_0000000000005-000000.parquet")
    assert file is not None
    assert uncommitted([file], None) == [file]
    assert uncommitted([file], FIRST) == [file]
    assert uncommitted([file], "5-0") == []
