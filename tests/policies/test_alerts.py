from __future__ import annotations

from msgspec.structs import replace

from policies.alerts import Alert, AlertKind, alerts_due
from policies.types import BudgetView

DAY_S = 86_400.0
VIEW = BudgetView(
    scope="tenant:a", period="day", limit_nano=10**9, posted_nano=0, held_nano=10**9,
    starts_at_s=0.0, resets_at_s=DAY_S,
)  # fmt: skip


def due(posted: int, at_s: float = DAY_S, limit: int = 10**9) -> tuple[Alert, ...]:
    return alerts_due(
        replace(VIEW, posted_nano=posted, limit_nano=limit), counter="c", thresholds=(100, 50),
        forecast=True, zone="Asia/Shanghai", wall_s=at_s,
    )  # fmt: skip


def test_thresholds_are_crossed_by_what_is_posted() -> None:
    assert due(499_999_999) == ()  # what is held may be given back
    (half,) = due(500_000_000)
    assert (half.kind, half.percent) == (AlertKind.THRESHOLD, 50)
    assert half.text == "the budget tenant:a (day) is 50 % spent: 0.5 of 1.0 CNY"
    assert [each.percent for each in due(10**9)] == [50, 100]
    assert [each.percent for each in due(0, limit=0)] == [50, 100]


def test_a_raised_limit_can_be_crossed_anew() -> None:
    assert due(500_000_000)[0].key != due(10**9, limit=2 * 10**9)[0].key
    assert due(500_000_000)[0].key == due(600_000_000)[0].key


def test_a_crossing_has_one_name_among_all_gateways() -> None:
    half, whole = due(10**9)
    assert (half.key, whole.key) == ("c|1000000000|threshold|50", "c|1000000000|threshold|100")
    (ahead,) = due(400_000_000, at_s=DAY_S / 4)
    assert (ahead.key, ahead.percent) == ("c|1000000000|forecast|0", 0)
    assert [each.percent for each in due(1, limit=1)] == [50, 100]
    assert due(0, limit=1) == ()


def test_a_forecast_says_when() -> None:
    (found,) = due(400_000_000, at_s=DAY_S / 4)
    assert found.kind is AlertKind.FORECAST
    assert found.used_up_at_s == DAY_S * 0.625
    assert "at this pace the budget tenant:a (day) is used up on 1970-01-01 at 23:00" in found.text
    quiet = alerts_due(
        replace(VIEW, posted_nano=400_000_000), counter="c", thresholds=(), forecast=False,
        zone="UTC", wall_s=DAY_S / 4,
    )  # fmt: skip
    assert quiet == ()
