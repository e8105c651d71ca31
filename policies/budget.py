"""Budgets: scopes, periods, and what must be true of the books at any moment.

A budget limits one scope (`tenant:acme`) over one period (minute to month, or total) of one time
zone. Its figures are two integers of nano-CNY: `posted`, what has been spent, and `held`, what open
requests may still cost. The ledger keeps them in Redis; this module is the arithmetic around them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from policies.types import MONEY_NANO_MAX, NANO_PER_CNY, BudgetView, SoftLimit, Value

SCOPE_KINDS = frozenset({"org", "tenant", "key", "user", "model", "backend", "label"})
SCOPE_NAME_CHARS_MAX = 128  # long enough for an e-mail address or a model id; keeps keys short


class HoldState(StrEnum):
    """The life of a hold: PENDING -> SENT -> POSTED | VOIDED | EXPIRED.

    PENDING  money is held, nothing was sent
    SENT     the request is on its way and may be billed
    POSTED   settled: what it cost is posted, its row is written
    VOIDED   given back: certainly not billed
    EXPIRED  nobody settled it in time: posted in full, its row says `unreconciled`
    """

    PENDING = "pending"
    SENT = "sent"
    POSTED = "posted"
    VOIDED = "voided"
    EXPIRED = "expired"

    @property
    def open(self) -> bool:
        return self in (HoldState.PENDING, HoldState.SENT)

    def at_deadline(self) -> HoldState:
        """What becomes of an open hold that nobody resolved; a resolved one stays as it is."""
        if self is HoldState.PENDING:
            return HoldState.VOIDED
        return HoldState.EXPIRED if self is HoldState.SENT else self


class Period(StrEnum):
    """How long a budget counts before it begins again at nothing."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"  # never begins again

    @property
    def zoned(self) -> bool:
        """Whether its ends depend on a time zone: minutes are the same in all of them."""
        return self not in (Period.MINUTE, Period.TOTAL)


class BudgetOptions(Value, frozen=True, kw_only=True, omit_defaults=True):
    """What a budget does besides its limit.

    hard:     False: it counts, steers and alerts, and never refuses
    soft:     from which share on the plan steers, and how
    pace:     the soft limits also apply while spending runs ahead of the clock of the period
    alerts:   shares in percent at which somebody is told
    forecast: tell when, at the present pace, the period will not end within its limit
    """

    hard: bool = True
    soft: tuple[SoftLimit, ...] = ()
    pace: bool = False
    alerts: tuple[int, ...] = (80, 100)
    forecast: bool = True


PERCENT_MAX = 1_000  # a soft budget may be overrun by any measure, an alert at ten times is enough
STEPS_MAX = 16


def check_options(options: BudgetOptions, period: Period) -> BudgetOptions:
    """Returns `options` when they make sense for a budget of this period. Raises ValueError."""
    if len(options.soft) > STEPS_MAX or len(options.alerts) > STEPS_MAX:
        raise ValueError(f"a budget has at most {STEPS_MAX} soft limits and {STEPS_MAX} alerts")
    for percent in (*options.alerts, *(step.at_percent for step in options.soft)):
        if not 0 < percent <= PERCENT_MAX:
            raise ValueError(f"a threshold is 1 to {PERCENT_MAX} percent, not {percent}")
    if options.pace and period is Period.TOTAL:
        raise ValueError("a budget over everything (total) has no pace: it never ends")
    if options.pace and not options.soft:
        raise ValueError("pacing steers as the soft limits say: give at least one")
    return options


class Window(Value, frozen=True, kw_only=True):
    """One period of a budget: `starts_s` <= now < `resets_at_s`, wall clock.

    `id` names it inside the ledger, e.g. "2026-11-22". For Period.TOTAL both ends are None.
    """

    id: str
    starts_s: float | None = None
    resets_at_s: float | None = None

    def covers(self, now_s: float) -> bool:
        return (self.starts_s is None or now_s >= self.starts_s) and (
            self.resets_at_s is None or now_s < self.resets_at_s
        )


def check_scope(scope: str) -> str:
    """Returns `scope` when it reads kind:name. Raises ValueError with the reason."""
    kind, colon, name = scope.partition(":")
    if not colon or kind not in SCOPE_KINDS:
        kinds = ", ".join(sorted(SCOPE_KINDS))
        raise ValueError(f"budget scope {scope!r} is not kind:name with a kind of: {kinds}")
    if not name or len(name) > SCOPE_NAME_CHARS_MAX:
        raise ValueError(f"the name in a budget scope has 1 to {SCOPE_NAME_CHARS_MAX} characters")
    if not name.isprintable() or any(char.isspace() for char in name):
        raise ValueError("the name in a budget scope has no blanks and no control characters")
    return scope


def check_zone(zone: str) -> str:
    """Returns `zone` when it is a known IANA name. Raises ValueError."""
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ValueError(f"time zone {zone!r} is unknown; write an IANA name") from error
    return zone


START_DAY_LAST: dict[Period, int] = {Period.WEEK: 7, Period.MONTH: 28}


def check_start_day(period: Period, start_day: int) -> int:
    """Returns the day on which a period begins: 1 (Monday) to 7 of a week, 1 to 28 of a month (the
    29th is not in every month); other periods have none and take 1. Raises ValueError."""
    last = START_DAY_LAST.get(period, 1)
    if not 1 <= start_day <= last:
        raise ValueError(f"a budget's {period.value} starts on day 1 to {last}, not {start_day}")
    return start_day


def window_at(period: Period, zone: str, now_s: float, start_day: int = 1) -> Window:
    """The period that `now_s` (wall clock, seconds) falls into.

    Days, weeks and months begin at local midnight. Where the clock is put back across midnight,
    the day begins when midnight is struck first; where it is skipped, at the moment of the change.
    Hours begin with the hour of the zone's standard time, which summer time of half an hour does
    not move. So the windows of a zone follow each other without gap or overlap.

    start_day: see check_start_day. Raises ValueError for an unknown zone or a moment outside the
    calendar.
    """
    if period is Period.TOTAL:
        return Window(id="total")
    tz = ZoneInfo(check_zone(zone))
    try:
        local = datetime.fromtimestamp(now_s, tz)
        if period in _SECONDS:
            return _clock_window(period, local, now_s)
        first, following, name = _CALENDAR[period]
        day = first(local.date(), start_day)
        # The local date alone is not enough: it may jump back when the clock is put back.
        if now_s >= _midnight_s(following(day), tz):
            day = following(day)
        starts_s, resets_at_s = _midnight_s(day, tz), _midnight_s(following(day), tz)
    except (OverflowError, OSError, ValueError) as error:
        raise ValueError(f"{now_s} is not a moment of the calendar") from error
    assert starts_s <= now_s < resets_at_s, "windows follow each other without a gap"
    return Window(id=day.strftime(name), starts_s=starts_s, resets_at_s=resets_at_s)


_SECONDS: dict[Period, int] = {Period.MINUTE: 60, Period.HOUR: 3600}


def _clock_window(period: Period, local: datetime, now_s: float) -> Window:
    length_s, zero = _SECONDS[period], timedelta(0)
    standard = (local.utcoffset() or zero) - (local.dst() or zero)
    shift_s = int(standard.total_seconds()) % 3600 if period is Period.HOUR else 0
    starts_s = (int(now_s // 1) + shift_s) // length_s * length_s - shift_s
    name = datetime.fromtimestamp(starts_s, UTC).strftime("%Y-%m-%dT%H:%MZ")
    return Window(id=name, starts_s=float(starts_s), resets_at_s=float(starts_s + length_s))


def _midnight_s(day: date, tz: ZoneInfo) -> float:
    """The first moment of a local day. fold=0 is the earlier of two midnights, and in a gap it
    reads the clock of before the change, which is the moment of the change itself."""
    return datetime(day.year, day.month, day.day, tzinfo=tz).astimezone(UTC).timestamp()


def _same_day(day: date, _: int) -> date:
    return day


def _week_first(day: date, start_day: int) -> date:
    return day - timedelta(days=(day.isoweekday() - start_day) % 7)


def _month_first(day: date, start_day: int) -> date:
    if day.day < start_day:
        day = day.replace(day=1) - timedelta(days=1)
    return day.replace(day=start_day)


def _next_month(first: date) -> date:
    return (first.replace(day=1) + timedelta(days=31)).replace(day=first.day)


# first day of the period of a date, first day of the next period, how its id is written
_CALENDAR: dict[Period, tuple[Callable[[date, int], date], Callable[[date], date], str]] = {
    Period.DAY: (_same_day, lambda day: day + timedelta(days=1), "%Y-%m-%d"),
    Period.WEEK: (_week_first, lambda day: day + timedelta(days=7), "w%Y-%m-%d"),
    Period.MONTH: (_month_first, _next_month, "%Y-%m"),
}


def cny(nano: int) -> str:
    """Nano-CNY as an exact decimal number of yuan, such as 0.000324."""
    sign, nano = ("-", -nano) if nano < 0 else ("", nano)
    text = f"{nano // NANO_PER_CNY}.{nano % NANO_PER_CNY:09d}".rstrip("0")
    return sign + (text + "0" if text.endswith(".") else text)


def refusal_text(budget: BudgetView, amount_nano: int) -> str:
    """What the caller of a refused request is told of the budget that had no room for it."""
    text = (
        f"the budget {budget.scope} ({budget.period}) is "
        f"{'frozen' if budget.frozen else 'exhausted'}: limit {cny(budget.limit_nano)} CNY, "
        f"posted {cny(budget.posted_nano)}, held {cny(budget.held_nano)}, "
        f"asked for {cny(amount_nano)}"
    )
    if budget.resets_at_s is not None:
        moment = datetime.fromtimestamp(budget.resets_at_s, UTC).isoformat()
        text += f"; it starts anew at {moment}"
    return text


def fits(amount_nano: int, *, limit_nano: int, posted_nano: int, held_nano: int) -> bool:
    """Whether a hold of `amount_nano` leaves posted + held within the limit."""
    return amount_nano <= limit_nano - posted_nano - held_nano


def posted_of(claimed_nano: int, held_nano: int) -> int:
    """What is posted when `claimed_nano` is claimed on a hold: never more than was held."""
    return min(max(claimed_nano, 0), held_nano)


def broken_counter(*, limit_nano: int, posted_nano: int, held_nano: int) -> tuple[str, ...]:
    """What is wrong with one counter whose limit was never lowered; empty when nothing is."""
    found = []
    if posted_nano < 0:
        found.append(f"posted is negative: {posted_nano}")
    if held_nano < 0:
        found.append(f"held is negative: {held_nano}")
    if posted_nano + held_nano > limit_nano:
        found.append(f"posted {posted_nano} + held {held_nano} is above the limit {limit_nano}")
    if limit_nano > MONEY_NANO_MAX:
        found.append(f"limit {limit_nano} is above {MONEY_NANO_MAX}")
    return tuple(found)


def broken_books(
    *, till_posted_nano: int, till_held_nano: int, rows_posted_nano: int, open_holds_nano: int
) -> tuple[str, ...]:
    """What is wrong between till, rows and open holds; empty when they agree to the last unit."""
    found = []
    if till_posted_nano != rows_posted_nano:
        found.append(f"posted {till_posted_nano} but the rows sum to {rows_posted_nano}")
    if till_held_nano != open_holds_nano:
        found.append(f"held {till_held_nano} but the open holds sum to {open_holds_nano}")
    return tuple(found)
