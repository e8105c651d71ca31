"""Questions to the books, hot and archived together, answered by DuckDB.

DuckDB is given the archive's files as an Arrow dataset with the columns of now, so an old file that
lacks a column answers null for it, and local folders and object stores are read the same way. Rows
that are only in Redis stand beside them in the same view, `rows`. DuckDB may open nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Final
from zoneinfo import ZoneInfo

import duckdb

from gateway.archive.columns import COLUMNS, to_line, to_row
from gateway.archive.files import ArchiveError, Files, table_of
from gateway.archive.layout import between, current
from gateway.ledger.entries import Entry
from gateway.ledger.rows import Row
from gateway.reports.report import Line, Report, day_of
from gateway.reports.utilisation import Used
from policies.drift import Drift
from policies.utilisation import LocalUse

# What the lines of a group add up to, in the order of the fields of `report.Line`.
_SUMS: Final = """
    sum(requests), sum(prompt_tokens), sum(completion_tokens), sum(image_tokens),
    sum(posted_nano), sum(saved_nano),
    sum(CASE state WHEN 'unreconciled' THEN lines WHEN 'correction' THEN -lines END)
"""
QUARTER_MS: Final = 900_000  # every zone's midnight is at a quarter of an hour of UTC
_GROUPS: Final = {
    "backend": "site || ':' || target",
    "tenant": "tenant",
    "model": "model",
    "label": "coalesce(nullif(label, ''), 'none')",
    "reason": "reason",
    "day": f"at_ms // {QUARTER_MS}",
}
# The rules of `LocalUse.plus` and `Drift.plus`. A line that sums up forgotten rows has their time
# and their money; which of them had pictures it cannot say.
_USES: Final = """
    SELECT target, sum(lines), sum(1000 * slot_ms // greatest(1, coalesce(slots, 1))),
           sum(posted_nano), sum(marginal_nano), min(at_ms)
    FROM rows WHERE site = 'local' GROUP BY target
"""
_DRIFTS: Final = """
    SELECT site || ':' || target AS part, count(*), sum(image_tokens_expected), sum(image_tokens)
    FROM rows WHERE stream_id <> '' AND image_tokens_expected > 0 AND image_tokens > 0
    GROUP BY part
"""
ARRIVAL_SLACK_MS: Final = 86_400_000  # between a request's id and its row's moment of arrival


class Query:
    """The rows of some books between two moments. Use it in a `with`.

    since_ms, until_ms: of arrival, milliseconds since 1970; None: no bound. tenant: whose alone.
    """

    def __init__(
        self,
        archive: Files | None,
        cursor: str | None,
        hot: Sequence[Entry] = (),
        *,
        since_ms: int | None = None,
        until_ms: int | None = None,
        tenant: str | None = None,
    ) -> None:
        """Reads the list of files, not their rows. Raises ArchiveError."""
        found = current(archive.list(), cursor) if archive is not None else []
        counted = between(found, since_ms, until_ms)
        self.files = len(counted)
        self._db = duckdb.connect(":memory:")
        try:
            self._db.execute("SET enable_external_access = false")
            self._db.execute("SET python_enable_replacements = false")
            self._db.register("hot", table_of(map(to_line, hot)))
            sides = ["SELECT * FROM hot"]
            if archive is not None and counted:
                self._db.register("archived", archive.dataset(counted))
                sides.append("SELECT * FROM archived")
            bounds = {"at_ms >= ": since_ms, "at_ms < ": until_ms}
            wanted = [f"{part}{int(ms)}" for part, ms in bounds.items() if ms is not None]
            if tenant is not None:
                wanted.append("tenant = '" + tenant.replace("'", "''") + "'")
            where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
            parts = " UNION ALL ".join(side + where for side in sides)
            self._db.execute(f"CREATE VIEW rows AS {parts}")
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Query:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    # ------------------------------------------------------------ sums

    def sums(self) -> tuple[int, int]:
        """How many rows there are, and what they posted."""
        (found,) = self._ask("SELECT sum(lines), sum(posted_nano) FROM rows").fetchall()
        return int(found[0] or 0), int(found[1] or 0)

    def report(self, *, by: str, zone: ZoneInfo) -> Report:
        """The same as `report.summarise` over the same rows. Raises KeyError for an unknown by."""
        # the name of a group and the sums are ours; nothing of a caller's is in this text
        asked = f"SELECT {_GROUPS[by]} AS part, {_SUMS} FROM rows GROUP BY part"  # noqa: S608
        lines: dict[str, Line] = {}
        total = Line(group="total")
        for part, *figures in self._ask(asked).fetchall():
            name = day_of(part * QUARTER_MS, zone) if by == "day" else str(part)
            line = lines.setdefault(name, Line(group=name))
            for each in (line, total):
                each.gain(*(int(figure or 0) for figure in figures))
        return Report(by=by, lines=[lines[name] for name in sorted(lines)], total=total)

    def used(self) -> Used:
        """The same as `utilisation.used` over the same rows."""
        uses, firsts = [], []
        for target, *figures, first_ms in self._ask(_USES).fetchall():
            answers, busy_us, carried, marginal = (int(figure or 0) for figure in figures)
            uses.append(
                LocalUse(
                    target=target,
                    answers=answers,
                    busy_us=busy_us,
                    carried_nano=carried,
                    marginal_nano=marginal,
                )
            )
            firsts.append(int(first_ms))
        uses.sort(key=lambda use: use.target)
        return Used(uses=uses, first_ms=min(firsts, default=None))

    def drift(self) -> list[Drift]:
        """The same as `drift.image_drift` over the same rows, but for those that are forgotten."""
        found = [
            Drift(target=part, answers=int(n), expected=int(expected), counted=int(counted))
            for part, n, expected, counted in self._ask(_DRIFTS).fetchall()
        ]
        return sorted(found, key=lambda drift: drift.target)

    # ------------------------------------------------------------ rows

    def rows(self) -> Iterator[Row]:
        """Every row in the order of arrival. Lines that sum up forgotten rows are none."""
        for line in self._lines(
            "SELECT * FROM rows WHERE stream_id <> '' ORDER BY at_ms, stream_id"
        ):
            yield to_row(line)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every line in the order of arrival, with all columns; also those that sum up."""
        yield from self._lines("SELECT * FROM rows ORDER BY at_ms, stream_id")

    def find(self, request_id: str) -> list[Row]:
        """The rows of one request, first attempt first."""
        asked = "SELECT * FROM rows WHERE request_id = ? ORDER BY attempt"
        return [to_row(line) for line in self._lines(asked, request_id)]

    def _lines(self, asked: str, *values: object) -> Iterator[dict[str, Any]]:
        try:
            for batch in self._db.sql(asked, params=list(values)).to_arrow_reader():
                yield from batch.to_pylist()
        except (duckdb.Error, OSError) as error:
            raise ArchiveError(f"the archive cannot be read: {error}") from error

    def ask(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Any question in SQL to the view `rows`: the names of the columns, and the answer.
        Raises ArchiveError with DuckDB's words when it does not understand."""
        try:
            found = self._db.execute(sql)
            if found is None:  # nothing but a comment
                raise ArchiveError("no question was asked")
            return [column[0] for column in found.description or ()], found.fetchall()
        except duckdb.Error as error:
            raise ArchiveError(str(error)) from error

    def table(self) -> Any:
        """Everything as an Arrow table, in the order of arrival."""
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        asked = f"SELECT {names} FROM rows ORDER BY at_ms, stream_id"  # noqa: S608 - our own names
        try:
            return self._db.sql(asked).to_arrow_table()
        except (duckdb.Error, OSError) as error:
            raise ArchiveError(f"the archive cannot be read: {error}") from error

    def _ask(self, sql: str) -> Any:
        try:
            return self._db.execute(sql)
        except (duckdb.Error, OSError) as error:
            raise ArchiveError(f"the archive cannot be read: {error}") from error


def window_of(request_id: str) -> tuple[int | None, int | None]:
    """When a request can have arrived, by its id, so that only the files of those days are read.
    An id that was not made here says nothing."""
    digits = request_id.removeprefix("yz-")
    if len(digits) != 32 or digits == request_id:
        return None, None
    try:
        ms = int(digits[:12], 16)
    except ValueError:
        return None, None
    return ms - ARRIVAL_SLACK_MS, ms + ARRIVAL_SLACK_MS
