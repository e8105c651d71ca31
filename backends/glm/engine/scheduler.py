"""Who starts, and how many tokens of whom the next step takes. Pure: no clock, no model, no thread.

    waiting -> start(): rows of the cache are allotted for the whole request -> running
    running -> plan(): one token of everyone who decodes, and prompt tokens up to the step's budget

A request that has started always has room to finish: its rows hold prompt and output limit, so
nobody is ever thrown out half-way. Long prompts are read in chunks between the steps of others,
so a stream never waits for more than one budget of foreign prompt.

Order is by priority class, then by the tenant that was served least (virtual token counters:
Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024: a prompt token counts 1, a
generated one 2; who comes back from idleness starts at the least of those active), then by
arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

PROMPT_WEIGHT, OUTPUT_WEIGHT = 1, 2  # section 4.1 of the paper
# How often others may start before the first in line, when only it does not fit. Few enough that a
# large request is not starved by small ones, enough that free rows are not left idle for one.
OVERTAKEN_MAX = 16
# How many times the cache the waiting requests may need, all together. Less would refuse requests
# that get their turn within seconds, more would promise a turn that nobody waits for.
QUEUE_CACHES = 2


@dataclass(eq=False, kw_only=True, slots=True)
class Entry:
    """A request as the scheduler sees it. `computed`: tokens in the cache; `ready`: the prompt's
    pictures are encoded; `first_row`: -1 while it waits."""

    key: Hashable
    tenant: str
    priority: int
    order: int
    prompt_tokens: int
    max_tokens: int
    computed: int = 0
    ready: bool = True
    first_row: int = -1
    overtaken: int = 0

    @property
    def kv_tokens(self) -> int:
        """Cache entries it may come to need. The last token drawn is never put in."""
        return self.prompt_tokens + self.max_tokens - 1

    @property
    def running(self) -> bool:
        """It has rows."""
        return self.first_row >= 0

    @property
    def decoding(self) -> bool:
        """Its prompt is read."""
        return self.computed >= self.prompt_tokens


class CacheRows:
    """Which rows of the cache are free. A request takes neighbours, the lowest that fit: low rows
    that are used over and over stay close together, and are read in one view."""

    def __init__(self, count: int, row_tokens: int) -> None:
        self.row_tokens = row_tokens
        self._owners: list[bool] = [False] * count

    @property
    def tokens(self) -> int:
        """Entries of all rows."""
        return len(self._owners) * self.row_tokens

    @property
    def tokens_used(self) -> int:
        """Entries of the rows taken."""
        return sum(self._owners) * self.row_tokens

    def needed(self, tokens: int) -> int:
        """How many rows hold this many tokens."""
        return max(1, -(-tokens // self.row_tokens))

    def take(self, tokens: int) -> int | None:
        """The first of enough neighbouring rows, now taken; None if there are none."""
        needed, run = self.needed(tokens), 0
        for row, taken in enumerate(self._owners):
            run = 0 if taken else run + 1
            if run == needed:
                first = row - needed + 1
                self._owners[first : row + 1] = [True] * needed
                return first
        return None

    def free(self, first: int, tokens: int) -> None:
        """Give back what `take` gave."""
        needed = self.needed(tokens)
        if not all(self._owners[first : first + needed]):
            raise ValueError("rows are given back once")
        self._owners[first : first + needed] = [False] * needed


class Counters:
    """Tokens served, per tenant that is or was lately active."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._active: dict[str, int] = {}  # requests inside

    def enter(self, tenant: str) -> None:
        """One more request of this tenant."""
        if tenant not in self._active:
            least = min((self._served[t] for t in self._active), default=0)
            self._served[tenant] = max(least, self._served.get(tenant, 0))
        self._active[tenant] = self._active.get(tenant, 0) + 1

    def leave(self, tenant: str) -> None:
        """One request less; forgets tenants of whom nothing need be remembered."""
        self._active[tenant] -= 1
        if not self._active[tenant]:
            del self._active[tenant]
        least = min((self._served[t] for t in self._active), default=None)
        if least is None:
            self._served.clear()
            return
        for idle in [t for t, n in self._served.items() if t not in self._active and n <= least]:
            del self._served[idle]

    def add(self, tenant: str, amount: int) -> None:
        """Charge work done for an active tenant."""
        self._served[tenant] += amount

    def of(self, tenant: str) -> int:
        """What an active tenant was charged."""
        return self._served[tenant]


@dataclass(kw_only=True, slots=True)
class Scheduler:
    """`rows` of the cache; `slots`: requests that may run; `step_tokens`: budget of one step, and
    `beside_tokens` of one in which somebody decodes, who waits for all of it."""

    rows: CacheRows
    slots: int
    step_tokens: int
    beside_tokens: int
    waiting: list[Entry] = field(default_factory=list)
    running: list[Entry] = field(default_factory=list)
    _counters: Counters = field(default_factory=Counters)

    @property
    def waiting_tokens(self) -> int:
        """Cache entries that those who wait will need."""
        return sum(entry.kv_tokens for entry in self.waiting)

    @property
    def busy(self) -> bool:
        """A step can be taken now, or somebody can start; not so while pictures are encoded."""
        return any(entry.ready for entry in self.running) or bool(self.waiting and not self.running)

    def in_the_way(self, kv_tokens: int) -> int:
        """How many of those who wait must have started before a request of so many entries may wait
        as well; 0: it may, as it always does when nobody waits. A queue of few long requests lasts
        as long as one of many short ones."""
        over = self.waiting_tokens + kv_tokens - QUEUE_CACHES * self.rows.tokens
        count = 0
        for waiting in self.waiting:
            if over <= 0:
                break
            over -= waiting.kv_tokens
            count += 1
        return count

    def add(self, entry: Entry) -> None:
        """A request that waits from now on."""
        self.waiting.append(entry)
        self._counters.enter(entry.tenant)

    def remove(self, entry: Entry) -> None:
        """It is over, wherever it was."""
        if not entry.running:
            self.waiting.remove(entry)
        else:
            self.running.remove(entry)
            self.rows.free(entry.first_row, entry.kv_tokens)
        self._counters.leave(entry.tenant)

    def start(self, held: Callable[[Entry], bool] = lambda _: False) -> Entry | None:
        """The next one that may run, rows allotted; None when nobody fits. `held`: who is better
        off starting later."""
        if len(self.running) >= self.slots:
            return None
        passed: list[Entry] = []
        for entry in sorted(self.waiting, key=self._rank):
            if held(entry):
                continue
            first = self.rows.take(entry.kv_tokens)
            if first is not None:
                for other in passed:
                    other.overtaken += 1
                entry.first_row = first
                self.waiting.remove(entry)
                self.running.append(entry)
                self._counters.add(entry.tenant, PROMPT_WEIGHT * entry.prompt_tokens)
                return entry
            if entry.overtaken >= OVERTAKEN_MAX:
                return None  # it goes next, as soon as enough rows are free
            passed.append(entry)
        return None

    def found(self, entry: Entry, tokens: int) -> None:
        """So much of a prompt that has just started need not be read: it is not charged either."""
        entry.computed = tokens
        self._counters.add(entry.tenant, -PROMPT_WEIGHT * tokens)

    def plan(self) -> list[tuple[Entry, int]]:
        """Who takes part in the next step, and with how many tokens each."""
        work = [(entry, 1) for entry in self.running if entry.decoding]
        budget = (self.beside_tokens if work else self.step_tokens) - len(work)
        reading = [entry for entry in self.running if not entry.decoding and entry.ready]
        for entry in sorted(reading, key=self._rank):
            tokens = min(budget, entry.prompt_tokens - entry.computed)
            if tokens <= 0:
                break
            work.append((entry, tokens))
            budget -= tokens
        return work

    def served(self, entry: Entry, tokens: int) -> None:
        """These tokens of a plan were computed."""
        if entry.decoding:
            self._counters.add(entry.tenant, OUTPUT_WEIGHT * tokens)
        entry.computed += tokens

    def _rank(self, entry: Entry) -> tuple[int, int, int]:
        return (entry.priority, self._counters.of(entry.tenant), entry.order)
