"""The books against the bill: what was booked, what was billed, and what explains the difference.

Three things stand between the two, when both are right:

    clocks      a request that ended near the end of a period may be billed in the next or the one
                before: `policies.bill_periods` moves such rows when that makes both periods right
    holds       a row that nobody settled was booked at its bound; what it really was is left over
                in the bill and in Ark's own count: `policies.bill_holds` takes it from there
    rounding    items have six decimals; a difference of one of the last is none

Whatever is then still different is a finding, and `bill.Sums` says that nothing was lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from policies.bill import (
    KINDS,
    NOTHING,
    ROUNDING_NANO,
    Billed,
    Booked,
    Counted,
    Finding,
    Lane,
    Open,
    Options,
    Prices,
    Reconciled,
    Sheet,
    Status,
    Sums,
    Three,
    hour,
    plus,
)
from policies.bill_holds import Holds
from policies.bill_periods import place_rows

_Laned = TypeVar("_Laned", Booked, Open, Billed, Counted)


def reconcile(
    booked: Iterable[Booked],
    holds: Iterable[Open],
    billed: Iterable[Billed],
    counted: Iterable[Counted],
    *,
    prices: Prices,
    options: Options,
) -> Reconciled:
    """Compares the books with the bill of a time, lane by lane.

    booked, holds: rows that ended within `options`, and near its edges or beyond.   billed: items
    of the same time.   counted: by the hour; without them (`options.counted` false) the bill alone
    tells what open holds were. Only what lies within `options` is compared; what lies beyond helps
    to place what is at its edges.
    """
    rows, open_rows = _by_lane(booked), _by_lane(holds)
    items, counts = _by_lane(billed), _by_lane(counted)
    total = _Total()
    for lane in sorted(rows.keys() | open_rows.keys() | items.keys() | counts.keys()):
        total.add(
            _Lane(lane, items.get(lane, ()), counts.get(lane, ()), options),
            rows.get(lane, ()),
            open_rows.get(lane, ()),
            prices,
        )
    return total.done()


class _Lane:
    """One lane under way."""

    def __init__(
        self, lane: Lane, items: Sequence[Billed], counts: Sequence[Counted], options: Options
    ) -> None:
        self.lane, self.options = lane, options
        self.sheet = Sheet()
        for item in items:
            place = item.place
            self.sheet[place].bill(item)
        self.counted = {each.hour_ms: each.tokens for each in counts}

    def booked_by_hour(self) -> dict[int, Three]:
        found: dict[int, Three] = {}
        for place, cell in self.sheet.items():
            at = hour(place.period_ms)
            found[at] = plus(found.get(at, NOTHING), cell.used)
        return found


class _Total:
    """What all lanes together come to."""

    def __init__(self) -> None:
        self._matched = 0
        self._findings: list[Finding] = []
        self._holds: list[Holds] = []
        self._billed = self._booked = self._rounding = self._discount = self._resolved = 0

    def add(self, at: _Lane, rows: Sequence[Booked], holds: Sequence[Open], prices: Prices) -> None:
        options, sheet = at.options, at.sheet
        place_rows(rows, sheet, options.slack_ms)
        inside = [cell for place, cell in sheet.items() if options.covers(place.period_ms)]
        self._booked += sum(sum(cell.booked_nano) for cell in inside)
        opened = Holds(sheet, at.counted, prices, options)
        opened.settle(at.lane, holds)
        self._holds.append(opened)
        self._resolved += sum(
            sum(each.nano) for each in opened.resolved if options.covers(each.period_ms)
        )
        for place, cell in sheet.items():
            if options.covers(place.period_ms):
                self._billed += sum(cell.billed_nano)
                self._discount += sum(cell.billed_nano) - cell.payable_nano
        matched, rounding, findings = compare(at.lane, sheet, options)
        self._matched += matched
        self._rounding += rounding
        self._findings += findings + opened.findings
        if options.counted:
            quiet = {h: t for h, t in at.booked_by_hour().items() if h not in opened.hours}
            counts = {h: t for h, t in at.counted.items() if h not in opened.hours}
            self._findings += usage_findings(at.lane, quiet, counts, options)

    def done(self) -> Reconciled:
        resolved = [each for holds in self._holds for each in holds.resolved]
        disputed = [each for holds in self._holds for each in holds.disputed]
        findings = sorted(self._findings, key=lambda f: (f.period_ms, f.lane, f.tier, f.kind))
        return Reconciled(
            matched=self._matched,
            findings=tuple(findings),
            resolved=tuple(resolved),
            disputed=tuple(disputed),
            sums=Sums(
                billed=self._billed,
                booked=self._booked,
                resolved=self._resolved,
                disputed=sum(holds.disputed_nano for holds in self._holds),
                findings=sum(finding.nano for finding in findings),
                rounding=self._rounding,
                discount=self._discount,
            ),
        )


def _by_lane(
    things: Iterable[_Laned],
) -> dict[Lane, list[_Laned]]:
    found: dict[Lane, list[_Laned]] = {}
    for thing in things:
        found.setdefault(thing.lane, []).append(thing)
    return found


def compare(lane: Lane, sheet: Sheet, options: Options) -> tuple[int, int, list[Finding]]:
    """How many items agree, what rounding left, and what does not agree."""
    matched = rounding = 0
    found = []
    for place, cell in sorted(sheet.items()):
        if not options.covers(place.period_ms):
            continue
        for i, kind in enumerate(KINDS):
            booked, billed = cell.booked[i], cell.billed[i]
            apart = cell.billed_nano[i] - cell.booked_nano[i]
            allowed = ROUNDING_NANO * max(1, cell.items[i])
            if booked == billed and abs(apart) <= allowed:
                matched += bool(booked)
                rounding += apart
                continue
            found.append(
                Finding(
                    status=_status(booked, billed),
                    period_ms=place.period_ms,
                    lane=lane,
                    tier=place.tier,
                    kind=kind,
                    booked_tokens=booked,
                    billed_tokens=billed,
                    booked_nano=cell.booked_nano[i],
                    billed_nano=cell.billed_nano[i],
                )
            )
    return matched, rounding, found


def _status(booked: int, billed: int) -> Status:
    if booked == billed:
        return Status.PRICE
    if not billed:
        return Status.MISSING
    return Status.DRIFT if booked else Status.EXTRA


def usage_findings(
    lane: Lane, booked: Mapping[int, Three], counted: Mapping[int, Three], options: Options
) -> list[Finding]:
    """Hours without an open hold in which Ark counted other tokens than the books."""
    found = []
    for hour_ms in sorted(booked.keys() | counted.keys()):
        ours, theirs = booked.get(hour_ms, NOTHING), counted.get(hour_ms, NOTHING)
        if ours == theirs or not options.covers(hour_ms):
            continue
        for i, kind in enumerate(KINDS):
            if ours[i] != theirs[i]:
                found.append(
                    Finding(
                        status=Status.USAGE,
                        period_ms=hour_ms,
                        lane=lane,
                        tier="",
                        kind=kind,
                        booked_tokens=ours[i],
                        billed_tokens=theirs[i],
                        booked_nano=0,
                        billed_nano=0,
                    )
                )
    return found
