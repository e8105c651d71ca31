"""Small files made into large ones, and rows of a tenant made nobody's.

Both change files that count already, under the archiver's claim, so that each moment is safe:

compact   the large file is written first; its name covers the small ones, so they stop counting at
          that moment, and they are deleted by the next run: who was reading them is not disturbed
forget    a file is replaced whole, under its own name, by one in which the tenant's rows are summed
          up without saying whose they were: money, tokens and requests stay in the books by quarter
          of an hour, side, target, model, label, reason and price; who asked, and when exactly, go
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from gateway.archive.columns import COLUMNS, LINES, REQUESTS, STREAM_ID
from gateway.archive.files import SCHEMA, Files
from gateway.archive.layout import File, current, superseded
from gateway.archive.query import QUARTER_MS
from policies.types import Value

ROWS_MAX: Final = 500_000  # of a merged file: some 20 MB
SAFE_MS: Final = 3_600_000  # a reader that took the cursor before has long ended
MERGE_FROM: Final = 2

# What an anonymous line says beside its sums. A field that is not named here is erased, so a field
# of a later version is erased too until somebody has thought about it.
_KEPT: Final = (
    "site", "target", "model", "served_model", "label", "reason", "state", "card_version", "tier",
    "service_tier", "slots",
)  # fmt: skip
_SUMMED_TOO: Final = ("slot_ms", "image_tokens_expected", LINES, REQUESTS)


class Compacted(Value, frozen=True, kw_only=True):
    merged: int  # files that count no more
    written: int
    deleted: int


class Forgotten(Value, frozen=True, kw_only=True):
    """What was erased. files: that were written anew."""

    rows: int
    posted_nano: int
    files: int


def compact(files: Files, cursor: str | None, *, now_ms: int) -> Compacted:
    """Merges neighbouring small files of a folder that were written an hour ago or earlier."""
    known = files.list()
    old = superseded(known, cursor)
    files.delete(old)
    merged = written = 0
    for group in _groups(files, current(known, cursor), now_ms - SAFE_MS):
        table = pa.concat_tables([files.read(one) for one in group], promote_options="default")
        first, last = group[0], group[-1]
        whole = File(folder=first.folder, day=first.day, after=first.after, upto=last.upto)
        files.write(whole, table)
        merged += len(group)
        written += 1
    return Compacted(merged=merged, written=written, deleted=len(old))


def _groups(files: Files, counted: Sequence[File], before_ms: int) -> list[list[File]]:
    """Neighbours of one folder that together stay below ROWS_MAX."""
    groups: list[list[File]] = []
    group: list[File] = []
    rows = 0
    for file in counted:
        if file.upto[0] >= before_ms:
            continue
        count = files.rows(file)
        if group and (group[-1].folder != file.folder or rows + count > ROWS_MAX):
            groups.append(group)
            group, rows = [], 0
        group.append(file)
        rows += count
    groups.append(group)
    return [one for one in groups if len(one) >= MERGE_FROM]


def forget(
    files: Files, cursor: str | None, *, tenant: str, subject: str | None = None
) -> Forgotten:
    """Erases a tenant, or one subject of it, from every file. May be repeated: the second time
    finds nothing."""
    known = files.list()
    files.delete(superseded(known, cursor))  # they still hold the rows, though they do not count
    rows = posted = written = 0
    for file in current(known, cursor):
        table = files.read(file)
        theirs = pc.equal(table["tenant"], tenant)
        if subject is not None:
            theirs = pc.and_(theirs, pc.equal(table["subject"], subject))
        theirs = pc.fill_null(theirs, False)
        gone = table.filter(theirs)
        if not gone.num_rows:
            continue
        left = table.filter(pc.invert(theirs))
        files.write(file, pa.concat_tables([left, anonymous(gone)], promote_options="default"))
        rows += pc.sum(gone[LINES]).as_py()
        posted += pc.sum(gone["posted_nano"]).as_py()
        written += 1
    return Forgotten(rows=rows, posted_nano=posted, files=written)


def anonymous(table: pa.Table) -> pa.Table:
    """Rows as lines that add up to the same and say of nobody."""
    quarter = pc.multiply(pc.divide(table["at_ms"], QUARTER_MS), QUARTER_MS)
    table = table.set_column(table.column_names.index("at_ms"), "at_ms", quarter)
    here = [name for name in table.column_names if name in COLUMNS]
    keys = ["at_ms", *(name for name in _KEPT if name in here)]
    sums = [name for name in here if _adds_up(name)]
    grouped = table.group_by(keys).aggregate([(name, "sum") for name in sums])
    grouped = grouped.rename_columns([name.removesuffix("_sum") for name in grouped.column_names])
    lines = []
    for one in grouped.to_pylist():
        blank = {name: None for name in COLUMNS}
        erased = {STREAM_ID: "", "request_id": "", "tenant": "", "attempt": 0, "final": False}
        lines.append({**blank, **erased, **one})
    return pa.Table.from_pylist(lines, schema=SCHEMA)


def _adds_up(name: str) -> bool:
    return name.endswith(("_nano", "_tokens")) or name in _SUMMED_TOO
