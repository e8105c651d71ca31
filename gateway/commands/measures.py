"""`yuzui report --drift` and `--utilisation`: figures over the same rows as the report's."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from gateway.admin.client import AdminClient
from gateway.archive.books import marks_of, open_books
from gateway.archive.extra import HOW, installed
from gateway.commands.tables import table
from gateway.config import Config
from gateway.reports.utilisation import Line, Utilisation, utilisation
from policies.budget import cny
from policies.drift import Drift


class Source(StrEnum):
    """Which rows are read, in words."""

    BOTH = "Rows in Redis and rows in the archive."
    NO_ARCHIVE = "Rows in Redis; none are archived."
    HOT_ONLY = f"Rows in Redis alone. Others are archived; to read them too, {HOW}."


def drift(client: AdminClient, config: Config, days: dict[str, int], tenant: str | None) -> Drifts:
    """Tokens of pictures by their rule and as counted. Raises AdminError, BooksError."""
    if (source := _source(client)) is Source.BOTH:
        with open_books(config, client, tenant=tenant, **_bounds(days)) as books:
            return Drifts(found=books.drift(), source=source)
    found = client.call("GET", "/admin/drift", query=_query(days, tenant))
    return Drifts(found=msgspec.convert(found, list[Drift]), source=source)


def use(client: AdminClient, config: Config, days: dict[str, int], tenant: str | None) -> Use:
    """How much of the servers was used. Raises AdminError, BooksError."""
    zone = ZoneInfo(config.timezone)
    if (source := _source(client)) is not Source.BOTH:
        found = client.call("GET", "/admin/utilisation", query=_query(days, tenant))
        return Use(found=msgspec.convert(found, Utilisation), source=source, zone=zone)
    # what a server costs, how many there are and what time it is, the gateway knows; of rows that
    # arrive from now on there are next to none
    known = msgspec.convert(
        client.call("GET", "/admin/utilisation", query={"since": str(int(1000 * time.time()))}),
        Utilisation,
    )
    with open_books(config, client, tenant=tenant, **_bounds(days)) as books:
        made = utilisation(
            books.used(),
            rate=known.rate,
            workers=known.servers,
            since_ms=days.get("since"),
            until_ms=min(days.get("until", known.to_ms), known.to_ms),
            whole=tenant is None,
        )
    return Use(found=made, source=source, zone=zone)


def _source(client: AdminClient) -> Source:
    if marks_of(client).cursor is None:
        return Source.NO_ARCHIVE
    return Source.BOTH if installed() else Source.HOT_ONLY


def _bounds(days: dict[str, int]) -> dict[str, int]:
    return {f"{name}_ms": ms for name, ms in days.items()}


def _query(days: dict[str, int], tenant: str | None) -> dict[str, str]:
    query = {name: str(ms) for name, ms in days.items()}
    return query if tenant is None else {**query, "tenant": tenant}


class Drifts(msgspec.Struct):
    """What was found, and from which rows."""

    found: list[Drift]
    source: Source

    @property
    def alarming(self) -> bool:
        return any(each.alarming for each in self.found)

    def show(self, form: str) -> None:
        """Prints it. form: table, csv or json."""
        if form == "json":
            plain = [{**msgspec.structs.asdict(d), "alarming": d.alarming} for d in self.found]
            _print_json(plain, self.source)
            return
        if form == "csv":
            _print_csv(
                ["backend", "answers", "expected", "counted", "share", "alarming"],
                [
                    [d.target, d.answers, d.expected, d.counted, f"{d.share:.6f}", int(d.alarming)]
                    for d in self.found
                ],
            )
            return
        head = ["backend", "answers", "expected", "counted", "drift", ""]
        rows = [
            [
                each.target,
                str(each.answers),
                str(each.expected),
                str(each.counted),
                f"{100 * each.share:+.2f} %",
                "alarm" if each.alarming else "",
            ]
            for each in self.found
        ]
        print(table(head, rows) if rows else "no answers with pictures whose rule is known")
        print(f"\n{self.source}")


class Use(msgspec.Struct):
    """What was found, from which rows; in zone its times are shown."""

    found: Utilisation
    source: Source
    zone: ZoneInfo

    def show(self, form: str) -> None:
        """Prints it. form: table, csv or json."""
        if form == "json":
            _print_json(self.found, self.source)
            return
        lines = (*self.found.lines, self.found.total)
        if form == "csv":
            _print_csv(_USE_COLUMNS, [_use_values(each) for each in lines])
            return
        head = ["server", "answers", "busy h", "used", "cost CNY", "carried", "unused", "marginal"]
        print(table(head, [_use_cells(each) for each in lines]))
        first, last = (self._moment(ms) for ms in (self.found.from_ms, self.found.to_ms))
        print(f"\nFrom {first} to {last}, servers: {self.found.servers}. {self.source}")

    def _moment(self, ms: int) -> str:
        at = datetime.fromtimestamp(ms / 1000, UTC).astimezone(self.zone)
        return at.isoformat(sep=" ", timespec="minutes")


_USE_COLUMNS = (
    "server", "answers", "busy_s", "utilisation", "cost_cny", "carried_cny", "unused_cny",
    "marginal_cny",
)  # fmt: skip


def _use_values(line: Line) -> list[Any]:
    return [line.target, line.answers, line.busy_s, f"{line.utilisation:.6f}", *_money(line, "")]


def _use_cells(line: Line) -> list[str]:
    busy, used = f"{line.busy_s / 3600:.3f}", f"{100 * line.utilisation:.2f} %"
    return [line.target, str(line.answers), busy, used, *_money(line, "-")]


def _money(line: Line, unknown: str) -> list[str]:
    figures = (line.cost_nano, line.carried_nano, line.unused_nano, line.marginal_nano)
    return [unknown if nano is None else cny(nano) for nano in figures]


def _print_json(found: object, source: Source) -> None:
    """What reads the JSON wants no sentence in it; who started the command may need one."""
    print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    if source is Source.HOT_ONLY:
        print(f"yuzui report: {source}", file=sys.stderr)


def _print_csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    print(out.getvalue(), end="")
