from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from policies.budget import (
    START_DAY_LAST,
    BudgetOptions,
    HoldState,
    Period,
    Window,
    broken_books,
    broken_counter,
    check_options,
    check_scope,
    check_start_day,
    check_zone,
    cny,
    fits,
    posted_of,
    refusal_text,
    window_at,
)
from policies.budget import window_at as of_day
from policies.types import MONEY_NANO_MAX, BudgetView, SoftLimit, Steer

SOFT = SoftLimit(at_percent=80, steer=Steer.PREFER_LOCAL)

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
        (Period.WEEK, "Asia/Shanghai", "2026-11-29T23:59:59+08:00",
         ("w2026-11-23", "2026-11-23T00:00+08:00", "2026-11-30T00:00+08:00")),
        (Period.HOUR, "Asia/Kolkata", "2026-11-22T09:29:59+00:00",
         ("2026-11-22T08:30Z", "2026-11-22T08:30+00:00", "2026-11-22T09:30+00:00")),
        # summer time of half an hour does not move the hours
        (Period.HOUR, "Australia/Lord_Howe", "2026-12-22T09:29:59+00:00",
         ("2026-12-22T08:30Z", "2026-12-22T08:30+00:00", "2026-12-22T09:30+00:00")),
        (Period.MINUTE, "Asia/Kathmandu", "2026-11-22T09:29:59.9+00:00",
         ("2026-11-22T09:29Z", "2026-11-22T09:29+00:00", "2026-11-22T09:30+00:00")),
    ],
)  # fmt: skip
def test_windows(period: Period, zone: str, now: str, expected: tuple[str, str, str]) -> None:
    window_id, starts, resets = expected
    found = window_at(period, zone, at(now))
    assert found == Window(id=window_id, starts_s=at(starts), resets_at_s=at(resets))


@pytest.mark.parametrize(
    ("period", "start_day", "now", "starts"),
    [
        (Period.MONTH, 15, "2026-11-14T23:59:59+08:00", "2026-10-15"),
        (Period.MONTH, 15, "2026-11-15T00:00:00+08:00", "2026-11-15"),
        (Period.MONTH, 28, "2026-03-01T00:00:00+08:00", "2026-02-28"),
        (Period.MONTH, 2, "2026-01-01T00:00:00+08:00", "2025-12-02"),
        (Period.WEEK, 7, "2026-11-22T12:00:00+08:00", "2026-11-22"),  # a Sunday
        (Period.WEEK, 7, "2026-11-28T23:59:59+08:00", "2026-11-22"),
        (Period.WEEK, 3, "2026-11-24T12:00:00+08:00", "2026-11-18"),
    ],
)
def test_weeks_and_months_begin_on_the_day_they_are_told(
    period: Period, start_day: int, now: str, starts: str
) -> None:
    window = window_at(period, "Asia/Shanghai", at(now), start_day)
    assert window.starts_s == at(f"{starts}T00:00:00+08:00")


@pytest.mark.parametrize(
    ("period", "start_day"),
    [(Period.WEEK, 8), (Period.WEEK, 0), (Period.MONTH, 29), (Period.DAY, 2), (Period.TOTAL, 2)],
)
def test_a_day_that_not_every_period_has_is_refused(period: Period, start_day: int) -> None:
    with pytest.raises(ValueError, match="starts on day 1 to"):
        check_start_day(period, start_day)


@pytest.mark.parametrize(
    ("options", "period", "wrong"),
    [
        (BudgetOptions(alerts=(0,)), Period.DAY, "1 to 1000 percent"),
        (BudgetOptions(alerts=tuple(range(1, 18))), Period.DAY, "at most 16"),
        (BudgetOptions(pace=True), Period.DAY, "at least one"),
        (BudgetOptions(pace=True, soft=(SOFT,)), Period.TOTAL, "never ends"),
        (
            BudgetOptions(soft=(SoftLimit(at_percent=1001, steer=Steer.CHEAPER),)),
            Period.DAY,
            "1001",
        ),
    ],
)
def test_options_that_make_no_sense(options: BudgetOptions, period: Period, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        check_options(options, period)
    assert check_options(BudgetOptions(pace=True, soft=(SOFT,)), Period.DAY).pace


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(list(Period)).filter(lambda period: period is not Period.TOTAL),
    st.sampled_from(ZONES),
    st.integers(EPOCH_1990_S, EPOCH_2035_S),
    st.integers(1, 28),
)
def test_windows_follow_each_other_without_gap_or_overlap(
    period: Period, zone: str, now_s: int, start_day: int
) -> None:
    start_day = min(start_day, START_DAY_LAST.get(period, 1))

    def window_at(period: Period, zone: str, now_s: float) -> Window:
        return of_day(period, zone, now_s, start_day)

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


def test_a_refusal_names_the_scope_the_limit_what_is_held_and_the_reset() -> None:
    view = BudgetView(
        scope="tenant:a", period="day", limit_nano=10**9, posted_nano=1, held_nano=5 * 10**8,
        resets_at_s=0.0,
    )  # fmt: skip
    assert refusal_text(view, 10**9) == (
        "the budget tenant:a (day) is exhausted: limit 1.0 CNY, posted 0.000000001, held 0.5, "
        "asked for 1.0; it starts anew at 1970-01-01T00:00:00+00:00"
    )
    assert "frozen" in refusal_text(replace(view, frozen=True), 1)
    assert "anew" not in refusal_text(replace(view, resets_at_s=None), 1)


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0.0"), (1, "0.000000001"), (-1, "-0.000000001"), (10**9, "1.0"), (324_000, "0.000324"),
     (-(10**10) - 5 * 10**8, "-10.5"), (MONEY_NANO_MAX, "9007199.254740991")],
)  # fmt: skip
def test_money_is_written_exactly(nano: int, text: str) -> None:
    assert cny(nano) == text
