from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from policies.steer import (
    NONE,
    ahead_of_pace,
    elapsed_share,
    steering,
    used_share,
    used_up_at_s,
)
from policies.types import BudgetView, Plan, Reason, Site, SloClass, SoftLimit, Steer
from tests.policies.builders import budget, busy, cloud, decide, facts, rules, snapshot

DAY_S = 86_400.0


def view(posted: int, *steps: tuple[int, Steer], held: int = 0, **more: Any) -> BudgetView:
    soft = tuple(SoftLimit(at_percent=percent, steer=steer) for percent, steer in steps)
    made = budget("tenant:acme", limit=10**12, posted=posted * 10**6, held=held * 10**6)
    return replace(made, soft=soft, period="day", starts_at_s=0.0, resets_at_s=DAY_S, **more)


def test_what_is_held_counts_and_each_step_has_its_own_share() -> None:
    steps = ((50, Steer.CHEAPER), (80, Steer.PREFER_LOCAL), (90, Steer.LOWER_PRIORITY))
    for posted, held, asked in (
        (499_999, 0, (False, False, False)),
        (400_000, 100_000, (True, False, False)),
        (800_000, 0, (True, True, False)),
        (900_000, 300_000, (True, True, True)),
    ):
        views = {"tenant:acme": (view(posted, *steps, held=held),)}
        found = steering(["tenant:acme", "org:x"], views, 0.0)
        assert (found.cheaper, found.prefer_local, found.lower_priority) == asked
        assert len(found.notes) == sum(asked)
    assert steering(["org:x"], views, 0.0) is NONE


def test_pace_steers_before_the_share_is_reached() -> None:
    noon = DAY_S / 2
    slow = view(540_000, (90, Steer.PREFER_LOCAL), pace=True)
    fast = view(560_000, (90, Steer.PREFER_LOCAL), pace=True)
    assert not ahead_of_pace(slow, noon)
    assert ahead_of_pace(fast, noon)
    assert steering(["tenant:acme"], {"tenant:acme": (slow,)}, noon) is NONE
    found = steering(["tenant:acme"], {"tenant:acme": (fast,)}, noon)
    assert found.prefer_local
    assert "ahead of its pace" in found.notes[0]
    unpaced = replace(fast, pace=False)
    assert steering(["tenant:acme"], {"tenant:acme": (unpaced,)}, noon) is NONE
    total = replace(fast, starts_at_s=None, resets_at_s=None)
    assert not ahead_of_pace(total, noon)


@pytest.mark.parametrize(
    ("posted", "at_s", "ends_s"),
    [
        (500_000, 0.25 * DAY_S, 0.5 * DAY_S),
        (100_000, 0.05 * DAY_S, None),  # too early
        (90_000, 0.1 * DAY_S, None),  # too little
        (250_000, 0.25 * DAY_S, None),  # just enough
        (1_000_000, 0.5 * DAY_S, None),  # nothing left to forecast
    ],
)
def test_a_forecast(posted: int, at_s: float, ends_s: float | None) -> None:
    assert used_up_at_s(view(posted), at_s) == ends_s


MIDNIGHT_S = 1_795_622_400.0  # of a day that real clocks have: a period does not start at 0


def today(posted: int, *steps: tuple[int, Steer], **more: Any) -> BudgetView:
    found = view(posted, *steps, **more)
    return replace(found, starts_at_s=MIDNIGHT_S, resets_at_s=MIDNIGHT_S + DAY_S)


@pytest.mark.parametrize(
    ("at_s", "share"), [(-5.0, 0.0), (0.0, 0.0), (21_600.0, 0.25), (DAY_S, 1.0), (2 * DAY_S, 1.0)]
)
def test_how_much_of_a_period_is_over(at_s: float, share: float) -> None:
    assert elapsed_share(today(0), MIDNIGHT_S + at_s) == share
    assert elapsed_share(replace(today(0), resets_at_s=None), MIDNIGHT_S) is None
    assert elapsed_share(replace(today(0), starts_at_s=None), MIDNIGHT_S) is None


def test_pace_and_forecast_go_by_the_time_since_the_period_began() -> None:
    assert not ahead_of_pace(today(540_000), MIDNIGHT_S + DAY_S / 2)
    assert ahead_of_pace(today(560_000), MIDNIGHT_S + DAY_S / 2)
    assert used_up_at_s(today(500_000), MIDNIGHT_S + DAY_S / 4) == MIDNIGHT_S + DAY_S / 2
    # from the shares on that are no anecdote any more
    assert used_up_at_s(today(200_000), MIDNIGHT_S + DAY_S / 10) == MIDNIGHT_S + DAY_S / 2


def test_of_nothing_everything_is_used_and_nothing_is_forecast() -> None:
    nothing = replace(today(0, (100, Steer.PREFER_LOCAL)), limit_nano=0)
    assert used_share(nothing) == 1.0
    assert used_up_at_s(nothing, MIDNIGHT_S + DAY_S / 2) is None
    assert steering(["t"], {"t": (nothing,)}, MIDNIGHT_S).prefer_local
    least = replace(today(0), limit_nano=1)
    assert used_share(least) == 0.0
    assert used_up_at_s(replace(least, limit_nano=10, posted_nano=5), MIDNIGHT_S + DAY_S / 4) == (
        MIDNIGHT_S + DAY_S / 2
    )


# ------------------------------------------------------------------ in the plan


def planned(*views: BudgetView, **asked: Any) -> Plan:
    """A pool that would be late, and two cloud models of which the second is cheaper."""
    world = snapshot(
        busy(waiting=3, running=8, slots=8, queue_limit=64, in_flight=11),
        clouds=(cloud("big"), cloud("small")),
    )
    world = replace(world, budgets={"tenant:acme": views}) if views else world
    found = decide(facts(**asked), world, rules())
    assert isinstance(found, Plan)
    return found


def test_without_a_soft_limit_the_request_overflows_in_the_order_of_the_route() -> None:
    found = planned()
    assert [a.target for a in found.attempts][:1] == ["big"]
    assert found.why.budgets == ()


def test_prefer_local_waits_for_a_worker_unless_the_caller_cannot() -> None:
    near = view(900_000, (80, Steer.PREFER_LOCAL))
    found = planned(near)
    assert found.attempts[0].site is Site.LOCAL
    assert found.why.reason is Reason.BUDGET_SOFT
    assert "tenant:acme (day) is at its soft limit, 90 % used: prefer_local" in found.why.budgets
    hurried = planned(near, deadline_ms=1)
    assert hurried.attempts[0].site is Site.CLOUD


def test_cheaper_turns_the_route_round() -> None:
    found = planned(view(100_000, (10, Steer.CHEAPER)))
    assert [a.target for a in found.attempts if a.site is Site.CLOUD][:1] == ["small"]


def test_lower_priority_may_wait_as_long_as_a_batch() -> None:
    patient = planned(slo=SloClass.BATCH)
    steered = planned(view(900_000, (80, Steer.LOWER_PRIORITY)))
    assert steered.attempts[0].target == patient.attempts[0].target
    assert patient.attempts[0].site is Site.LOCAL  # or the test shows nothing
