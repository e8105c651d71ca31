from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.bill import PERIOD_MS, Place, Sheet, period
from policies.bill_periods import TRIED_MAX, place_rows
from tests.policies.bill_builders import HOUR, billed, booked

SLACK = 5_000
NEXT = HOUR + PERIOD_MS


def sheet(*items: list[object]) -> Sheet:
    made = Sheet()
    for group in items:
        for item in group:
            made[item.place].bill(item)  # type: ignore[attr-defined]
    return made


def at(made: Sheet, period_ms: int, tier: str = "small") -> list[int]:
    return made[Place(period_ms, tier)].booked


def test_a_row_stands_in_the_period_in_which_it_ended() -> None:
    made = sheet(billed((5, 0, 1), HOUR))
    place_rows([booked("a", (5, 0, 1), NEXT - SLACK - 1)], made, SLACK)
    assert at(made, HOUR) == [5, 0, 1]


@pytest.mark.parametrize("ended_ms", [NEXT - SLACK, NEXT - 1, NEXT, NEXT + SLACK])
@pytest.mark.parametrize("billed_in", [HOUR, NEXT])
def test_near_a_boundary_it_stands_where_it_was_billed(ended_ms: int, billed_in: int) -> None:
    made = sheet(billed((5, 2, 1), billed_in))
    place_rows([booked("a", (5, 2, 1), ended_ms)], made, SLACK)
    assert at(made, billed_in) == [5, 2, 1]
    assert at(made, HOUR if billed_in == NEXT else NEXT) == [0, 0, 0]


@pytest.mark.parametrize("ended_ms", [NEXT - SLACK - 1, NEXT + SLACK + 1])
def test_beyond_the_slack_nothing_is_moved(ended_ms: int) -> None:
    wrong = HOUR if ended_ms > NEXT else NEXT
    made = sheet(billed((5, 0, 1), wrong))
    place_rows([booked("a", (5, 0, 1), ended_ms)], made, SLACK)
    assert at(made, period(ended_ms)) == [5, 0, 1]


def test_a_row_that_was_never_billed_stays_where_it_ended() -> None:
    made = sheet(billed((7, 0, 1), HOUR), billed((3, 0, 2), NEXT))
    rows = [booked("x", (7, 0, 1), HOUR + 9_999), booked("y", (3, 0, 2), NEXT + 9_999)]
    place_rows([*rows, booked("lost", (50, 0, 9), NEXT - 1)], made, SLACK)
    assert at(made, HOUR) == [57, 0, 10]
    assert at(made, NEXT) == [3, 0, 2]


def test_of_two_rows_the_right_one_is_moved() -> None:
    """The smaller one is in the other period; moving the larger would bring it nearer as well."""
    made = sheet(billed((40, 0, 1), HOUR), billed((30, 0, 5), NEXT))
    rows = [booked("a", (40, 0, 1), NEXT - 10), booked("b", (30, 0, 5), NEXT - 20)]
    place_rows(rows, made, SLACK)
    assert at(made, HOUR) == [40, 0, 1]
    assert at(made, NEXT) == [30, 0, 5]


@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-12, 12),  # tenths of a second around the boundary
            st.booleans(),  # on which side it was billed
            st.integers(1, 2_000),
            st.integers(0, 50),
        ),
        max_size=TRIED_MAX,
    )
)
def test_whatever_side_rows_were_billed_on_both_periods_come_out_right(
    near: list[tuple[int, bool, int, int]],
) -> None:
    items = [billed((n, 0, out), NEXT if late else HOUR) for _, late, n, out in near]
    made = sheet(*items)
    rows = [
        booked(str(i), (n, 0, out), NEXT + 100 * tenth) for i, (tenth, _, n, out) in enumerate(near)
    ]
    place_rows(rows, made, SLACK)
    for cell in made.values():
        assert cell.left == (0, 0, 0)


@pytest.mark.parametrize("ahead_ms", [-3_000, 3_000])
def test_of_a_crowd_those_move_that_another_clock_puts_on_the_other_side(ahead_ms: int) -> None:
    """Too many to try every subset: Ark's clock is ahead of ours, or behind."""
    ends = [NEXT - 4_900 + 400 * i for i in range(24)]
    assert Counter(period(end) for end in ends) == Counter({HOUR: 13, NEXT: 11})
    rows = [booked(str(i), (10 + i, 0, 1), end) for i, end in enumerate(ends)]
    made = sheet(*(billed(row.tokens, period(row.ended_ms + ahead_ms)) for row in rows))
    place_rows(rows, made, SLACK)
    assert all(cell.left == (0, 0, 0) for cell in made.values())
