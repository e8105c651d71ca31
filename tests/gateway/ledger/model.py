"""The ledger as plain Python: the oracle that the real one is compared with.

It is written from the description, not from the Lua: dictionaries instead of Redis structures, and
no attention to speed. Every method answers in plain tuples that the test can compare.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from policies.budget import HoldState, Period, broken_books, broken_counter, window_at

REMEMBER_S = 60
LEASE_S = 10


@dataclass
class Counter:
    posted: int = 0
    held: int = 0


@dataclass
class Budget:
    limit: int
    zone: str
    generation: int
    start_day: int = 1
    hard: bool = True
    frozen: bool = False

    def room(self, amount: int, counter: Counter) -> bool:
        if self.frozen:
            return False
        return not self.hard or counter.posted + counter.held + amount <= self.limit


@dataclass
class Hold:
    owner: str
    amount: int
    state: HoldState
    deadline_s: float
    counters: list[tuple[str, str, int, str]]
    posted: int = 0
    forget_s: float = 0.0


@dataclass
class Books:
    """scope and period -> budget; (scope, period, generation, window) -> counter; id -> hold."""

    budgets: dict[tuple[str, str], Budget] = field(default_factory=dict)
    counters: dict[tuple[str, str, int, str], Counter] = field(default_factory=dict)
    holds: dict[str, Hold] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    rows: list[tuple[str, int, bool]] = field(default_factory=list)  # id, posted, unreconciled
    generations: int = 0
    swept_s: float | None = None
    lowered: bool = False  # a limit was lowered, or a zone changed: counters may exceed limits

    def set_budget(
        self, scope: str, period: str, limit: int, zone: str, start_day: int = 1, hard: bool = True
    ) -> None:
        zone = "UTC" if period in ("total", "minute") else zone
        old = self.budgets.get((scope, period))
        frozen = old is not None and old.frozen
        if old is not None and (old.zone, old.start_day) == (zone, start_day):
            self.lowered = self.lowered or limit < old.limit or not (hard and old.hard)
            old.limit, old.hard = limit, hard
            return
        self.lowered = self.lowered or not hard
        self.generations += 1
        self.budgets[scope, period] = Budget(limit, zone, self.generations, start_day, hard, frozen)

    def raise_budget(self, scope: str, period: str, more: int) -> bool:
        budget = self.budgets.get((scope, period))
        if budget is not None:
            budget.limit += more
        return budget is not None

    def freeze(self, scope: str, period: str, frozen: bool) -> bool:
        budget = self.budgets.get((scope, period))
        if budget is not None:
            budget.frozen = frozen
        return budget is not None

    def reset(self, scope: str, period: str) -> bool:
        budget = self.budgets.get((scope, period))
        if budget is not None:
            self.generations += 1
            budget.generation = self.generations
        return budget is not None

    def delete_budget(self, scope: str, period: str) -> bool:
        return self.budgets.pop((scope, period), None) is not None

    def counter_id(self, scope: str, period: str, now_s: float) -> tuple[str, str, int, str]:
        budget = self.budgets[scope, period]
        window = window_at(Period(period), budget.zone, now_s, budget.start_day)
        return scope, period, budget.generation, window.id

    def counter(self, scope: str, period: str, now_s: float) -> Counter:
        return self.counters.setdefault(self.counter_id(scope, period, now_s), Counter())

    def reserve(
        self, owner: str, hold_id: str, amount: int, scopes: tuple[str, ...], sent: bool,
        life_s: float, now_s: float,
    ) -> str:  # fmt: skip
        known = self.holds.get(hold_id)
        if known is not None:
            return "reserved" if known.state.open else "closed"
        drawn = [key for scope in dict.fromkeys(scopes) for key in self.budgets if key[0] == scope]
        for key in drawn:
            counter = self.counter(*key, now_s)
            if not self.budgets[key].room(amount, counter):
                return "exhausted"
        for key in drawn:
            self.counter(*key, now_s).held += amount
        self.holds[hold_id] = Hold(
            owner,
            amount,
            HoldState.SENT if sent else HoldState.PENDING,
            now_s + life_s,
            [self.counter_id(*key, now_s) for key in drawn],
        )
        self.leases[owner] = now_s + LEASE_S
        self._forget(now_s, 2)
        return "reserved"

    def mark_sent(self, hold_id: str) -> bool:
        hold = self.holds.get(hold_id)
        if hold is None or not hold.state.open:
            return False
        hold.state = HoldState.SENT
        return True

    def grow(self, hold_id: str, amount: int) -> str:
        hold = self.holds.get(hold_id)
        if hold is None or not hold.state.open or hold.amount == 0:
            return "closed"
        more = max(0, amount - hold.amount)
        for scope, period, generation, window in hold.counters:
            budget = self.budgets.get((scope, period))
            if budget is None or budget.generation != generation:
                continue  # it binds nobody any more
            counter = self.counters[scope, period, generation, window]
            if more and not budget.room(more, counter):
                return "exhausted"
        for counter_id in hold.counters:
            self.counters[counter_id].held += more
        hold.amount += more
        return "reserved"

    def settle(self, hold_id: str, cost: int, now_s: float) -> tuple[int, bool, HoldState | None]:
        hold = self.holds.get(hold_id)
        if hold is None:
            return 0, True, None
        if not hold.state.open:
            return hold.posted, True, hold.state
        self._resolve(hold, HoldState.POSTED, min(cost, hold.amount), now_s)
        self.rows.append((hold_id, hold.posted, False))
        return hold.posted, False, HoldState.POSTED

    def void(self, owner: str, hold_id: str, now_s: float) -> None:
        hold = self.holds.get(hold_id)
        if hold is None:
            self.holds[hold_id] = Hold(
                owner, 0, HoldState.VOIDED, 0, [], forget_s=now_s + REMEMBER_S
            )
        elif hold.state.open:
            self._resolve(hold, HoldState.VOIDED, 0, now_s)

    def sweep(self, now_s: float) -> tuple[int, int]:
        if self.swept_s is not None and now_s - self.swept_s > LEASE_S:
            for owner in self.leases:
                self.leases[owner] = max(self.leases[owner], now_s + LEASE_S)
        self.swept_s = now_s
        voided = expired = 0
        for hold_id, hold in list(self.holds.items()):
            dead = self.leases.get(hold.owner, 0) <= now_s
            if not hold.state.open or not (dead or hold.deadline_s <= now_s):
                continue
            ends = hold.state.at_deadline()
            self._resolve(hold, ends, hold.amount if ends is HoldState.EXPIRED else 0, now_s)
            voided += ends is HoldState.VOIDED
            expired += ends is HoldState.EXPIRED
            if ends is HoldState.EXPIRED:
                self.rows.append((hold_id, hold.posted, True))
        self.leases = {owner: ends for owner, ends in self.leases.items() if ends > now_s}
        self._forget(now_s, None)
        return voided, expired

    def _resolve(self, hold: Hold, state: HoldState, posted: int, now_s: float) -> None:
        for counter_id in hold.counters:
            self.counters[counter_id].held -= hold.amount
            self.counters[counter_id].posted += posted
        hold.state, hold.posted, hold.forget_s = state, posted, now_s + REMEMBER_S

    def _forget(self, now_s: float, count: int | None) -> None:
        due = [
            (hold.forget_s, hold_id)
            for hold_id, hold in self.holds.items()
            if not hold.state.open and hold.forget_s <= now_s
        ]
        for _, hold_id in sorted(due)[:count]:
            del self.holds[hold_id]

    def held(self) -> int:
        return sum(hold.amount for hold in self.holds.values() if hold.state.open)

    def posted(self) -> int:
        return sum(posted for _, posted, _ in self.rows)

    def flaws(self, now_s: float) -> list[str]:
        """Whatever the oracle itself finds wrong with its own figures."""
        found = list(
            broken_books(
                till_posted_nano=self.posted(),
                till_held_nano=self.held(),
                rows_posted_nano=sum(posted for _, posted, _ in self.rows),
                open_holds_nano=self.held(),
            )
        )
        for (scope, period), budget in self.budgets.items():
            if not self.lowered:
                counter = self.counter(scope, period, now_s)
                found += broken_counter(
                    limit_nano=budget.limit, posted_nano=counter.posted, held_nano=counter.held
                )
        return found
