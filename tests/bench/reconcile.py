"""A synthetic month against its bill: `make proof-reconcile`.

Requests are priced by the gateway's cards and billed by the emulator's own reckoning, faster than
real time; one item in a hundred of the bill is then wrong (left out, changed, billed twice, or
somebody else's). The bill is read through the vendor's SDK, and every day is reconciled. It must
come out that every wrong item is found, nothing else is reported, what open requests were is booked
exactly, and books and bill are the same money to the cent.

The last line is one JSON object. The exit code is 1 when something of that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import date
from typing import Any

from backends.ark.control import ArkControl, Bill
from gateway.ledger.rows import Row
from gateway.prices.cards import load_book
from gateway.reports.reconcile import Day, How, Pulled, corrections, reconcile_day
from policies.bill import Status
from tests.gateway.month import ENDPOINTS, Month

_ELEMENT = {"input": "input", "cached": "cached_input", "output": "output"}
CENT_NANO = 10_000_000


class Verdict:
    """What all days together came to."""

    def __init__(self, month: Month) -> None:
        self.month = month
        self.days: list[Day] = []
        self.corrections: list[Row] = []
        self._corrected: set[str] = set()

    def add(self, day: Day) -> None:
        self.days.append(day)
        for row in corrections(day):
            if row.hold_id not in self._corrected:  # as the ledger does: once for each hold
                self._corrected.add(row.hold_id)
                self.corrections.append(row)

    def figures(self) -> dict[str, Any]:
        """Everything that is claimed, as numbers."""
        findings = [each for day in self.days for each in day.result.findings]
        injected = self.month.emulator.bill.injected()
        wanted = {(each.start_s, each.model, each.element) for each in injected}
        found = {
            (each.period_ms // 1000, each.lane.model, _ELEMENT[each.kind]) for each in findings
        }
        bill = self.month.emulator.bill.details(0, 2**40)
        billed = int(sum(row.amount for row in bill) * 10**9)
        books = sum(row.posted_nano for row in (*self.month.rows, *self.corrections))
        off = sum(each.nano for each in findings)
        rounding = sum(day.result.sums.rounding for day in self.days)
        unresolved = {hold for hold in self.month.truth if hold not in self._corrected}
        return {
            "requests": len(self.month.rows),
            "days": len(self.days),
            "bill_items": len(bill),
            "matched": sum(day.result.matched for day in self.days),
            "faults_injected": len(wanted),
            "faults_found": len(wanted & found),
            "faults_missed": len(wanted - found),
            "false_findings": len(found - wanted),
            "by_status": dict(Counter(each.status.value for each in findings)),
            "open_requests": len(self.month.truth),
            "resolved": len(self._corrected),
            "unresolved": len(unresolved),
            "resolved_wrong_cny": self._wrong_nano() / 1e9,
            "billed_cny": billed / 1e9,
            "books_cny": books / 1e9,
            "findings_cny": off / 1e9,
            "rounding_cny": rounding / 1e9,
            "apart_nano": billed - books - off - rounding,
        }

    def _wrong_nano(self) -> int:
        """How far what was resolved is from what it was. Requests that ended in the same cell of
        the same hour cannot be told apart: then only their sum is known, and is compared."""
        alone = together = 0
        for day in self.days:
            for each in day.result.resolved:
                off = sum(each.nano) - self.month.truth[each.hold.hold_id]
                if each.by == "share":
                    together += off
                else:
                    alone += abs(off)
        return alone + abs(together)


async def run(month: Month, *, tell: bool = False) -> Verdict:
    """Reads the bill day by day and reconciles it."""
    url = await month.emulator.start()
    control = ArkControl(access_key="AKTEST", secret_key="secret", host=url.removesuffix("/api/v3"))
    arrivals = [row.at_ms for row in month.rows]
    kept: dict[date, Pulled] = {}

    async def pull(day: date) -> Pulled:
        if day not in month.days:
            return Pulled(bill=Bill(), splits=Bill(), usage=[])
        if day not in kept:
            kept[day] = Pulled(
                bill=await control.bill(day),
                splits=await control.splits(day),
                usage=await control.usage(day),
            )
        return kept[day]

    async def rows(from_ms: int, to_ms: int) -> AsyncIterator[Row]:
        first, last = (bisect.bisect_left(arrivals, at) for at in (from_ms, to_ms))
        for row in month.rows[first:last]:
            yield row

    verdict = Verdict(month)
    how = How(book=month.book, endpoints=ENDPOINTS)
    try:
        for day in month.days:
            found = await reconcile_day(day, rows, pull, how)
            verdict.add(found)
            if tell:
                result = found.result
                print(
                    f"{day}  {result.matched:>6} items match, {len(result.findings):>3} do not, "
                    f"{len(result.resolved):>3} open requests resolved",
                    flush=True,
                )
    finally:
        await month.emulator.close()
    return verdict


def holds(figures: dict[str, Any]) -> bool:
    """Whether everything that is promised is true."""
    return (
        figures["faults_found"] == figures["faults_injected"]
        and figures["false_findings"] == 0
        and figures["unresolved"] == 0
        and figures["resolved_wrong_cny"] == 0
        and abs(figures["apart_nano"]) < CENT_NANO
        and Status.DISPUTED.value not in figures["by_status"]
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="proof-reconcile", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--requests", type=int, default=40_000)
    add("--days", type=int, default=31)
    add("--faults", type=float, default=0.01, help="share of the bill's items that are wrong")
    add("--seed", type=int, default=20_261_001)
    args = parser.parse_args(argv)
    began_s = time.monotonic()
    month = Month(
        load_book(), seed=args.seed, requests=args.requests, days=args.days, faults=args.faults
    )
    figures = asyncio.run(run(month, tell=True)).figures()
    figures["seconds"] = round(time.monotonic() - began_s, 1)
    width = max(map(len, figures))
    print()
    for name, value in figures.items():
        print(f"{name:<{width}}  {value}")
    ok = holds(figures)
    print(json.dumps({"proof": "reconcile", "ok": ok, "seed": args.seed, **figures}))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
