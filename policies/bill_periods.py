"""Rows of the books put into the periods of the bill, although two clocks never agree.

A request is billed in the period in which it ended by Ark's clock. One that ended within the slack
of a boundary by ours may stand on either side of it. Which rows are moved across is decided for a
whole run of boundaries at once, because a period may lose a row at its end and gain one at its
start: of all ways to move, the one that leaves the fewest tokens different from the bill is taken,
and of equal ones the one that moves the fewest rows. A row that was never billed so stays where it
is, and is found missing there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

from policies.bill import (
    NOTHING,
    PERIOD_MS,
    Booked,
    Place,
    Sheet,
    Three,
    distance,
    minus,
    period,
    plus,
)

# Rows of one lane and tier at one boundary whose every subset is tried: 64 of them. Of more, those
# that another clock would put on the other side together, and each alone.
TRIED_MAX = 6


class Way(NamedTuple):
    """Rows that cross one boundary, and the tokens that so get from its left to its right."""

    moved: tuple[Booked, ...]
    across: Three


class Path(NamedTuple):
    """The best ways up to a boundary: tokens that differ, rows moved, and the way at each."""

    apart: int
    moved: int
    ways: tuple[Way, ...]


def place_rows(rows: Iterable[Booked], sheet: Sheet, slack_ms: int) -> None:
    """Books every row of a lane in its cell; the bill must be in the sheet already."""
    near: dict[str, dict[int, list[Booked]]] = {}
    for row in rows:
        sheet[Place(period(row.ended_ms), row.tier)].book(row.tokens, row.nano, row.folded)
        boundary_ms = _boundary(row.ended_ms, slack_ms)
        if boundary_ms is not None and row.tokens != NOTHING:
            near.setdefault(row.tier, {}).setdefault(boundary_ms, []).append(row)
    for tier, boundaries in near.items():
        for run in _runs(sorted(boundaries)):
            _fit(tier, run, boundaries, sheet)


def _boundary(ended_ms: int, slack_ms: int) -> int | None:
    """The boundary that a moment is near to, if any."""
    start = period(ended_ms)
    if ended_ms - start <= slack_ms:
        return start
    return start + PERIOD_MS if start + PERIOD_MS - ended_ms <= slack_ms else None


def _runs(boundaries: list[int]) -> Iterator[list[int]]:
    """Boundaries that follow each other without a gap; what happens at one matters to the next."""
    run: list[int] = []
    for boundary_ms in boundaries:
        if run and boundary_ms != run[-1] + PERIOD_MS:
            yield run
            run = []
        run.append(boundary_ms)
    if run:
        yield run


def _fit(tier: str, run: list[int], near: dict[int, list[Booked]], sheet: Sheet) -> None:
    """Moves rows at the boundaries of a run; the periods between them are looked at once each."""
    if not any(_left(sheet, at + off, tier) != NOTHING for at in run for off in (-PERIOD_MS, 0)):
        return  # as it stands, everything matches
    paths = {NOTHING: Path(0, 0, ())}  # by what the last boundary has sent to its right
    for boundary_ms in run:
        left = _left(sheet, boundary_ms - PERIOD_MS, tier)
        better: dict[Three, Path] = {}
        for way in _ways(near[boundary_ms], boundary_ms):
            for came, path in paths.items():
                apart = path.apart + distance(plus(left, way.across), came)
                found = Path(apart, path.moved + len(way.moved), (*path.ways, way))
                known = better.get(way.across)
                if known is None or found[:2] < known[:2]:
                    better[way.across] = found
        paths = better
    last = _left(sheet, run[-1], tier)
    best = min(
        (path._replace(apart=path.apart + distance(last, came)) for came, path in paths.items()),
        key=lambda path: path[:2],
    )
    for boundary_ms, way in zip(run, best.ways, strict=True):
        for row in way.moved:
            _move(row, sheet, Place(boundary_ms - PERIOD_MS, tier), Place(boundary_ms, tier))


def _ways(near: list[Booked], boundary_ms: int) -> Iterator[Way]:
    """What may happen at a boundary; nothing, to begin with."""
    for moved in _subsets(sorted(near, key=lambda row: row.ended_ms), boundary_ms):
        across = NOTHING
        for row in moved:
            join = plus if row.ended_ms < boundary_ms else minus
            across = join(across, row.tokens)
        yield Way(tuple(moved), across)


def _subsets(near: list[Booked], boundary_ms: int) -> Iterator[Iterable[Booked]]:
    if len(near) <= TRIED_MAX:
        for size in range(len(near) + 1):
            yield from combinations(near, size)
        return
    early = [row for row in near if row.ended_ms < boundary_ms]
    late = [row for row in near if row.ended_ms >= boundary_ms]
    yield ()
    yield from (early[i:] for i in range(len(early)))
    yield from (late[: i + 1] for i in range(len(late)))
    yield from ([row] for row in near)


def _move(row: Booked, sheet: Sheet, before: Place, after: Place) -> None:
    """To the other side of its boundary."""
    home_is_before = period(row.ended_ms) == before.period_ms
    out, into = (before, after) if home_is_before else (after, before)
    sheet[out].unbook(row.tokens, row.nano, row.folded)
    sheet[into].book(row.tokens, row.nano, row.folded)


def _left(sheet: Sheet, period_ms: int, tier: str) -> Three:
    """Billed and not booked."""
    return sheet[Place(period_ms, tier)].left
