"""Budgets: scopes, periods, and what must be true of the books at any moment.

A budget limits one scope (`tenant:acme`) over one period (day, month, total) of one time zone. Its
figures are two integers of nano-CNY: `posted`, what has been spent, and `held`, what open requests
may still cost. The ledger keeps them in Redis; this module is the arithmetic around them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from policies.types import MONEY_NANO_MAX, Value

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

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"  # never begins again


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


def window_at(period: Period, zone: str, now_s: float) -> Window:
    """The period that `now_s` (wall clock, seconds) falls into.

    Days and months begin at local midnight. Where the clock is put back across midnight, the day
    begins when midnight is struck first; where midnight is skipped, at the moment of the change.
    So the windows of a zone follow each other without gap or overlap. Raises ValueError for an
    unknown zone or a moment outside the calendar.
    """
    if period is Period.TOTAL:
        return Window(id="total")
    first, following, name = _CALENDAR[period]
    tz = ZoneInfo(check_zone(zone))
    try:
        day = first(datetime.fromtimestamp(now_s, tz).date())
    except (OverflowError, OSError, ValueError) as error:
        raise ValueError(f"{now_s} is not a moment of the calendar") from error
    # The local date alone is not enough: it may jump back when the clock is put back.
    if now_s >= _midnight_s(following(day), tz):
        day = following(day)
    starts_s, resets_at_s = _midnight_s(day, tz), _midnight_s(following(day), tz)
    assert starts_s <= now_s < resets_at_s, "windows follow each other without a gap"
    return Window(id=day.strftime(name), starts_s=starts_s, resets_at_s=resets_at_s)


def _midnight_s(day: date, tz: ZoneInfo) -> float:
    """The first moment of a local day. fold=0 is the earlier of two midnights, and in a gap it
    reads the clock of before the change, which is the moment of the change itself."""
    return datetime(day.year, day.month, day.day, tzinfo=tz).astimezone(UTC).timestamp()


def _next_day(day: date) -> date:
    return day + timedelta(days=1)


def _month_first(day: date) -> date:
    return day.replace(day=1)


def _next_month(first: date) -> date:
    return (first + timedelta(days=31)).replace(day=1)


# first day of the period of a date, first day of the next period, how its id is written
_CALENDAR: dict[Period, tuple[Callable[[date], date], Callable[[date], date], str]] = {
    Period.DAY: (lambda day: day, _next_day, "%Y-%m-%d"),
    Period.MONTH: (_month_first, _next_month, "%Y-%m"),
}


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
