"""The books and the bill in the same cells: the words that `policies.reconcile` works with.

A bill has no line for a request. It has items: so many tokens of a kind, of a model, in a band of
its prices, in a period of five minutes, perhaps of an endpoint. Rows of the books are added up in
the same cells, so that both can be compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple, Protocol

from policies.types import Value

PERIOD_MS = 300_000
HOUR_MS = 3_600_000
ROUNDING_NANO = 1_000  # one of the sixth decimal of a CNY

KINDS = ("input", "cached", "output")
Three = tuple[int, int, int]  # of each kind, in the order of KINDS
NOTHING: Three = (0, 0, 0)


class Lane(NamedTuple):
    """What is never mixed up: one model behind one endpoint ("": the Model ID itself)."""

    model: str
    endpoint: str


class Place(NamedTuple):
    """A period (its start, milliseconds since 1970) and a tier, by the card's name for it."""

    period_ms: int
    tier: str


class Booked(Value, frozen=True, kw_only=True):
    """A row of the books whose tokens are known. nano: by the list price, of each kind. folded:
    cached tokens that stand among the input, because the tier has no price for them."""

    hold_id: str
    ended_ms: int
    lane: Lane
    tier: str
    tokens: Three
    nano: Three
    folded: int = 0


class Open(Value, frozen=True, kw_only=True):
    """A row that was booked at its bound. It ended between from_ms and to_ms, which are the same
    unless its gateway was lost. card: the version that it was priced by."""

    hold_id: str
    from_ms: int
    to_ms: int
    lane: Lane
    posted_nano: int
    card: str


class Billed(Value, frozen=True, kw_only=True):
    """An item of the bill. nano: by the list price; payable_nano: after discounts."""

    period_ms: int
    lane: Lane
    tier: str
    kind: str
    tokens: int
    nano: int
    payable_nano: int

    @property
    def place(self) -> Place:
        return Place(self.period_ms, self.tier)


class Counted(Value, frozen=True, kw_only=True):
    """What Ark counted in an hour, whatever it billed."""

    hour_ms: int
    lane: Lane
    tokens: Three
    requests: int


class Prices(Protocol):
    """The price cards, as far as an open hold needs them."""

    def tier_of(self, hold: Open, tokens: Three) -> str | None:
        """The tier of a request with these tokens; None: the card does not price the model."""

    def nano(self, hold: Open, tier: str, tokens: Three) -> Three | None:
        """What tokens cost in that tier; None: the card has no such tier."""


class Status(StrEnum):
    MISSING = "missing"  # booked, and not in the bill
    EXTRA = "extra"  # billed, and not in the books
    DRIFT = "drift"  # other tokens
    PRICE = "price"  # the same tokens for other money
    USAGE = "usage"  # Ark counted other tokens than the books
    DISPUTED = "disputed"  # bill and count disagree where several holds are open


class Finding(Value, frozen=True, kw_only=True):
    """A difference that nothing explains. period_ms: of five minutes, or for `usage` and `disputed`
    of the hour."""

    status: Status
    period_ms: int
    lane: Lane
    tier: str
    kind: str
    booked_tokens: int
    billed_tokens: int
    booked_nano: int
    billed_nano: int

    @property
    def nano(self) -> int:
        return self.billed_nano - self.booked_nano


class Resolved(Value, frozen=True, kw_only=True):
    """What an open hold really was, and the period in which it was billed.

    by: usage (Ark's count says so), bill (what is left of the bill does), nothing (it was neither
    billed nor counted), share (one of several that cannot be told apart: only their sum is known)
    """

    hold: Open
    period_ms: int
    tier: str
    tokens: Three
    nano: Three
    by: str

    @property
    def difference_nano(self) -> int:
        return sum(self.nano) - self.hold.posted_nano


class Options(Value, frozen=True, kw_only=True):
    """slack_ms: how far from the end of a period clocks may disagree.   from_ms, to_ms: the time
    that is looked at; items outside only serve to place what lies at its edges.
    counted: whether Ark's own count was to be had."""

    from_ms: int
    to_ms: int
    slack_ms: int = 5_000
    counted: bool = True

    def covers(self, period_ms: int) -> bool:
        return self.from_ms <= period_ms < self.to_ms


class Sums(Value, frozen=True, kw_only=True):
    """In nano-CNY, so that nothing is lost on the way:

        billed == booked + resolved + disputed + findings + rounding

    booked: of rows whose tokens are known, by the list price.  disputed: billed where open holds
    may have ended and nobody can say what they were.  discount: of what was billed, not payable.
    """

    billed: int
    booked: int
    resolved: int
    disputed: int
    findings: int
    rounding: int
    discount: int


class Reconciled(Value, frozen=True, kw_only=True):
    """matched: items that agree."""

    matched: int
    findings: tuple[Finding, ...]
    resolved: tuple[Resolved, ...]
    disputed: tuple[Open, ...]
    sums: Sums


class Cell:
    """One place of a lane: both sides of it, kind by kind."""

    __slots__ = (
        "billed", "billed_nano", "booked", "booked_nano", "folded", "items", "payable_nano",
    )  # fmt: skip

    def __init__(self) -> None:
        self.booked, self.booked_nano = [0, 0, 0], [0, 0, 0]
        self.billed, self.billed_nano = [0, 0, 0], [0, 0, 0]
        self.items = [0, 0, 0]
        self.payable_nano = self.folded = 0

    def book(self, tokens: Three, nano: Three, folded: int = 0) -> None:
        for i in range(3):
            self.booked[i] += tokens[i]
            self.booked_nano[i] += nano[i]
        self.folded += folded

    def unbook(self, tokens: Three, nano: Three, folded: int = 0) -> None:
        self.book(minus(NOTHING, tokens), minus(NOTHING, nano), -folded)

    def bill(self, item: Billed) -> None:
        i = KINDS.index(item.kind)
        self.billed[i] += item.tokens
        self.billed_nano[i] += item.nano
        self.items[i] += 1
        self.payable_nano += item.payable_nano

    @property
    def used(self) -> Three:
        """What is booked, as Ark counts it: cached tokens apart, whatever they cost."""
        fresh, cached, completion = self.booked
        return fresh - self.folded, cached + self.folded, completion

    @property
    def left(self) -> Three:
        """Billed and not booked, by kind; negative where more was booked."""
        return minus(three(self.billed), three(self.booked))


class Sheet(dict[Place, Cell]):
    """All cells of a lane."""

    def __missing__(self, place: Place) -> Cell:
        cell = self[place] = Cell()
        return cell


def period(at_ms: int) -> int:
    return at_ms - at_ms % PERIOD_MS


def hour(at_ms: int) -> int:
    return at_ms - at_ms % HOUR_MS


def three(figures: Iterable[int]) -> Three:
    a, b, c = figures
    return a, b, c


def plus(a: Three, b: Three) -> Three:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def minus(a: Three, b: Three) -> Three:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def distance(a: Three, b: Three) -> int:
    return sum(map(abs, minus(a, b)))
