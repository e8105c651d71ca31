"""Where rows stand in the archive: folders by day and side, file names from stream id ranges.

    day=2026-11-22/site=cloud/0000000000000-000000_1795338000123-000004.parquet

The day is that of the request's arrival in UTC: reports and reconciliation ask for days, and
midnights elsewhere fall between two of them. Beside the day stands the side (local or cloud), not
the tenant: two folders a day stay few and their files large, the bill is matched against the cloud
side alone, and no tenant's name stands in a path, where deleting rows would leave it behind.

A name says which rows a file holds: those of its folder that were booked after one stream id and
up to another. The same batch therefore always has the same names, and a file whose range lies
within another's of the same folder is superseded by it: merging files writes the large one first
and deletes the small ones after, and a reader counts every row once at every moment between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from policies.types import Value

MARKER: Final = "_books.json"  # whose books these are; never below a day
FIRST: Final = "0-0"  # no stream id is smaller

_FILE: Final = re.compile(
    r"(day=(\d{4}-\d\d-\d\d)/site=([a-z]+))/(\d{13,})-(\d{6,})_(\d{13,})-(\d{6,})\.parquet"
)

Id = tuple[int, int]


def parse_id(stream_id: str) -> Id:
    """A stream id as what it is ordered by. Raises ValueError."""
    ms, _, seq = stream_id.partition("-")
    return int(ms), int(seq)


class File(Value, frozen=True, kw_only=True):
    """One data file. It holds the rows of its folder booked in (after, upto]."""

    folder: str
    day: str
    after: Id
    upto: Id

    @property
    def path(self) -> str:
        return f"{self.folder}/{_padded(self.after)}_{_padded(self.upto)}.parquet"

    @property
    def after_id(self) -> str:
        return f"{self.after[0]}-{self.after[1]}"

    @property
    def upto_id(self) -> str:
        return f"{self.upto[0]}-{self.upto[1]}"

    def covers(self, other: File) -> bool:
        return (
            self.folder == other.folder
            and self.after <= other.after
            and other.upto <= self.upto
            and self != other
        )


def file_of(day: str, site: str, after: str | None, upto: str) -> File:
    return File(
        folder=f"day={day}/site={site}",
        day=day,
        after=parse_id(after or FIRST),
        upto=parse_id(upto),
    )


def parse(path: str) -> File | None:
    """A path below the archive as a data file; None when it is something else."""
    found = _FILE.fullmatch(path)
    if found is None:
        return None
    return File(
        folder=found[1],
        day=found[2],
        after=(int(found[4]), int(found[5])),
        upto=(int(found[6]), int(found[7])),
    )


def day_of(at_ms: int) -> str:
    """The UTC day of a moment in milliseconds since 1970."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).date().isoformat()


def current(files: Iterable[File], cursor: str | None) -> list[File]:
    """The files that count: committed, and not superseded; ordered by folder and range."""
    if cursor is None:
        return []
    upto = parse_id(cursor)
    # A wider range first: whatever it covers comes behind it.
    ordered = sorted(files, key=lambda f: (f.folder, f.after, (-f.upto[0], -f.upto[1])))
    counted: list[File] = []
    for file in ordered:
        if file.upto > upto or (counted and counted[-1].covers(file)):
            continue
        counted.append(file)
    return counted


def superseded(files: Iterable[File], cursor: str | None) -> list[File]:
    """Committed files that count no more and may be deleted."""
    if cursor is None:
        return []
    known, upto = list(files), parse_id(cursor)
    counted = set(current(known, cursor))
    return [file for file in known if file not in counted and file.upto <= upto]


def between(files: Iterable[File], since_ms: int | None, until_ms: int | None) -> list[File]:
    """The files whose day may hold requests that arrived in [since, until)."""
    first = "" if since_ms is None else day_of(since_ms)
    last = "9" if until_ms is None else day_of(max(0, until_ms - 1))
    return [file for file in files if first <= file.day <= last]


def _padded(stream_id: Id) -> str:
    return f"{stream_id[0]:013d}-{stream_id[1]:06d}"
