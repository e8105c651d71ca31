from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import redis
from msgspec.structs import replace

from gateway.archive import tidy
from gateway.archive.archiver import Archiver
from gateway.archive.columns import COLUMNS, to_line
from gateway.archive.files import Files, table_of
from gateway.archive.layout import current, file_of
from gateway.archive.query import QUARTER_MS, Query
from gateway.ledger.entries import Entry
from gateway.reports.report import Line
from tests.gateway.archive.kit import add_up, archive, archived, contents, fill, hot_of
from tests.gateway.archive.test_query import full
from tests.gateway.ledger.kit import books

CLAIM = "yuzui:{main}:archiver"
LATER_MS = 10**13


def small(folder: Path, count: int) -> tuple[Files, str]:
    """An archive of `count` files of one row each."""
    files = Files.open(folder)
    for n in range(count):
        line = to_line(Entry(id=f"{n + 1}-0", row=full(n)))
        files.write(file_of("2026-11-22", "cloud", f"{n}-0" if n else None, f"{n + 1}-0"), [line])
    return files, f"{count}-0"


def test_small_files_become_one_and_nothing_else_changes(tmp_path: Path) -> None:
    files, cursor = small(tmp_path, 6)
    with Query(files, cursor) as query:
        before = list(query.rows())
    done = tidy.compact(files, cursor, now_ms=LATER_MS)
    assert (done.merged, done.written, done.deleted) == (6, 1, 0)
    assert len(files.list()) == 7, "the small ones are left to who reads them now"
    with Query(files, cursor) as query:
        assert query.files == 1
        assert list(query.rows()) == before
    done = tidy.compact(files, cursor, now_ms=LATER_MS)
    assert (done.merged, done.written, done.deleted) == (0, 0, 6)
    assert len(files.list()) == 1


def test_young_files_and_files_under_way_are_left_alone(tmp_path: Path) -> None:
    files, _ = small(tmp_path, 6)
    assert tidy.compact(files, "6-0", now_ms=tidy.SAFE_MS).merged == 0
    assert tidy.compact(files, "3-0", now_ms=LATER_MS).merged == 3
    assert [one.upto_id for one in current(files.list(), "6-0")] == ["3-0", "4-0", "5-0", "6-0"]


def test_a_merged_file_stays_below_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tidy, "ROWS_MAX", 4)
    files, cursor = small(tmp_path, 10)
    tidy.compact(files, cursor, now_ms=LATER_MS)
    assert [files.rows(one) for one in current(files.list(), cursor)] == [4, 4, 2]


def test_a_column_that_only_a_later_version_knows_survives_merging(tmp_path: Path) -> None:
    files, cursor = small(tmp_path, 2)
    first = current(files.list(), cursor)[0]
    import pyarrow as pa

    files.write(first, files.read(first).append_column("carbon_g", pa.array([3], pa.int64())))
    tidy.compact(files, cursor, now_ms=LATER_MS)
    (whole,) = current(files.list(), cursor)
    assert files.read(whole)["carbon_g"].to_pylist() == [3, None]


def test_an_anonymous_line_adds_up_and_says_of_nobody() -> None:
    rows = [replace(full(n), at_ms=n * QUARTER_MS // 2, tenant="acme") for n in range(6)]
    lines = tidy.anonymous(
        table_of([to_line(Entry(id=f"{n}-0", row=one)) for n, one in enumerate(rows)])
    ).to_pylist()
    assert len(lines) == 3  # by quarter of an hour
    for name in ("posted_nano", "prompt_tokens", "completion_tokens", "slot_ms", "cloud_nano"):
        assert sum(line[name] for line in lines) == sum(getattr(one, name) for one in rows)
    assert sum(line["lines"] for line in lines) == 6
    said = " ".join(str(value) for line in lines for value in line.values())
    for secret in ("acme", "yz-", "org", "s'", "k'"):
        assert secret not in said
    kept = {name for line in lines for name, value in line.items() if value not in (None, "", [])}
    erased = set(COLUMNS) - kept
    assert {"tenant", "subject", "key_id", "org", "request_id", "stream_id"} <= erased


async def _sums(url: str, folder: Path) -> tuple[list[Line], Line]:
    async with hot_of(url) as hot:
        marks = await hot.look()
    with Query(Files.open(folder), marks.cursor) as query:
        report = query.report(by="day", zone=ZoneInfo("Asia/Kathmandu"))
    return report.lines, report.total


@pytest.mark.parametrize("subject", [None, "person-2"])
async def test_a_forgotten_tenant_is_gone_and_the_books_still_sum(
    valkey_url: str, tmp_path: Path, subject: str | None
) -> None:
    async with books(valkey_url) as ledger:
        made = await fill(ledger, 60)
        await archive(valkey_url, tmp_path, keep_s=3600)
        before = await _sums(valkey_url, tmp_path)
        theirs = [
            one for one in made
            if one.tenant == "tenant-1" and subject in (None, one.subject)
        ]  # fmt: skip
        async with hot_of(valkey_url) as hot:
            archiver = Archiver(hot, Files.open(tmp_path))
            done = await archiver.forget(tenant="tenant-1", subject=subject, who="root")
            again = await archiver.forget(tenant="tenant-1", subject=subject, who="root")
            await hot.release()
        assert done.rows == len(theirs) > 0
        assert done.posted_nano == sum(one.posted_nano for one in theirs)
        assert again.rows == 0
        left = [one async for one in ledger.rows()]
        assert len(left) == 60 - len(theirs), "the others' rows stay hot"
        lines = await archived(valkey_url, tmp_path)
        for one in theirs:
            assert one.request_id not in {line["request_id"] for line in lines}
            assert one.request_id not in {other.request_id for other in left}
    assert await _sums(valkey_url, tmp_path) == before
    names = [b"tenant-1"] if subject is None else [one.request_id.encode() for one in theirs]
    for path, data in contents(tmp_path).items():
        assert not any(name in data for name in names), path
    async with hot_of(valkey_url) as hot:
        marks = await hot.look()
    assert sum(line["posted_nano"] for line in lines) == marks.posted_nano == marks.till_nano
    assert sum(line["lines"] for line in lines) == marks.rows


async def test_forgetting_stands_in_the_audit_trail(valkey_url: str, tmp_path: Path) -> None:
    async with books(valkey_url) as ledger, hot_of(valkey_url) as hot:
        await fill(ledger, 6)
        await Archiver(hot, Files.open(tmp_path)).forget(
            tenant="tenant-1", subject="person-1", who="ann"
        )
    with redis.Redis.from_url(valkey_url, decode_responses=True) as raw:
        first, second = [fields for _, fields in raw.xrange("yuzui:{main}:audit")]
    assert (first["act"], second["act"], second["who"]) == ("forget", "forgotten", "ann")
    assert first["id"].startswith("rows|tenant:tenant-1 subject sha256:")
    assert "person-1" not in str([first, second])
    assert second["p"] == "1001"


ERASER = """
import asyncio, os, signal, sys
from gateway.archive.archiver import Archiver
from gateway.archive.files import Files
from gateway.ledger.marks import Hot

def step(name):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

async def run():
    hot = await Hot.connect(sys.argv[1])
    archiver = Archiver(hot, Files.open(sys.argv[2]), step=step)
    await archiver.forget(tenant="tenant-1", subject=None, who="root")

asyncio.run(run())
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", ["noted", "written", "committed", "erased", "dropped"])
async def test_kill_9_while_forgetting(valkey_url: str, tmp_path: Path, step: str) -> None:
    async with books(valkey_url) as ledger:
        await fill(ledger, 12)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ERASER, valkey_url, str(tmp_path), step
        )
        assert await process.wait() == -signal.SIGKILL
        await add_up(valkey_url, tmp_path)
        with redis.Redis.from_url(valkey_url) as raw:
            raw.delete(CLAIM)
        async with hot_of(valkey_url) as hot:
            await Archiver(hot, Files.open(tmp_path)).forget(
                tenant="tenant-1", subject=None, who="root"
            )
            await hot.release()
        assert all(one.tenant != "tenant-1" for one in [r async for r in ledger.rows()])
    await add_up(valkey_url, tmp_path)
    assert all(line["tenant"] != "tenant-1" for line in await archived(valkey_url, tmp_path))
