"""Ledger rows summed up by backend, tenant, model or day."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec

from gateway.rows import Row, RowState

GROUPS = ("backend", "tenant", "model", "day")


class Line(msgspec.Struct, kw_only=True):
    """One group. Money in nano-CNY. requests: exchanges that ended in this group."""

    group: str
    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    image_tokens: int = 0
    cost_nano: int = 0
    saved_nano: int = 0
    unreconciled: int = 0

    def add(self, row: Row) -> None:
        self.requests += row.final
        self.tokens_in += row.prompt_tokens
        self.tokens_out += row.completion_tokens
        self.image_tokens += row.image_tokens
        self.cost_nano += row.posted_nano
        self.saved_nano += row.saved_nano
        self.unreconciled += row.state is RowState.UNRECONCILED


class Report(msgspec.Struct, kw_only=True):
    """Lines in the order of their names, and their sum."""

    by: str
    lines: list[Line]
    total: Line


async def summarise(rows: AsyncIterator[Row], *, by: str, zone: ZoneInfo) -> Report:
    """Adds up rows. by: one of GROUPS; zone: whose midnights divide the days."""
    lines: dict[str, Line] = {}
    total = Line(group="total")
    async for row in rows:
        name = group_of(row, by, zone)
        line = lines.get(name)
        if line is None:
            line = lines[name] = Line(group=name)
        line.add(row)
        total.add(row)
    return Report(by=by, lines=[lines[name] for name in sorted(lines)], total=total)


def group_of(row: Row, by: str, zone: ZoneInfo) -> str:
    """The group of a row. Raises KeyError for an unknown `by`."""
    match by:
        case "backend":
            return f"{row.site.value}:{row.target}"
        case "tenant":
            return row.tenant
        case "model":
            return row.model
        case "day":
            return datetime.fromtimestamp(row.at_ms / 1000, UTC).astimezone(zone).date().isoformat()
    raise KeyError(by)
