from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.breaker import (
    FAILURES_IN_A_ROW,
    FATAL_OPEN_S,
    OPEN_FIRST_S,
    OPEN_MAX_S,
    PROBE_PATIENCE_S,
    TRIPS_MAX,
    Breaker,
    failed,
    sent,
    state,
    succeeded,
    unproven,
)
from policies.types import BreakerState

CLOSED, OPEN, HALF_OPEN = BreakerState


def after_failures(count: int, now_s: float = 0.0, *, fatal: bool = False) -> Breaker:
    breaker = Breaker()
    for _ in range(count):
        breaker = failed(breaker, now_s, fatal=fatal)
    return breaker


def test_it_takes_several_failures_in_a_row() -> None:
    assert state(after_failures(FAILURES_IN_A_ROW - 1), 0) is CLOSED
    assert state(after_failures(FAILURES_IN_A_ROW), 0) is OPEN


def test_a_success_between_them_forgives() -> None:
    breaker = succeeded(after_failures(FAILURES_IN_A_ROW - 1))
    assert breaker == Breaker()
    assert state(failed(breaker, 0), 0) is CLOSED


def test_one_fatal_failure_is_enough() -> None:
    breaker = after_failures(1, fatal=True)
    assert state(breaker, FATAL_OPEN_S - 0.1) is OPEN
    assert state(breaker, FATAL_OPEN_S) is HALF_OPEN


def test_after_a_while_one_request_may_try() -> None:
    breaker = after_failures(FAILURES_IN_A_ROW)
    assert state(breaker, OPEN_FIRST_S - 0.1) is OPEN
    assert state(breaker, OPEN_FIRST_S) is HALF_OPEN
    probing = sent(breaker, OPEN_FIRST_S)
    assert state(probing, OPEN_FIRST_S) is OPEN, "only one"
    assert sent(probing, OPEN_FIRST_S) == probing
    assert succeeded(probing) == Breaker()


def test_a_failed_probe_waits_longer_each_time_up_to_a_bound() -> None:
    now_s, breaker, waits = 0.0, after_failures(FAILURES_IN_A_ROW), []
    for _ in range(TRIPS_MAX + 2):
        waits.append(breaker.open_until_s - now_s)
        now_s = breaker.open_until_s
        breaker = failed(sent(breaker, now_s), now_s)
    assert waits == [2, 4, 8, 16, 32, OPEN_MAX_S, OPEN_MAX_S, OPEN_MAX_S]
    assert succeeded(sent(breaker, breaker.open_until_s)) == Breaker(), "and then all is forgiven"


def test_a_target_may_stay_away_for_years() -> None:
    now_s, breaker = 0.0, after_failures(FAILURES_IN_A_ROW)
    for _ in range(2_000):  # 2.0 ** 1024 is more than a float holds
        now_s = breaker.open_until_s
        breaker = failed(sent(breaker, now_s), now_s)
    assert breaker.open_until_s - now_s == OPEN_MAX_S


def test_requests_from_before_the_trip_fail_without_making_it_longer() -> None:
    """A worker dies with eight requests on it: eight failures at once are one trip."""
    breaker = after_failures(FAILURES_IN_A_ROW + 8)
    assert breaker == after_failures(FAILURES_IN_A_ROW)


def test_a_fatal_failure_while_open_makes_it_longer_and_never_shorter() -> None:
    breaker = after_failures(FAILURES_IN_A_ROW)
    assert failed(breaker, 1.0, fatal=True).open_until_s == 1.0 + FATAL_OPEN_S
    late = Breaker(failures=9, trips=TRIPS_MAX, open_until_s=1_000.0)
    assert failed(late, 1.0, fatal=True) == late


def test_a_success_from_before_the_trip_does_not_close_it() -> None:
    tripped = after_failures(1, fatal=True)
    assert succeeded(tripped) == tripped
    assert state(succeeded(tripped), FATAL_OPEN_S) is HALF_OPEN


def test_a_probe_that_proved_nothing_leaves_its_place() -> None:
    probing = sent(after_failures(FAILURES_IN_A_ROW), OPEN_FIRST_S)
    assert state(unproven(probing), OPEN_FIRST_S) is HALF_OPEN


def test_a_probe_that_is_never_heard_of_is_given_up() -> None:
    probing = sent(after_failures(FAILURES_IN_A_ROW), OPEN_FIRST_S)
    assert state(probing, OPEN_FIRST_S + PROBE_PATIENCE_S - 0.1) is OPEN
    assert state(probing, OPEN_FIRST_S + PROBE_PATIENCE_S) is HALF_OPEN


def test_sending_to_a_healthy_target_changes_nothing() -> None:
    assert sent(Breaker(), 5.0) == Breaker()
    assert succeeded(Breaker()) == Breaker()


steps = st.lists(
    st.tuples(st.sampled_from(["ok", "fail", "fatal", "gone"]), st.floats(0, 20)), max_size=40
)


@given(steps)
def test_it_is_never_closed_for_good(history: list[tuple[str, float]]) -> None:
    """Whatever happened, within the longest wait somebody may try again."""
    now_s, breaker = 0.0, Breaker()
    for result, wait_s in history:
        now_s += wait_s
        if state(breaker, now_s) is OPEN:
            continue
        breaker = sent(breaker, now_s)
        if result == "ok":
            breaker = succeeded(breaker)
            assert state(breaker, now_s) is CLOSED
        elif result == "gone":
            breaker = unproven(breaker)
        else:
            breaker = failed(breaker, now_s, fatal=result == "fatal")
    assert state(breaker, now_s + max(OPEN_MAX_S, FATAL_OPEN_S)) is not OPEN


@pytest.mark.parametrize("requests", [10, 1_000])
def test_a_dead_target_sees_few_requests(requests: int) -> None:
    """One request every 10 ms for as long as it takes: the dead target sees a handful."""
    breaker, asked = Breaker(), 0
    for i in range(requests):
        now_s = i / 100
        if state(breaker, now_s) is not OPEN:
            breaker = failed(sent(breaker, now_s), now_s)
            asked += 1
    # 10 s: five to trip it, probes at 2 s and at 6 s
    assert asked == (FAILURES_IN_A_ROW if requests == 10 else FAILURES_IN_A_ROW + 2)
