"""The budgets as this process last saw them: definitions, current periods, figures.

Redis is the authority; what stands here is only used to name the right counters in a reservation
(which Redis then checks against its own definitions) and as a hint for the plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from gateway.redis.link import Packed
from policies.budget import BudgetOptions, Period, window_at
from policies.types import BudgetView, Value

# A finished period's figures are kept this long, for holds that straddle its end (a hold lives one
# day at most) and for whoever wants to look.
KEEP_FINISHED_S = 7 * 86_400


class BudgetStatus(Value, frozen=True, kw_only=True):
    """A budget with its figures in the current period. Money in nano-CNY, wall clock in seconds."""

    scope: str
    period: Period
    zone: str
    limit_nano: int
    posted_nano: int
    held_nano: int
    resets_at_s: float | None
    version: int = 0
    starts_at_s: float | None = None  # of the current period
    start_day: int = 1
    frozen: bool = False
    options: BudgetOptions = BudgetOptions()


_options = msgspec.json.Decoder(BudgetOptions).decode


class Definition(Value, frozen=True, kw_only=True):
    """A budget as the books have it: what set_budget.lua writes as a limit and a few lines."""

    limit_nano: int
    mode: str  # "" binds, "S" never refuses, "F" frozen
    generation: str
    version: int
    zone: str
    start_day: int
    options: BudgetOptions

    @classmethod
    def read(cls, limit: str, lines: str) -> Definition:
        """Raises ValueError for what no ledger wrote."""
        mode = limit[:1] if limit[:1] in ("S", "F") else ""
        generation, version, zone, _, *more = lines.split("\n")
        return cls(
            limit_nano=int(limit[len(mode) :]),
            mode=mode,
            generation=generation,
            version=int(version),
            zone=zone,
            start_day=int(more[0]) if more else 1,  # books of before there was one
            options=_options(more[1]) if more else BudgetOptions(),
        )


class Budget:
    """One budget in one period, and the counter that belongs to both.

    A hold keeps the ones it drew on, so that what it reports after midnight is not taken for the
    figures of the new day, which has a Budget of its own.
    """

    __slots__ = (
        "_view", "counter", "definition", "drop_ms", "held_nano", "id", "packed", "period",
        "posted_nano", "resets_s", "scope", "starts_s",
    )  # fmt: skip

    def __init__(self, budget_id: str, definition: Definition, now_s: float) -> None:
        """Raises ValueError for an id that no ledger wrote."""
        self.id, self.definition = budget_id, definition
        period, _, self.scope = budget_id.partition("|")
        self.period = Period(period)
        window = window_at(self.period, definition.zone, now_s, definition.start_day)
        self.starts_s = -math.inf if window.starts_s is None else window.starts_s
        self.resets_s = math.inf if window.resets_at_s is None else window.resets_at_s
        self.counter = f"{self.id}|{definition.generation}|{window.id}"
        ends = window.resets_at_s
        self.drop_ms = 0 if ends is None else int(1000 * (ends + KEEP_FINISHED_S))
        self.packed = Packed.of(self.id, self.counter, self.drop_ms)  # as reserve.lua wants it
        self.saw(0, 0)  # not known yet

    def at(self, now_s: float) -> Budget:
        """The same budget in the period that `now_s` is in."""
        return Budget(self.id, self.definition, now_s)

    def saw(self, posted_nano: int, held_nano: int) -> None:
        self.posted_nano = posted_nano
        self.held_nano = held_nano
        self._view: BudgetView | None = None

    @property
    def resets_at_s(self) -> float | None:
        return None if self.resets_s == math.inf else self.resets_s

    @property
    def starts_at_s(self) -> float | None:
        return None if self.starts_s == -math.inf else self.starts_s

    @property
    def view(self) -> BudgetView:
        """Made when somebody looks: figures change more often."""
        if self._view is None:
            definition = self.definition
            self._view = BudgetView(
                scope=self.scope,
                limit_nano=definition.limit_nano,
                posted_nano=self.posted_nano,
                held_nano=self.held_nano,
                resets_at_s=self.resets_at_s,
                starts_at_s=self.starts_at_s,
                period=self.period.value,
                hard=definition.options.hard,
                frozen=definition.mode == "F",
                soft=definition.options.soft,
                pace=definition.options.pace,
            )
        return self._view

    def status(self) -> BudgetStatus:
        definition = self.definition
        return BudgetStatus(
            scope=self.scope,
            period=self.period,
            zone=definition.zone,
            limit_nano=definition.limit_nano,
            posted_nano=self.posted_nano,
            held_nano=self.held_nano,
            resets_at_s=self.resets_at_s,
            version=definition.version,
            starts_at_s=self.starts_at_s,
            start_day=definition.start_day,
            frozen=definition.mode == "F",
            options=definition.options,
        )


class BudgetViews:
    """All budgets by scope. `epoch` names the set of definitions that this was loaded from."""

    def __init__(self) -> None:
        self.epoch = ""
        self._by_id: dict[str, Budget] = {}
        self._by_scope: dict[str, list[Budget]] = {}
        self._views: dict[str, tuple[BudgetView, ...]] = {}
        self._changed: set[str] = set()

    def load(
        self, epoch: str, limits: Sequence[bytes], defs: Sequence[bytes], now_s: float
    ) -> None:
        """Takes over the definitions as two flat lists (field, value, ...). Figures that are known
        stay. Raises ValueError when they were not written by set_budget.lua."""
        limit_of = dict(zip(limits[::2], limits[1::2], strict=True))
        before, self._by_id, self._by_scope = self._by_id, {}, {}
        for raw_id, definition in zip(defs[::2], defs[1::2], strict=True):
            read = Definition.read(limit_of[raw_id].decode(), definition.decode())
            budget = Budget(raw_id.decode(), read, now_s)
            old = before.get(budget.id)
            if old is not None and old.counter == budget.counter:
                old.definition = budget.definition
                old.saw(old.posted_nano, old.held_nano)  # the view has the limit in it
                budget = old  # open holds know this one
            self._by_id[budget.id] = budget
            self._by_scope.setdefault(budget.scope, []).append(budget)
        self._views = {}
        self._changed = set(self._by_scope)
        self.epoch = epoch

    def drawn(self, scopes: Iterable[str], now_s: float) -> list[Budget]:
        """Every budget that these scopes draw on, each once, in the period of `now_s`."""
        found: list[Budget] = []
        for scope in dict.fromkeys(scopes):
            budgets = self._by_scope.get(scope) or []
            for i, budget in enumerate(budgets):
                if not budget.starts_s <= now_s < budget.resets_s:
                    budget = budgets[i] = self._by_id[budget.id] = budget.at(now_s)
                    self._changed.add(scope)
                found.append(budget)
        return found

    def drawn_then(self, scopes: Iterable[str], then_s: float) -> list[Budget]:
        """As `drawn`, for a moment of the past: what is current stays as it is."""
        return [
            budget if budget.starts_s <= then_s < budget.resets_s else budget.at(then_s)
            for scope in dict.fromkeys(scopes)
            for budget in self._by_scope.get(scope, ())
        ]

    def saw(self, budgets: Sequence[Budget], figures: Sequence[int]) -> None:
        """Takes over fresh figures: posted, held, posted, held, ..."""
        for i, budget in enumerate(budgets):
            budget.saw(figures[2 * i], figures[2 * i + 1])
            self._changed.add(budget.scope)

    def all(self, now_s: float) -> list[Budget]:
        return self.drawn(self._by_scope, now_s)

    def known(self) -> list[Budget]:
        """Every budget in the period that it was last looked at in."""
        return list(self._by_id.values())

    def of(self, budget_id: str) -> Budget | None:
        return self._by_id.get(budget_id)

    def views(self) -> Mapping[str, tuple[BudgetView, ...]]:
        """By scope. A live view: read it before the next await."""
        for scope in self._changed:
            budgets = self._by_scope.get(scope)
            if budgets is not None:  # else: a budget that a late reply still spoke of
                self._views[scope] = tuple([budget.view for budget in budgets])
        self._changed.clear()
        return MappingProxyType(self._views)
