"""Ledger rows summed up by backend, tenant, model, day, label or reason."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec

from gateway.ledger.rows import Row, RowState

GROUPS = ("backend", "tenant", "model", "day", "label", "reason")


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
        self.gain(
            int(row.final),
            row.prompt_tokens,
            row.completion_tokens,
            row.image_tokens,
            row.posted_nano,
            row.saved_nano,
            open_rows(row.state),
        )

    def gain(self, *figures: int) -> None:
        """Adds figures in the order of the fields."""
        for name, figure in zip(self.__struct_fields__[1:], figures, strict=True):
            setattr(self, name, getattr(self, name) + figure)


def open_rows(state: str) -> int:
    """A correction takes away the row that it corrects, which was counted as unreconciled."""
    return int(state == RowState.UNRECONCILED) - int(state == RowState.CORRECTION)


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


def day_of(at_ms: int, zone: ZoneInfo) -> str:
    """The day of a moment in milliseconds since 1970, by the midnights of a zone."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone).date().isoformat()


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
            return day_of(row.at_ms, zone)
        case "label":
            return row.label or "none"
        case "reason":
            return row.reason
    raise KeyError(by)
