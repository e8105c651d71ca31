"""The rows of local answers as use of the servers, over a time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from gateway.ledger.rows import Row
from policies.server_cost import ServerRate
from policies.types import Site
from policies.utilisation import LocalUse


class Line(msgspec.Struct, kw_only=True):
    """One worker, or all of them. Money in nano-CNY; utilisation: share of the time, 0 to 1."""

    target: str
    answers: int
    busy_s: float
    utilisation: float
    cost_nano: int
    carried_nano: int
    marginal_nano: int
    unused_nano: int


class Utilisation(msgspec.Struct, kw_only=True):
    """from_ms, to_ms: the time that was looked at."""

    from_ms: int
    to_ms: int
    lines: list[Line]
    total: Line


async def utilisation(
    rows: AsyncIterator[Row],
    *,
    rate: ServerRate,
    workers: int,
    since_ms: int | None,
    until_ms: int,
) -> Utilisation:
    """Adds up local rows by worker.

    since_ms None: from the first local row on.   workers: how many there are; the total counts
    also those that nobody asked. A worker that was not there all the time counts as if it had been.
    """
    found: dict[str, LocalUse] = {}
    first_ms = until_ms
    async for row in rows:
        if row.site is not Site.LOCAL:
            continue
        first_ms = min(first_ms, row.at_ms)
        use = found.get(row.target, LocalUse(target=row.target))
        found[row.target] = use.plus(
            slot_ms=row.slot_ms,
            slots=row.slots,
            posted_nano=row.posted_nano,
            marginal_nano=row.marginal_nano,
        )
    from_ms = first_ms if since_ms is None else since_ms
    window_ms = max(0, until_ms - from_ms)
    servers = max(workers, len(found))
    whole = LocalUse(
        target="total",
        answers=sum(use.answers for use in found.values()),
        busy_us=sum(use.busy_us for use in found.values()),
        carried_nano=sum(use.carried_nano for use in found.values()),
        marginal_nano=sum(use.marginal_nano for use in found.values()),
    )
    return Utilisation(
        from_ms=from_ms,
        to_ms=until_ms,
        lines=[_line(found[name], rate, window_ms) for name in sorted(found)],
        total=_line(whole, rate, window_ms * servers),
    )


def _line(use: LocalUse, rate: ServerRate, window_ms: int) -> Line:
    """window_ms: of server time, so that of several servers counts several times."""
    return Line(
        target=use.target,
        answers=use.answers,
        busy_s=use.busy_us / 1e6,
        utilisation=use.utilisation(window_ms),
        cost_nano=use.whole_nano(rate, window_ms),
        carried_nano=use.carried_nano,
        marginal_nano=use.marginal_nano,
        unused_nano=use.unused_nano(rate, window_ms),
    )
