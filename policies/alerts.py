"""Which alerts a budget's figures call for."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

from policies.budget import cny
from policies.steer import used_up_at_s
from policies.types import BudgetView, Value


class AlertKind(StrEnum):
    THRESHOLD = "threshold"
    FORECAST = "forecast"


class Alert(Value, frozen=True, kw_only=True):
    """One crossing. key: the same for the same crossing, whoever sees it: budget, count, period,
    limit (a raised limit can be crossed anew) and threshold."""

    key: str
    kind: AlertKind
    percent: int
    text: str
    used_up_at_s: float | None = None


def alerts_due(
    view: BudgetView,
    *,
    counter: str,
    thresholds: tuple[int, ...],
    forecast: bool,
    zone: str,
    wall_s: float,
) -> tuple[Alert, ...]:
    """Every crossing that has happened, told or not. counter: names budget, count and period."""
    found = []
    spent_percent = 100 * view.posted_nano / view.limit_nano if view.limit_nano > 0 else 100.0
    name = f"the budget {view.scope} ({view.period})"
    for percent in sorted(thresholds):
        if spent_percent >= percent:
            text = (
                f"{name} is {spent_percent:.0f} % spent: {cny(view.posted_nano)} of "
                f"{cny(view.limit_nano)} CNY"
            )
            found.append(_alert(AlertKind.THRESHOLD, percent, text, view, counter))
    ends_s = used_up_at_s(view, wall_s) if forecast else None
    if ends_s is not None and view.resets_at_s is not None:
        at = datetime.fromtimestamp(ends_s, ZoneInfo(zone))
        anew = datetime.fromtimestamp(view.resets_at_s, UTC).isoformat()
        text = (
            f"at this pace {name} is used up on {at:%Y-%m-%d at %H:%M} ({zone}): "
            f"{cny(view.posted_nano)} of {cny(view.limit_nano)} CNY are spent; "
            f"it starts anew at {anew}"
        )
        found.append(_alert(AlertKind.FORECAST, 0, text, view, counter, ends_s))
    return tuple(found)


def _alert(
    kind: AlertKind,
    percent: int,
    text: str,
    view: BudgetView,
    counter: str,
    ends_s: float | None = None,
) -> Alert:
    return Alert(
        key=f"{counter}|{view.limit_nano}|{kind.value}|{percent}",
        kind=kind,
        percent=percent,
        text=text,
        used_up_at_s=ends_s,
    )
