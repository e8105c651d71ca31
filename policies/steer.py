"""What budgets at their soft limits ask of the plan, and where their pace leads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from policies.types import BudgetView, Steer, Value

PACE_SLACK = 0.05  # of the limit: a morning's first requests are not a trend
# A forecast before this share of the period has passed and this share of the limit is spent is
# an anecdote.
FORECAST_ELAPSED_MIN = 0.1
FORECAST_SPENT_MIN = 0.1


class Steering(Value, frozen=True, kw_only=True):
    """What applies to one request. notes: which budget asked for what, for the `why`."""

    prefer_local: bool = False
    lower_priority: bool = False
    cheaper: bool = False
    notes: tuple[str, ...] = ()


NONE = Steering()


def steering(
    scopes: Iterable[str], budgets: Mapping[str, tuple[BudgetView, ...]], wall_s: float
) -> Steering:
    """What the budgets of `scopes` ask for. wall_s: wall clock, for their pace."""
    asked: dict[Steer, None] = {}
    notes: list[str] = []
    for scope in scopes:
        for view in budgets.get(scope, ()):
            if not view.soft:
                continue
            used_percent = used_share(view) * 100
            ahead = view.pace and ahead_of_pace(view, wall_s)
            for step in view.soft:
                if ahead or used_percent >= step.at_percent:
                    asked[step.steer] = None
                    why = "is ahead of its pace" if ahead else "is at its soft limit"
                    notes.append(
                        f"{view.scope} ({view.period}) {why}, {used_percent:.0f} % used: "
                        f"{step.steer.value}"
                    )
    if not asked:
        return NONE
    return Steering(
        prefer_local=Steer.PREFER_LOCAL in asked,
        lower_priority=Steer.LOWER_PRIORITY in asked,
        cheaper=Steer.CHEAPER in asked,
        notes=tuple(dict.fromkeys(notes)),
    )


def used_share(view: BudgetView) -> float:
    """Posted and held together as a share of the limit; of nothing everything is used."""
    return (view.posted_nano + view.held_nano) / view.limit_nano if view.limit_nano > 0 else 1.0


def elapsed_share(view: BudgetView, wall_s: float) -> float | None:
    """How much of its period is over; None: it has no end."""
    if view.starts_at_s is None or view.resets_at_s is None:
        return None
    length_s = view.resets_at_s - view.starts_at_s
    return min(1.0, max(0.0, (wall_s - view.starts_at_s) / length_s))


def ahead_of_pace(view: BudgetView, wall_s: float) -> bool:
    """Whether more is spent than an even pace over the period would have spent by now."""
    elapsed = elapsed_share(view, wall_s)
    return elapsed is not None and used_share(view) > elapsed + PACE_SLACK


def used_up_at_s(view: BudgetView, wall_s: float) -> float | None:
    """When, at the pace of this period so far, the limit is reached; None: not before its end, or
    it is too early to say. Linear: posted / elapsed, no seasons."""
    elapsed = elapsed_share(view, wall_s)
    if elapsed is None or elapsed < FORECAST_ELAPSED_MIN or view.limit_nano <= 0:
        return None
    spent = view.posted_nano / view.limit_nano
    if not FORECAST_SPENT_MIN <= spent < 1.0 or spent <= elapsed:
        return None
    assert view.starts_at_s is not None, "a period that has elapsed by a share has a start"
    return view.starts_at_s + (wall_s - view.starts_at_s) / spent
