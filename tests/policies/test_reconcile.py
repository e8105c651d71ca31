from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from policies.bill import PERIOD_MS, Lane, Reconciled
from policies.reconcile import reconcile
from tests.policies.bill_builders import (
    HOUR,
    Prices,
    billed,
    booked,
    counted,
    hold,
    options,
)

tokens = st.tuples(st.integers(0, 1_500), st.integers(0, 300), st.integers(0, 100))
slots = st.integers(-2, 13)  # periods; the hour that is looked at has twelve


def adds_up(found: Reconciled) -> bool:
    sums = found.sums
    parts = sums.booked + sums.resolved + sums.disputed + sums.findings + sums.rounding
    return sums.billed == parts


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(slots, tokens), max_size=6),
    st.lists(st.tuples(slots, tokens, st.sampled_from([0, 1, -1, 40])), max_size=6),
    st.lists(st.tuples(slots, st.integers(0, 3), st.sampled_from([10**6, 10**9])), max_size=3),
    st.lists(tokens, max_size=2),
    st.booleans(),
)
def test_every_unit_of_the_bill_is_accounted_for(
    rows: list[tuple[int, tuple[int, int, int]]],
    items: list[tuple[int, tuple[int, int, int], int]],
    holds: list[tuple[int, int, int]],
    count: list[tuple[int, int, int]],
    has_count: bool,
) -> None:
    """Whatever the books hold and whatever was billed: what is not explained is a finding."""
    found = reconcile(
        [booked(f"r{i}", t, HOUR + n * PERIOD_MS) for i, (n, t) in enumerate(rows)],
        [
            hold(f"h{i}", HOUR + n * PERIOD_MS, HOUR + (n + long) * PERIOD_MS, nano)
            for i, (n, long, nano) in enumerate(holds)
        ],
        [
            each
            for n, t, off in items
            for each in billed(t, HOUR + n * PERIOD_MS, **({"nano": 7 + off} if off else {}))
        ],
        [counted(t, HOUR + 3_600_000 * i) for i, t in enumerate(count)],
        prices=Prices(),
        options=options(to_ms=HOUR + 3_600_000, counted=has_count),
    )
    assert adds_up(found)
    assert all(each.difference_nano <= 0 for each in found.resolved)
    names = [each.hold.hold_id for each in found.resolved]
    names += [each.hold_id for each in found.disputed]
    assert len(names) == len(set(names))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), tokens), max_size=12), st.data())
def test_books_that_are_right_match_item_by_item(
    rows: list[tuple[int, tuple[int, int, int]]], data: st.DataObject
) -> None:
    """Also by another clock; and one row less in the books is always seen."""
    start = HOUR + 1_800_000
    ends = [start + n * PERIOD_MS + data.draw(st.integers(-2_000, 2_000)) for n, _ in rows]
    mine = [booked(str(i), t, end) for i, ((_, t), end) in enumerate(zip(rows, ends, strict=True))]
    theirs = [each for n, t in rows for each in billed(t, start + n * PERIOD_MS)]
    how = {"prices": Prices(), "options": options(counted=False)}
    found = reconcile(mine, [], theirs, [], **how)  # type: ignore[arg-type]
    if len(rows) <= 6:  # of a crowd at one boundary not every subset is tried
        assert not found.findings
    if mine and any(mine[0].tokens):
        assert reconcile(mine[1:], [], theirs, [], **how).findings  # type: ignore[arg-type]


def test_lanes_are_never_mixed_up() -> None:
    a, b = Lane("m", "ep-1"), Lane("m", "ep-2")
    mine = [booked("x", (10, 0, 1), lane=a), booked("y", (20, 0, 2), lane=b)]
    swapped = [*billed((10, 0, 1), lane=b), *billed((20, 0, 2), lane=a)]
    how = {"prices": Prices(), "options": options(counted=False)}
    assert len(reconcile(mine, [], swapped, [], **how).findings) == 4  # type: ignore[arg-type]
    right = [*billed((10, 0, 1), lane=a), *billed((20, 0, 2), lane=b)]
    assert not reconcile(mine, [], right, [], **how).findings  # type: ignore[arg-type]


def test_a_difference_of_the_sixth_decimal_is_rounding_and_added_up() -> None:
    off = [each for i in range(3) for each in billed((1, 0, 0), HOUR + i * PERIOD_MS, nano=1_400)]
    mine = [booked(str(i), (1, 0, 0), HOUR + i * PERIOD_MS) for i in range(3)]
    found = reconcile(mine, [], off, [], prices=Prices(), options=options(counted=False))
    assert not found.findings
    assert (found.matched, found.sums.rounding) == (3, 1_200)
    assert adds_up(found)


def test_what_ark_counted_and_nobody_booked_is_a_finding_of_its_hour() -> None:
    there = HOUR + 3_600_000
    found = reconcile(
        [], [], [], [counted((5, 0, 1), there), counted((9, 9, 9), HOUR - 3_600_000)],
        prices=Prices(), options=options(),
    )  # fmt: skip
    assert [(each.status.value, each.kind, each.period_ms) for each in found.findings] == [
        ("usage", "input", there), ("usage", "output", there),
    ]  # fmt: skip


def test_a_discount_is_not_a_finding() -> None:
    found = reconcile(
        [booked("x", (10, 0, 0))], [], billed((10, 0, 0), payable_nano=4_000), [],
        prices=Prices(), options=options(counted=False),
    )  # fmt: skip
    assert not found.findings
    assert found.sums.discount == 6_000
