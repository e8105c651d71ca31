from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.retry import PER_SECOND, SHARE, WINDOW_S, RetryBudget, offered, withdraw

ALLOWANCE = PER_SECOND * WINDOW_S


def all_granted(budget: RetryBudget, now_s: float) -> int:
    """How many attempts in a row are granted at one moment."""
    for count in range(10_000):
        budget, granted = withdraw(budget, now_s)
        if not granted:
            return count
    raise AssertionError("it never ends")


def test_a_quiet_gateway_may_retry() -> None:
    assert all_granted(RetryBudget(), 0.0) == ALLOWANCE


def test_a_refused_withdrawal_costs_nothing() -> None:
    empty = RetryBudget(balance=0.9, at_s=5.0)
    assert withdraw(empty, 5.0) == (empty, False)


def test_five_requests_pay_for_one_more_attempt() -> None:
    budget = RetryBudget(balance=0.0, at_s=0.0)
    for _ in range(50):
        budget = offered(budget, 0.0)
    assert all_granted(budget, 0.0) in (9, 10)  # fifty fifths, added up as floats


def test_the_allowance_flows_in_by_the_second() -> None:
    assert all_granted(RetryBudget(balance=0.0, at_s=0.0), 1.0) == PER_SECOND


def test_a_long_silence_saves_nothing_up() -> None:
    assert all_granted(RetryBudget(balance=0.0, at_s=0.0), 1e9) == 2 * ALLOWANCE


def test_a_clock_that_steps_back_takes_and_gives_nothing() -> None:
    assert offered(RetryBudget(balance=3.0, at_s=100.0), 50.0).balance == 3.0 + SHARE
    assert all_granted(RetryBudget(balance=3.0, at_s=100.0), 50.0) == 3


@pytest.mark.parametrize("per_second", [1, 50, 2_000])
def test_when_everything_fails_the_load_grows_by_a_fifth_and_the_allowance(per_second: int) -> None:
    """Each request would make three attempts. Sixty seconds of nothing but failures."""
    budget, requests, attempts = RetryBudget(), 0, 0
    for i in range(60 * per_second):
        now_s = i / per_second
        budget = offered(budget, now_s)
        requests += 1
        attempts += 1
        for _ in range(2):
            budget, granted = withdraw(budget, now_s)
            if not granted:
                break
            attempts += 1
    bound = (1 + SHARE) * requests + ALLOWANCE + PER_SECOND * 60
    assert attempts <= bound
    assert attempts <= 3 * requests
    if per_second == 2_000:
        assert attempts <= 1.21 * requests, "under load the allowance does not matter"
        assert attempts >= 1.19 * requests, "and the share is really there"


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=60),
    st.floats(0, 2 * ALLOWANCE),
)
def test_never_more_attempts_than_were_paid_for(
    history: list[tuple[bool, float]], balance: float
) -> None:
    budget, now_s, requests, further = RetryBudget(balance=balance), 0.0, 0, 0
    for arrives, wait_s in history:
        now_s += wait_s
        if arrives:
            budget = offered(budget, now_s)
            requests += 1
        else:
            budget, granted = withdraw(budget, now_s)
            further += granted
        assert budget.balance >= 0
    assert further <= balance + SHARE * requests + PER_SECOND * now_s + 1e-6
