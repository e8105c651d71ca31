from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.glm.api.lanes import Lane, Turns
from backends.glm.request.prompt import Steps

WAIT_S = 20


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), max_size=12))
def test_turns_are_shared_and_nothing_is_lost(jobs: list[tuple[str, int]]) -> None:
    """Jobs of so many steps, all there from the start."""
    turns: Turns[list[int]] = Turns()
    for number, (tenant, steps) in enumerate(jobs):
        turns.add(tenant, [number, steps])
    done: list[tuple[str, int]] = []
    while (taken := turns.next()) is not None:
        tenant, job = taken
        job[1] -= 1
        done.append((tenant, job[0]))
        if job[1]:
            turns.put_back(tenant, job)
    for tenant in "abc":
        own = [number for whose, number in done if whose == tenant]
        wanted = [
            n for n, (whose, steps) in enumerate(jobs) if whose == tenant for _ in range(steps)
        ]
        assert own == wanted  # each tenant's in the order of their coming, one finished by one
    # As long as two tenants both have steps left, neither is more than one turn ahead.
    for first in "abc":
        for second in "abc":
            ahead = 0
            left = {t: sum(1 for whose, _ in done if whose == t) for t in (first, second)}
            for whose, _ in done:
                if min(left.values()) == 0:
                    break
                ahead += (whose == first) - (whose == second)
                assert abs(ahead) <= 1
                if whose in left:
                    left[whose] -= 1


@pytest.fixture
def lane() -> Iterator[Lane]:
    made = Lane("test", 1)
    yield made
    made.close()


class Gate:
    """A job whose step ends when it is told to."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def steps(self, log: list[str]) -> Steps[str]:
        log.append("gate")
        self.entered.set()
        assert self.open.wait(WAIT_S)
        yield
        log.append("gate")
        return "opened"


def named(log: list[str], name: str, count: int) -> Steps[str]:
    for _ in range(count):
        log.append(name)
        yield
    return name


def test_a_crowd_of_one_tenant_keeps_nobody_waiting_for_more_than_a_step(lane: Lane) -> None:
    log: list[str] = []
    gate = Gate()
    first = lane.submit("a", gate.steps(log))
    assert gate.entered.wait(WAIT_S)
    crowd = [lane.submit("a", named(log, f"a{i}", 2)) for i in range(3)]
    other = lane.submit("b", named(log, "b", 1))
    gate.open.set()
    assert other.result(WAIT_S) == "b"
    assert [job.result(WAIT_S) for job in (first, *crowd)] == ["opened", "a0", "a1", "a2"]
    assert log == ["gate", "gate", "b", "a0", "a0", "a1", "a1", "a2", "a2"]


def test_a_job_whose_caller_left_does_no_further_step(lane: Lane) -> None:
    log: list[str] = []
    gate = Gate()
    began = lane.submit("a", gate.steps(log))
    assert gate.entered.wait(WAIT_S)
    waits = lane.submit("a", named(log, "never", 1))
    last = lane.submit("a", named(log, "last", 1))
    assert began.cancel()
    assert waits.cancel()
    assert last in [job.result for line in lane._turns._waiting.values() for job in line]
    assert waits not in [job.result for line in lane._turns._waiting.values() for job in line]
    gate.open.set()
    assert last.result(WAIT_S) == "last"
    assert log == ["gate", "last"]


def test_an_error_is_that_of_the_result_and_the_lane_goes_on(lane: Lane) -> None:
    def broken() -> Steps[None]:
        yield
        raise KeyError("x")

    failed = lane.submit("a", broken())
    with pytest.raises(KeyError):
        failed.result(WAIT_S)
    assert lane.submit("a", named([], "next", 1)).result(WAIT_S) == "next"


def test_closing_cancels_what_waits_and_what_comes(lane: Lane) -> None:
    log: list[str] = []
    gate = Gate()
    runs = lane.submit("a", gate.steps(log))
    assert gate.entered.wait(WAIT_S)
    waits = lane.submit("b", named(log, "never", 1))
    lane.close()
    late = lane.submit("b", named(log, "never", 1))
    gate.open.set()
    for result in (waits, runs, late):
        with pytest.raises(CancelledError):
            result.result(WAIT_S)
    assert log == ["gate"]
