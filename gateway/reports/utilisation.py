"""The rows of local answers as use of the servers, over a time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from gateway.ledger.rows import Row
from policies.server_cost import ServerRate
from policies.types import Site
from policies.utilisation import LocalUse


class Line(msgspec.Struct, kw_only=True):
    """One worker, or all of them. Money in nano-CNY; utilisation: share of the time, 0 to 1.

    cost_nano, unused_nano: None where only some of the rows were looked at.
    """

    target: str
    answers: int
    busy_s: float
    utilisation: float
    cost_nano: int | None
    carried_nano: int
    marginal_nano: int
    unused_nano: int | None


class Utilisation(msgspec.Struct, kw_only=True):
    """from_ms, to_ms: the time that was looked at. servers: how many that time counts for."""

    from_ms: int
    to_ms: int
    servers: int
    rate: ServerRate
    lines: list[Line]
    total: Line


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """Local rows added up by worker. first_ms: arrival of the first one; None: there is none."""

    uses: list[LocalUse]
    first_ms: int | None


async def used(rows: AsyncIterator[Row]) -> Used:
    """Adds up the local ones of some rows."""
    found: dict[str, LocalUse] = {}
    first_ms: int | None = None
    async for row in rows:
        if row.site is not Site.LOCAL:
            continue
        first_ms = row.at_ms if first_ms is None else min(first_ms, row.at_ms)
        use = found.get(row.target, LocalUse(target=row.target))
        found[row.target] = use.plus(
            slot_ms=row.slot_ms,
            slots=row.slots,
            posted_nano=row.posted_nano,
            marginal_nano=row.marginal_nano,
        )
    return Used(uses=[found[name] for name in sorted(found)], first_ms=first_ms)


def utilisation(
    of: Used,
    *,
    rate: ServerRate,
    workers: int,
    since_ms: int | None,
    until_ms: int,
    whole: bool = True,
) -> Utilisation:
    """Use of the servers over a time.

    since_ms None: from the first local row on.   workers: how many there are; the total counts
    also those that nobody asked. A worker that was not there all the time counts as if it had been.
    whole: whether these are all rows of the time; what the servers cost, and what of it nobody
    used, cannot be said from those of one tenant.
    """
    first_ms = until_ms if of.first_ms is None else min(of.first_ms, until_ms)
    from_ms = first_ms if since_ms is None else since_ms
    window_ms = max(0, until_ms - from_ms)
    servers = max(workers, len(of.uses))
    total = LocalUse(
        target="total",
        answers=sum(use.answers for use in of.uses),
        busy_us=sum(use.busy_us for use in of.uses),
        carried_nano=sum(use.carried_nano for use in of.uses),
        marginal_nano=sum(use.marginal_nano for use in of.uses),
    )
    return Utilisation(
        from_ms=from_ms,
        to_ms=until_ms,
        servers=servers,
        rate=rate,
        lines=[_line(use, rate, window_ms, whole) for use in of.uses],
        total=_line(total, rate, window_ms * servers, whole),
    )


def _line(use: LocalUse, rate: ServerRate, window_ms: int, whole: bool) -> Line:
    """window_ms: of server time, so that of several servers counts several times."""
    return Line(
        target=use.target,
        answers=use.answers,
        busy_s=use.busy_us / 1e6,
        utilisation=use.utilisation(window_ms),
        cost_nano=use.whole_nano(rate, window_ms) if whole else None,
        carried_nano=use.carried_nano,
        marginal_nano=use.marginal_nano,
        unused_nano=use.unused_nano(rate, window_ms) if whole else None,
    )
