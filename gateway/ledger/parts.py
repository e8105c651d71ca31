"""What the ledger is made of: its values, its Lua scripts, and the names of its keys in Redis."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from gateway.ledger.rows import Row
from gateway.redis.link import Bound, Script
from policies.budget import HoldState, Period
from policies.types import BudgetView, Value

REMEMBER_S: Final = 60.0  # how long a resolved hold is remembered
REMEMBER_MS: Final = int(1000 * REMEMBER_S)
HOLD_S_MAX: Final = 86_400.0  # bounds how long a row may be booked after its request arrived


class HoldRequest(Value, frozen=True, kw_only=True):
    """Money to hold for one attempt.

    id:         "<request_id>.<attempt>"
    scopes:     every scope of the attempt; those without a budget do not matter
    sent:       True: the hold begins as SENT (local: there is no moment between the two)
    deadline_s: wall clock of the caller; later than the attempt can possibly end
    draft:      the row that is written should nobody settle the hold. Settle or void an attempt
                before reserving the next, then the draft's final=True is right.
    """

    id: str
    amount_nano: int
    scopes: tuple[str, ...]
    sent: bool
    deadline_s: float
    draft: Row


class Reserved(Value, frozen=True, kw_only=True):
    """The money is held. `budgets`: every budget drawn on, as it stands now."""

    hold_id: str
    budgets: tuple[BudgetView, ...]


class Exhausted(Value, frozen=True, kw_only=True):
    """Nothing is held: this budget has no room for the amount, or is frozen."""

    budget: BudgetView
    period: Period
    amount_nano: int = 0  # what was asked for


class Settled(Value, frozen=True, kw_only=True):
    """posted_nano: what this hold posted. already: it was resolved before, in `state`; None there:
    nothing is known of it (never reserved, or forgotten), and nothing was posted."""

    posted_nano: int
    already: bool
    state: HoldState | None = HoldState.POSTED


class Corrected(Value, frozen=True, kw_only=True):
    """difference_nano: what the correction of this hold added to what it posted. already: it was
    booked before, and nothing changed."""

    difference_nano: int
    already: bool


class Swept(Value, frozen=True, kw_only=True):
    voided: int
    expired: int


class Till(Value, frozen=True, kw_only=True):
    """Everything ever posted and everything held now, budgets or not."""

    posted_nano: int
    held_nano: int


class HoldClosed(Exception):
    """A hold with this id was resolved before (a reservation that came after its void)."""

    def __init__(self, hold_id: str, state: HoldState) -> None:
        super().__init__(f"hold {hold_id} is {state.value} already")
        self.state = state


_LUA: Final = Path(__file__).parent / "lua"


def script(name: str) -> Script:
    """A script of the books by its file's name; Redis knows it by the hash of its text."""
    common = (_LUA / "common.lua").read_text(encoding="utf-8")
    return Script(common + (_LUA / f"{name}.lua").read_text(encoding="utf-8"), name)


RESERVE, MARK_SENT, SETTLE, VOID = map(script, ("reserve", "mark_sent", "settle", "void"))
GROW, RESTORE, STANDING, BOOK = map(script, ("grow", "restore", "standing", "book"))
SWEEP, LEASE, DEFINITIONS = map(script, ("sweep", "lease", "definitions"))
SET_BUDGET, DELETE_BUDGET = map(script, ("set_budget", "delete_budget"))
CORRECT = script("correct")


class Keys:
    """Names of everything in Redis (one hash tag: a cluster keeps them in one place), and the
    scripts bound to them."""

    def __init__(self, books: str, owner: str) -> None:
        self.owner = owner
        base = f"yuzui:{{{books}}}:"
        self.limits, self.defs, self.counters = base + "limits", base + "defs", base + "counters"
        self.holds, self.drafts, self.done = base + "holds", base + "drafts", base + "done"
        self.periods, self.owners, self.swept = base + "periods", base + "owners", base + "swept"
        self.till, self.rows, self.audit = base + "till", base + "rows", base + "audit"
        self.archive, self.archiver = base + "archive", base + "archiver"
        self.corrected = base + "corrected"
        mine = self.open_of(owner)
        holds = (self.holds, self.drafts, self.counters)
        self.reserve = Bound(
            RESERVE,
            (self.limits, self.defs, self.counters, self.periods, self.holds, self.drafts,
             self.owners, mine, self.done, self.till),
        )  # fmt: skip
        self.mark_sent = Bound(MARK_SENT, (self.holds,))
        self.grow = Bound(
            GROW, (self.limits, self.defs, self.counters, self.holds, mine, self.till)
        )
        self.restore = Bound(RESTORE, (*holds, mine, self.till, self.owners, self.periods))
        self.book = Bound(
            BOOK, (base + "spools", self.counters, self.till, self.rows, self.periods)
        )
        self.standing = Bound(STANDING, (self.till, self.rows, self.holds, self.limits))
        self.settle = Bound(SETTLE, (*holds, mine, self.done, self.till, self.rows))
        self.void = Bound(VOID, (*holds, mine, self.done, self.till))
        self.lease = Bound(LEASE, (self.owners,))
        self.definitions = Bound(DEFINITIONS, (self.limits, self.defs))
        changed = (self.limits, self.defs, self.counters, self.audit, self.periods)
        self.set_budget = Bound(SET_BUDGET, changed)
        self.delete_budget = Bound(DELETE_BUDGET, changed)
        self.correct = Bound(
            CORRECT,
            (base + "corrections", self.corrected, self.counters, self.till, self.rows),
        )

    def sweep(self, owners: Iterable[str]) -> Bound:
        return Bound(
            SWEEP,
            (self.holds, self.drafts, self.counters, self.done, self.till, self.rows,
             self.owners, self.periods, self.swept, *map(self.open_of, owners)),
        )  # fmt: skip

    def alert(self, crossing: str) -> str:
        return f"{self.owners[: -len('owners')]}alert:{crossing}"

    def open_of(self, owner: str) -> str:
        return f"{self.owners[: -len('owners')]}open:{owner}"
