from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from policies.tco_parts import (
    HOURS_PER_MONTH,
    breakeven,
    fixed_per_month,
    payback,
    power_per_month,
    slot_ms_of,
)
from tests.policies.test_tco import CNY, server


def test_a_server_by_hand() -> None:
    """36,000 over 36 months and 1,200 a year: 1,100 a month. Half busy: 350 W for 730 h at 0.8."""
    assert fixed_per_month(server()) == 1_100 * CNY
    assert HOURS_PER_MONTH == 730
    assert power_per_month(server(), Fraction(1, 2)) == Fraction("204.4") * CNY
    assert fixed_per_month(server(residual_cny=Decimal(3_600))) == 1_000 * CNY


def test_a_payback_is_rounded_up_and_may_never_come() -> None:
    assert payback(Fraction(150_000), Fraction(60_000)) == Decimal("2.5")
    assert payback(Fraction(150_000), Fraction(27_750)) == Decimal("5.5")
    assert payback(Fraction(1), Fraction(0)) is None
    assert payback(Fraction(1), Fraction(-5)) is None
    assert payback(Fraction(10**9), Fraction(1)) is None


def test_where_a_fixed_cost_is_worth_it() -> None:
    assert breakeven(Fraction(100), Fraction(3), Fraction(1)) == 50
    assert breakeven(Fraction(101), Fraction(3), Fraction(1)) == 51
    assert breakeven(Fraction(100), Fraction(1), Fraction(1)) is None


def test_slot_time_is_learned_from_tokens() -> None:
    samples = [(p, c, 2 * p + 30 * c) for p, c in ((100, 10), (50, 80), (400, 5))]
    assert slot_ms_of(samples) == (2, 30)
    assert slot_ms_of([(10, 5, 100), (20, 10, 200)]) == (0, 20)  # one direction says nothing of two
    assert slot_ms_of([]) is None
    assert slot_ms_of([(5, 0, 9)]) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 5000), st.integers(1, 1000), st.integers(0, 10**6)), max_size=9
    )
)
def test_a_learned_time_is_never_negative(samples: list[tuple[int, int, int]]) -> None:
    found = slot_ms_of(samples)
    assert found is None or min(found) >= 0
