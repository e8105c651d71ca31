"""Days of the books against the emulator's bill, read through the vendor's SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from msgspec.structs import replace

from backends.ark.control import Bill, BillRow, UsageRow
from gateway.ledger.rows import Row, RowState
from gateway.prices.cards import load_book
from gateway.reports.reconcile import (
    UNSPLIT,
    Day,
    How,
    Pulled,
    corrections,
    day_range_ms,
    reconcile,
    reconcile_day,
)
from policies.bill import Status
from policies.types import Site
from tests.bench.reconcile import holds, run
from tests.gateway.month import Month

BOOK = load_book()
DAY = date(2026, 11, 25)
START_MS, END_MS = day_range_ms(DAY)
NOON_MS = START_MS + 12 * 3_600_000
MODEL = "doubao-seed-1-6-vision"
HOW = How(book=BOOK, endpoints={"ep-1": f"{MODEL}-250815"})


async def test_two_days_with_wrong_items_reconcile_to_the_cent() -> None:
    """The short form of `make proof-reconcile`: every wrong item found, nothing else reported."""
    month = Month(BOOK, seed=7, requests=500, days=2, faults=0.06)
    figures = (await run(month)).figures()
    assert holds(figures), figures
    assert figures["faults_injected"] >= 20
    assert figures["open_requests"] >= 3
    assert figures["days"] == 2


async def test_that_proof_can_fail() -> None:
    """The positive control: a row that the books have lost is a finding that nobody injected."""
    month = Month(BOOK, seed=7, requests=60, days=1, faults=0.0)
    lost = next(row for row in month.rows if row.state == RowState.FINAL)
    month.rows.remove(lost)
    figures = (await run(month)).figures()
    assert not holds(figures)
    assert figures["false_findings"] > 0


# ---- a few rows by hand


def row(**changes: Any) -> Row:
    base: dict[str, Any] = {
        "request_id": "r1", "attempt": 0, "at_ms": NOON_MS, "tenant": "t", "model": "glm-4.6v",
        "site": Site.CLOUD, "target": f"{MODEL}-250815", "reason": "pool_full",
        "card_version": "ark-2026-10", "tier": "<=32k", "prompt_tokens": 1_000,
        "completion_tokens": 10, "posted_nano": 880_000, "total_ms": 2_000,
    }  # fmt: skip
    return Row(**{**base, **changes})


def item(element: str, tokens: int, **changes: Any) -> BillRow:
    price = {"input": "0.0008", "cached_input": "0.00016", "output": "0.008"}[element]
    cny = (Decimal(price) * tokens / 1000).quantize(Decimal("0.000001"))
    base: dict[str, Any] = {
        "id": element, "start_s": NOON_MS // 1000, "model": MODEL, "service": "online",
        "element": element, "input_over": 0, "output_over": 0, "tokens": tokens,
        "list_cny": cny, "payable_cny": cny,
    }  # fmt: skip
    return BillRow(**{**base, **changes})


BILL = [item("input", 1_000), item("output", 10)]


def counted(prompt: int, cached: int, out: int, **changes: Any) -> UsageRow:
    base: dict[str, Any] = {
        "start_s": NOON_MS // 1000, "model": MODEL, "endpoint": "", "input_tokens": prompt,
        "cached_tokens": cached, "output_tokens": out, "requests": 1,
    }  # fmt: skip
    return UsageRow(**{**base, **changes})


async def compared(
    rows: list[Row],
    bill: list[BillRow],
    *,
    splits: list[BillRow] | None = None,
    usage: list[UsageRow] | None = None,
    others: dict[str, Decimal] | None = None,
) -> Day:
    async def stream() -> AsyncIterator[Row]:
        for each in rows:
            yield each

    pulled = Pulled(
        bill=Bill(rows=bill, others=others or {}), splits=Bill(rows=splits or []), usage=usage
    )
    return await reconcile(DAY, stream(), {DAY: pulled}, HOW)


def statuses(day: Day) -> list[tuple[str, str]]:
    return [(each.status.value, each.kind) for each in day.result.findings]


async def test_a_row_and_its_items_match() -> None:
    found = await compared([row()], BILL, usage=[counted(1_000, 0, 10)])
    assert found.agrees
    assert (found.result.matched, found.off_nano) == (2, 0)
    assert found.result.sums.billed == found.result.sums.booked == 880_000


@pytest.mark.parametrize(
    ("bill", "expected"),
    [
        ([], [("missing", "input"), ("missing", "output")]),
        ([*BILL, item("cached_input", 5)], [("extra", "cached")]),
        ([item("input", 1_001), BILL[1]], [("drift", "input")]),
        ([replace(BILL[0], list_cny=Decimal("0.000900")), BILL[1]], [("price", "input")]),
        ([*BILL, item("input", 7, model="glm-5-2")], [("extra", "input")]),
        (
            [replace(BILL[0], input_over=32_000), BILL[1]],
            [("missing", "input"), ("extra", "input")],
        ),
        ([replace(BILL[0], service="batch"), BILL[1]], [("missing", "input"), ("extra", "input")]),
    ],
)
async def test_each_difference_has_its_name(
    bill: list[BillRow], expected: list[tuple[str, str]]
) -> None:
    found = await compared([row()], bill)
    assert sorted(statuses(found)) == sorted(expected)
    assert not found.agrees
    sums = found.result.sums
    assert sums.billed == sums.booked + sums.findings + sums.rounding


async def test_local_rows_and_rows_of_other_days_are_not_in_the_bill() -> None:
    others = [
        row(request_id="r2", site=Site.LOCAL, target="w1"),
        row(request_id="r3", at_ms=START_MS - 86_400_000),
        row(request_id="r4", at_ms=END_MS + 86_400_000),
        row(request_id="r5", prompt_tokens=0, completion_tokens=0, posted_nano=0),  # refused
    ]
    assert (await compared([row(), *others], BILL)).agrees


async def test_a_discount_is_told_apart_from_a_wrong_price() -> None:
    cheaper = [replace(each, payable_cny=each.list_cny / 2) for each in BILL]
    found = await compared([row()], cheaper)
    assert found.agrees
    assert found.result.sums.discount == 440_000


async def test_other_products_are_named_with_what_they_cost() -> None:
    found = await compared([row()], BILL, others={"ECS": Decimal("1.5")})
    assert found.others == {"ECS": 1_500_000_000}


@pytest.mark.parametrize("wrong", [{"card_version": "ark-1999"}, {"tier": "<=9k"}])
async def test_a_row_that_cannot_be_read_is_named(wrong: dict[str, str]) -> None:
    found = await compared([row(**wrong)], BILL)
    assert found.unread == ("r1.0",)
    assert not found.agrees


async def test_cached_tokens_without_a_price_stand_among_the_input() -> None:
    """The fast rate has no cached price: billed as input, and counted apart by Ark."""
    turbo = "doubao-seed-2-1-turbo"
    fast = row(
        target=f"{turbo}-260628", tier="fast flat", cached_tokens=400, prompt_tokens=1_000,
        completion_tokens=10, service_tier="fast",
    )  # fmt: skip
    bill = [
        item("input", 1_000, model=turbo, service="fast", list_cny=Decimal("0.006")),
        item("output", 10, model=turbo, service="fast", list_cny=Decimal("0.0003")),
    ]
    found = await compared([fast], bill, usage=[counted(1_000, 400, 10, model=turbo)])
    assert found.agrees, statuses(found)


async def test_a_night_price_that_nobody_knew_is_a_difference_in_price() -> None:
    flash = "deepseek-v4-1-flash"
    night = row(target=f"{flash}-260910", tier="peak", flags=("price_hour_unknown",))
    bill = [
        item("input", 1_000, model=flash, list_cny=Decimal("0.001")),
        item("output", 10, model=flash, list_cny=Decimal("0.00004")),
    ]
    found = await compared([night], bill)
    assert statuses(found) == [("price", "input"), ("price", "output")]


# ---- endpoints


async def test_the_split_tells_endpoints_apart() -> None:
    mine, theirs = row(target="ep-1"), row(request_id="r2")
    bill = [item("input", 2_000), item("output", 20)]
    splits = [
        replace(item(element, n), endpoint=endpoint)
        for element, n in (("input", 1_000), ("output", 10))
        for endpoint in ("ep-1", "")
    ]
    assert (await compared([mine, theirs], bill, splits=splits)).agrees
    swapped = [replace(each, endpoint=each.endpoint or "ep-2") for each in splits]
    found = await compared([mine, theirs], bill, splits=swapped)
    assert {(each.status, each.lane.endpoint) for each in found.result.findings} == {
        (Status.MISSING, ""), (Status.EXTRA, "ep-2"),
    }  # fmt: skip


async def test_without_a_split_endpoints_are_one() -> None:
    bill = [item("input", 2_000), item("output", 20)]
    usage = [counted(1_000, 0, 10), counted(1_000, 0, 10, endpoint="ep-1")]
    found = await compared([row(target="ep-1"), row(request_id="r2")], bill, usage=usage)
    assert found.agrees
    assert not found.by_endpoint


async def test_what_the_split_leaves_out_stays_in_sight() -> None:
    splits = [item("input", 600), item("output", 10)]
    found = await compared([row()], BILL, splits=splits)
    lanes = {(each.status, each.lane.endpoint) for each in found.result.findings}
    assert lanes == {(Status.DRIFT, ""), (Status.EXTRA, UNSPLIT)}


# ---- open holds and their corrections


def lost(**changes: Any) -> Row:
    known = {
        "state": RowState.UNRECONCILED, "posted_nano": 5_000_000, "held_nano": 5_000_000,
        "prompt_tokens": 0, "completion_tokens": 0, "tier": "", "drawn": ("c1",),
    }  # fmt: skip
    return row(**{**known, **changes})


async def test_an_open_hold_becomes_a_correction_and_is_matched_from_then_on() -> None:
    usage = [counted(1_000, 0, 10)]
    found = await compared([lost()], BILL, usage=usage)
    assert found.agrees
    assert found.result.sums.resolved == 880_000
    (correction,) = corrections(found)
    assert (correction.hold_id, correction.state) == ("r1.0", RowState.CORRECTION)
    assert correction.posted_nano == 880_000 - 5_000_000
    assert (correction.prompt_tokens, correction.completion_tokens) == (1_000, 10)
    assert (correction.tier, correction.final, correction.drawn) == ("<=32k", False, ())
    again = await compared([lost(), correction], BILL, usage=usage)
    assert again.agrees
    assert not again.result.resolved
    assert again.result.sums.booked == 880_000


async def test_what_a_dead_gateway_left_is_found_where_it_ended() -> None:
    """Only its arrival is known; it was billed two periods later."""
    later = [replace(each, start_s=each.start_s + 600) for each in BILL]
    found = await compared([lost(total_ms=None)], later, usage=[counted(1_000, 0, 10)])
    assert found.agrees
    (correction,) = corrections(found)
    assert correction.total_ms is not None
    again = await compared([lost(total_ms=None), correction], later, usage=[counted(1_000, 0, 10)])
    assert again.agrees


async def test_a_hold_that_was_neither_billed_nor_counted_is_given_back() -> None:
    found = await compared([lost()], [], usage=[])
    (correction,) = corrections(found)
    assert found.agrees
    assert (correction.posted_nano, correction.prompt_tokens) == (-5_000_000, 0)
    assert (await compared([lost(), correction], [], usage=[])).agrees


async def test_the_count_finds_the_wrong_item_beside_an_open_hold() -> None:
    """Billed twice: the bill alone would pass for a longer answer."""
    bill = [BILL[0], item("output", 20)]
    found = await compared([lost()], bill, usage=[counted(1_000, 0, 10)])
    assert statuses(found) == [("drift", "output")]
    assert found.result.sums.resolved == 880_000
    blind = await compared([lost()], bill)
    assert blind.agrees
    assert blind.result.sums.resolved == 960_000


async def test_more_than_was_held_is_not_what_it_was() -> None:
    found = await compared([lost(posted_nano=100_000)], BILL, usage=[counted(1_000, 0, 10)])
    assert [hold.hold_id for hold in found.result.disputed] == ["r1.0"]
    assert not found.agrees
    assert not list(corrections(found))


async def test_tokens_that_only_ark_knows_of_are_a_finding() -> None:
    found = await compared([row()], BILL, usage=[counted(1_500, 0, 10)])
    assert statuses(found) == [("usage", "input")]


# ---- a day that is not over


async def test_only_hours_that_are_billed_for_certain_are_compared() -> None:
    """13:20: what ended after 13:00 may not be billed yet, and an open request is left open."""
    later = row(request_id="r2", at_ms=NOON_MS + 3_700_000)
    open_one = lost(request_id="r3", at_ms=NOON_MS + 3_800_000)
    rows = [row(), later, open_one]

    async def stream() -> AsyncIterator[Row]:
        for each in rows:
            yield each

    pulled = Pulled(bill=Bill(rows=BILL), splits=Bill(), usage=[counted(1_000, 0, 10)])
    how = replace(HOW, until_ms=NOON_MS + 4_800_000)
    found = await reconcile(DAY, stream(), {DAY: pulled}, how)
    assert found.agrees, statuses(found)
    assert found.to_ms == NOON_MS + 3_600_000
    assert not found.result.resolved
    assert statuses(await compared(rows, BILL)) != []


# ---- midnight


async def days_of(rows: list[Row], bills: dict[date, Pulled]) -> tuple[Day, list[date]]:
    asked: list[date] = []

    async def pull(day: date) -> Pulled:
        asked.append(day)
        return bills.get(day, Pulled(bill=Bill(), splits=Bill(), usage=[]))

    async def stream(from_ms: int, to_ms: int) -> AsyncIterator[Row]:
        for each in rows:
            if from_ms <= each.at_ms < to_ms:
                yield each

    return await reconcile_day(DAY, stream, pull, HOW), asked


def of_day(*rows: BillRow, usage: list[UsageRow] | None = None) -> Pulled:
    return Pulled(bill=Bill(rows=list(rows)), splits=Bill(), usage=usage)


async def test_a_quiet_midnight_asks_for_one_day_only() -> None:
    found, asked = await days_of([row()], {DAY: of_day(*BILL)})
    assert found.agrees
    assert asked == [DAY]


async def test_what_ended_at_midnight_may_stand_in_the_bill_of_the_next_day() -> None:
    """Ended half a second before midnight by our clock, and after it by Ark's."""
    late = row(at_ms=END_MS - 2_500)
    after = [replace(each, start_s=END_MS // 1000) for each in BILL]
    found, asked = await days_of([late], {date(2026, 11, 26): of_day(*after), DAY: of_day()})
    assert found.agrees, statuses(found)
    assert asked == [DAY, date(2026, 11, 24), date(2026, 11, 26)]


async def test_what_was_never_billed_at_midnight_is_missing_all_the_same() -> None:
    found, _ = await days_of([row(at_ms=END_MS - 2_500)], {DAY: of_day()})
    assert statuses(found) == [("missing", "input"), ("missing", "output")]


async def test_an_open_hold_across_midnight_is_looked_for_on_both_sides() -> None:
    ended_s = END_MS // 1000 + 300
    after = [replace(each, start_s=ended_s) for each in BILL]
    usage = [counted(1_000, 0, 10, start_s=END_MS // 1000)]
    bills = {DAY: of_day(usage=[]), date(2026, 11, 26): of_day(*after, usage=usage)}
    hold = lost(at_ms=END_MS - 60_000, total_ms=None)
    found, _ = await days_of([hold], bills)
    (correction,) = corrections(found)
    assert correction.posted_nano == 880_000 - 5_000_000
    assert correction.at_ms + int(correction.total_ms or 0) >= END_MS
    assert found.result.sums.resolved == 0, "its items are those of the next day"
