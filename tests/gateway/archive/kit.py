"""What the tests of the archive share: rows put into the books, and the archive looked at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.archive.archiver import Archiver, Moved
from gateway.archive.columns import to_row
from gateway.archive.files import Files, lines_of
from gateway.archive.layout import current
from gateway.ledger.ledger import Ledger
from gateway.ledger.marks import Hot
from gateway.ledger.rows import Row
from policies.types import Site
from tests.gateway.ledger.kit import NOW_S, hold, row

DAY_MS = 86_400_000


async def book(ledger: Ledger, number: int, **more: Any) -> Row:
    """One settled request; sites, tenants and days take turns."""
    hold_id = f"yz-{number:012x}{number:020x}.0"
    known: dict[str, Any] = {
        "tenant": f"tenant-{number % 3}",
        "subject": f"person-{number % 5}",
        "site": Site.CLOUD if number % 2 else Site.LOCAL,
        "at_ms": int(1000 * NOW_S) + (number % 4) * DAY_MS // 2,
        "prompt_tokens": 100 + number,
        "completion_tokens": number,
        "cloud_nano": 3 * number + 1,
    }
    made = row(hold_id, number * 1_001, **{**known, **more})
    await ledger.reserve(hold(hold_id, 10**12), NOW_S)
    await ledger.settle(hold_id, made)
    return made


async def fill(ledger: Ledger, count: int, start: int = 0) -> list[Row]:
    return [await book(ledger, number) for number in range(start, start + count)]


@asynccontextmanager
async def hot_of(url: str) -> AsyncIterator[Hot]:
    hot = await Hot.connect(url)
    try:
        yield hot
    finally:
        await hot.close()


async def archive(url: str, folder: Path, *, keep_s: float = 0.0, batch_rows: int = 7) -> Moved:
    """One run of an archiver that waits for nothing and keeps nothing hot."""
    async with hot_of(url) as hot:
        archiver = Archiver(hot, Files.open(folder))
        try:
            return await archiver.run(keep_s=keep_s - 0.001, settle_s=-1.0, batch_rows=batch_rows)
        finally:
            await hot.release()


async def archived(url: str, folder: Path) -> list[dict[str, Any]]:
    """Every line that counts."""
    async with hot_of(url) as hot:
        marks = await hot.look()
    files = Files.open(folder)
    counted = current(files.list(), marks.cursor)
    return await asyncio.to_thread(lambda: list(lines_of(files.dataset(counted))))


async def add_up(url: str, folder: Path) -> None:
    """The promise: everything posted stands in the archive or is hot, and nothing in both."""
    async with hot_of(url) as hot:
        marks = await hot.look()
        young = []
        if marks.last is not None:  # as of one moment, also while rows are booked
            young = await hot.entries(marks.cursor, marks.last, limit=10**9)
    lines = await archived(url, folder)
    ids = [line["stream_id"] for line in lines if line["stream_id"]]
    assert len(ids) == len(set(ids))
    assert not set(ids) & {one.id for one in young}
    posted = sum(line["posted_nano"] for line in lines)
    assert posted == marks.posted_nano
    assert sum(line["lines"] for line in lines) == marks.rows
    assert posted + sum(one.row.posted_nano for one in young) == marks.till_nano


def rows_by_id(lines: list[dict[str, Any]]) -> dict[str, Row]:
    return {line["request_id"]: to_row(line) for line in lines}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*.parquet")}
