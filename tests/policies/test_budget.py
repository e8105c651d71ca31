from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.budget import (
    HoldState,
    Period,
    Window,
    broken_books,
    broken_counter,
    check_scope,
    check_zone,
    fits,
    posted_of,
    window_at,
)
from policies.types import MONEY_NANO_MAX

# Zones with a change at midnight, with half hours, without changes, and on the other side of the
# date line. St. John's put its clock back at 00:01 until 2011: the day before came twice.
ZONES = [
    "UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York", "America/St_Johns",
    "America/Sao_Paulo", "Asia/Beirut", "Africa/Cairo", "Australia/Lord_Howe", "Asia/Kathmandu",
    "Pacific/Apia",
]  # fmt: skip


EPOCH_1990_S, EPOCH_2035_S = 631_152_000, 2_051_222_400


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("period", "zone", "now", "expected"),
    [
        (Period.DAY, "UTC", "2026-11-22T23:59:59+00:00",
         ("2026-11-22", "2026-11-22T00:00+00:00", "2026-11-23T00:00+00:00")),
        (Period.DAY, "Asia/Shanghai", "2026-11-22T16:00:00+00:00",
         ("2026-11-23", "2026-11-22T16:00+00:00", "2026-11-23T16:00+00:00")),
        (Period.MONTH, "Asia/Shanghai", "2026-12-31T15:59:59+00:00",
         ("2026-12", "2026-11-30T16:00+00:00", "2026-12-31T16:00+00:00")),
        # 25 hours: the clock is put back
        (Period.DAY, "Europe/Berlin", "2026-10-25T12:00:00+01:00",
         ("2026-10-25", "2026-10-25T00:00+02:00", "2026-10-26T00:00+01:00")),
        # midnight is skipped: the day begins when the clock jumps to one
        (Period.DAY, "America/Sao_Paulo", "2018-11-04T05:00:00-02:00",
         ("2018-11-04", "2018-11-04T00:00-03:00", "2018-11-05T00:00-02:00")),
        # 00:01 back to 23:01: the new day has begun and goes on, though the date says otherwise
        (Period.DAY, "America/St_Johns", "2010-11-06T23:30:00-03:30",
         ("2010-11-07", "2010-11-07T00:00-02:30", "2010-11-08T00:00-03:30")),
        (Period.MONTH, "Europe/Berlin", "2026-03-31T23:30:00+02:00",
         ("2026-03", "2026-03-01T00:00+01:00", "2026-04-01T00:00+02:00")),
    ],
)  # fmt: skip
def test_windows(period: Period, zone: str, now: str, expected: tuple[str, str, str]) -> None:
    window_id, starts, resets = expected
    found = window_at(period, zone, at(now))
    assert found == Window(id=window_id, starts_s=at(starts), resets_at_s=at(resets))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([Period.DAY, Period.MONTH]),
    st.sampled_from(ZONES),
    st.integers(EPOCH_1990_S, EPOCH_2035_S),
)
def test_windows_follow_each_other_without_gap_or_overlap(
    period: Period, zone: str, now_s: int
) -> None:
    window = window_at(period, zone, now_s)
    assert window.starts_s is not None
    assert window.resets_at_s is not None
    assert window.covers(now_s)
    assert window_at(period, zone, window.starts_s) == window
    assert window_at(period, zone, window.resets_at_s - 0.001) == window
    following = window_at(period, zone, window.resets_at_s)
    assert following.starts_s == window.resets_at_s
    assert following.id > window.id


def test_total_never_resets() -> None:
    window = window_at(Period.TOTAL, "UTC", at("2026-11-22T00:00:00+00:00"))
    assert window == Window(id="total", starts_s=None, resets_at_s=None)
    assert window.covers(0)


@pytest.mark.parametrize("now_s", [float("inf"), 1e18, -1e18, float("nan")])
def test_a_moment_outside_the_calendar_is_refused(now_s: float) -> None:
    with pytest.raises(ValueError, match="moment of the calendar"):
        window_at(Period.DAY, "UTC", now_s)


@pytest.mark.parametrize("scope", ["tenant:acme", "user:a|b@c:d", "org:鱼嘴", "label:internal"])
def test_scopes_that_may_have_a_budget(scope: str) -> None:
    assert check_scope(scope) == scope


@pytest.mark.parametrize(
    "scope",
    ["", "acme", "tenant:", "planet:mars", "tenant:a b", "tenant:a\nb", "tenant:\x00",
     "tenant:" + "a" * 129, "tenant:a\u2028b", ":a", "Tenant:a"],
)  # fmt: skip
def test_scopes_that_may_not(scope: str) -> None:
    with pytest.raises(ValueError, match="budget scope"):
        check_scope(scope)


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "../../etc/passwd", "/etc/passwd", "a\x00b"])
def test_unknown_zones(zone: str) -> None:
    with pytest.raises(ValueError, match="time zone"):
        check_zone(zone)


money = st.integers(0, MONEY_NANO_MAX)


@given(money, money, money, money)
def test_what_fits_breaks_nothing(amount: int, limit: int, posted: int, held: int) -> None:
    if fits(amount, limit_nano=limit, posted_nano=posted, held_nano=held):
        assert not broken_counter(limit_nano=limit, posted_nano=posted, held_nano=held + amount)
    assert posted_of(amount, held) <= held


def test_broken_figures_are_named() -> None:
    assert len(broken_counter(limit_nano=2**60, posted_nano=-1, held_nano=-1)) == 3
    assert broken_counter(limit_nano=1, posted_nano=1, held_nano=1) == (
        "posted 1 + held 1 is above the limit 1",
    )
    books = {"till_posted_nano": 5, "till_held_nano": 2}
    assert broken_books(**books, rows_posted_nano=5, open_holds_nano=2) == ()
    assert len(broken_books(**books, rows_posted_nano=4, open_holds_nano=1)) == 2


def test_what_becomes_of_a_hold() -> None:
    assert {state: state.at_deadline() for state in HoldState} == {
        HoldState.PENDING: HoldState.VOIDED,
        HoldState.SENT: HoldState.EXPIRED,
        HoldState.POSTED: HoldState.POSTED,
        HoldState.VOIDED: HoldState.VOIDED,
        HoldState.EXPIRED: HoldState.EXPIRED,
    }
    assert [state for state in HoldState if state.open] == [HoldState.PENDING, HoldState.SENT]
