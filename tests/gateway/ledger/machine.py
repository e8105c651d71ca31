"""Any sequence of operations on the ledger, written down with what the oracle says to each.

Hypothesis draws a sequence against the oracle alone (tests.gateway.ledger.model); afterwards many
sequences are played at once on the real ledger, every one in books of its own, and every answer is
compared. So a server is kept busy by hundreds of sequences instead of waiting for the next draw.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from gateway.ledger.budgets import NoSuchBudget
from gateway.ledger.ledger import Exhausted, HoldClosed, HoldRequest, Ledger
from gateway.ledger.parts import Keys
from gateway.ledger.rows import RowState
from gateway.redis.link import RedisLink
from policies.budget import BudgetOptions
from tests.gateway.ledger.kit import NOW_S, row
from tests.gateway.ledger.model import Books

OWNERS = ("gw-a", "gw-b")
SCOPES = ("tenant:t", "org:o", "label:k=v")
PERIODS = ("minute", "hour", "day", "week", "month", "total")
ZONES = ("Asia/Shanghai", "Europe/Berlin", "Australia/Lord_Howe")
COMPARE_EVERY = 6  # operations; and at the end
LONGEST_S = 2 * 86_400.0  # every deadline and lease is over by then

owners = st.sampled_from(OWNERS)
scopes = st.sampled_from(SCOPES)
periods = st.sampled_from(PERIODS)
scope_sets = st.sets(scopes).map(lambda found: tuple(sorted(found)))
# few ids, so that duplicates, delayed and foreign operations are common
ids = st.none() | st.integers(0, 5).map(lambda n: f"r{n // 2}.{n % 2}")  # None: the last one
money = st.sampled_from([0, 1, 2, 7, 10, 50, 100]) | st.integers(0, 120)


@dataclass
class Op:
    name: str
    owner: str
    args: dict[str, Any]
    now_s: float
    expected: Any


@dataclass
class Verdict:
    """What playing found. overspend, drift, leaked: nano-CNY, and wrong: answers that differ."""

    sequences: int = 0
    operations: int = 0
    overspend: int = 0
    drift: int = 0
    leaked: int = 0
    wrong: list[str] = field(default_factory=list)


class Machine(RuleBasedStateMachine):
    """Draws a sequence; `sink` gets it when it ends."""

    sink: Callable[[list[Op]], None]

    def __init__(self) -> None:
        super().__init__()
        self.model = Books()
        self.now_s = NOW_S
        self.last_id = "r0.0"
        self.ops: list[Op] = []

    def teardown(self) -> None:
        self.now_s += LONGEST_S
        for _ in range(2):  # the first after so long only gives the owners a lease to report
            self.add("sweep", OWNERS[0], self.model.sweep(self.now_s), batch=200)
            self.now_s += LONGEST_S
        self.compare()
        type(self).sink(self.ops)

    def add(self, name: str, owner: str, expected: Any, **args: Any) -> None:
        self.ops.append(Op(name, owner, args, self.now_s, expected))
        if len(self.ops) % COMPARE_EVERY == 0:
            self.compare()

    def compare(self) -> None:
        model = self.model
        assert model.flaws(self.now_s) == []
        budgets = {
            key: (budget.limit, counter.posted, counter.held)
            for key, budget in model.budgets.items()
            for counter in [model.counter(*key, self.now_s)]
        }
        expected = (model.posted(), model.held(), sorted(model.rows), budgets)
        binding = {} if model.lowered else {key: found[0] for key, found in budgets.items()}
        self.ops.append(Op("compare", OWNERS[0], {"limits": binding}, self.now_s, expected))

    def pick(self, hold_id: str | None) -> str:
        self.last_id = hold_id or self.last_id
        return self.last_id

    def foreign(self, owner: str, hold_id: str) -> bool:
        """Whether an open hold belongs to somebody else; such calls are refused elsewhere."""
        hold = self.model.holds.get(hold_id)
        return hold is not None and hold.state.open and hold.owner != owner

    # ---- budgets

    @initialize(limit=st.integers(20, 200), period=periods)
    def begin_with_a_budget(self, limit: int, period: str) -> None:
        """Else most sequences would have nothing to overspend."""
        for scope in SCOPES[:2]:
            self.set_budget(OWNERS[0], scope, period, limit, ZONES[0], 1, True)

    @rule(
        owner=owners, scope=scopes, period=periods, limit=st.integers(0, 300),
        zone=st.sampled_from(ZONES), start_day=st.sampled_from([1, 5]),
        hard=st.sampled_from([True, True, True, False]),
    )  # fmt: skip
    def set_budget(
        self, owner: str, scope: str, period: str, limit: int, zone: str, start_day: int, hard: bool
    ) -> None:
        start_day = start_day if period in ("week", "month") else 1
        self.model.set_budget(scope, period, limit, zone, start_day, hard)
        self.add(
            "set_budget", owner, None, scope=scope, limit_nano=limit, period=period, zone=zone,
            start_day=start_day, options=BudgetOptions(hard=hard),
        )  # fmt: skip

    @rule(
        owner=owners, scope=scopes, period=periods,
        act=st.sampled_from(["raise", "freeze", "unfreeze", "reset", "delete"]),
    )  # fmt: skip
    def change_budget(self, owner: str, scope: str, period: str, act: str) -> None:
        named = {"scope": scope, "period": period}
        if act == "raise":
            known = self.model.raise_budget(scope, period, 10)
            self.add("raise_budget", owner, known, add_nano=10, **named)
        elif act == "reset":
            self.add("reset_budget", owner, self.model.reset(scope, period), **named)
        elif act == "delete":
            self.add("delete_budget", owner, self.model.delete_budget(scope, period), **named)
        else:
            frozen = act == "freeze"
            known = self.model.freeze(scope, period, frozen)
            self.add("freeze_budget", owner, known, frozen=frozen, **named)

    # ---- holds

    @rule(
        owner=owners, hold_id=ids, amount=money, drawn=scope_sets, sent=st.booleans(),
        life_s=st.sampled_from([1.0, 20.0, 3600.0]),
    )  # fmt: skip
    def reserve(
        self, owner: str, hold_id: str | None, amount: int, drawn: tuple[str, ...], sent: bool,
        life_s: float,
    ) -> None:  # fmt: skip
        hold_id = self.pick(hold_id)
        if self.foreign(owner, hold_id):
            return
        expected = self.model.reserve(owner, hold_id, amount, drawn, sent, life_s, self.now_s)
        self.add(
            "reserve", owner, expected, id=hold_id, amount_nano=amount, scopes=drawn, sent=sent,
            life_s=life_s,
        )  # fmt: skip

    @rule(
        owner=owners, numbers=st.sets(st.integers(10, 99), min_size=3, max_size=6), amount=money,
        drawn=scope_sets, cost=money,
    )  # fmt: skip
    def burst(
        self, owner: str, numbers: set[int], amount: int, drawn: tuple[str, ...], cost: int
    ) -> None:
        """Several requests at once, of which the first is settled: budgets fill up."""
        names = [f"b{number}.0" for number in sorted(numbers)]
        for name in names:
            self.reserve(owner, name, amount, drawn, True, 3600.0)
        self.settle(owner, names[0], cost)

    @rule(owner=owners, hold_id=ids)
    def mark_sent(self, owner: str, hold_id: str | None) -> None:
        hold_id = self.pick(hold_id)
        self.add("mark_sent", owner, self.model.mark_sent(hold_id), hold_id=hold_id)

    @rule(owner=owners, hold_id=ids, amount=money)
    def grow(self, owner: str, hold_id: str | None, amount: int) -> None:
        hold_id = self.pick(hold_id)
        if not self.foreign(owner, hold_id):
            expected = self.model.grow(hold_id, amount + 1)
            self.add("grow", owner, expected, hold_id=hold_id, amount_nano=amount + 1)

    @rule(owner=owners, hold_id=ids, cost=money | st.sampled_from([-1, -2]))
    def settle(self, owner: str, hold_id: str | None, cost: int) -> None:
        hold_id = self.pick(hold_id)
        if self.foreign(owner, hold_id):
            return
        if cost < 0:  # just what was held, or one more
            held = self.model.holds.get(hold_id)
            cost = (held.amount if held is not None else 0) - cost - 1
        self.add(
            "settle",
            owner,
            self.model.settle(hold_id, cost, self.now_s),
            hold_id=hold_id,
            cost=cost,
        )

    @rule(owner=owners, hold_id=ids)
    def void(self, owner: str, hold_id: str | None) -> None:
        hold_id = self.pick(hold_id)
        if not self.foreign(owner, hold_id):
            self.model.void(owner, hold_id, self.now_s)
            self.add("void", owner, None, hold_id=hold_id)

    # ---- time

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 11.0, 61.0, 3600.0, 40_000.0, 86_400.0 * 40]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(owner=owners)
    def renew(self, owner: str) -> None:
        self.model.leases[owner] = self.now_s + 10
        self.add("renew_lease", owner, None)

    @rule(owner=owners, batch=st.sampled_from([1, 3, 200]))
    def sweep(self, owner: str, batch: int) -> None:
        self.add("sweep", owner, self.model.sweep(self.now_s), batch=batch)


def draw(sequences: int, steps: int, sink: Callable[[list[Op]], None], seed_: int) -> None:
    """Draws about that many sequences into `sink`; the seed repeats them."""
    machine = type("Machine", (Machine,), {"sink": staticmethod(sink)})
    run = seed(seed_)(machine)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        run,
        settings=settings(
            max_examples=sequences,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=False,
            # no shrinking: the answers come later, and some twenty steps can be read
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )


class Player:
    """Plays sequences on the server at `url`. Use it inside `async with`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.verdict = Verdict()
        self._number = 0

    async def __aenter__(self) -> Player:
        self._hot = await RedisLink.connect(self.url, call_timeout_s=60.0)
        self._control = await RedisLink.connect(self.url, call_timeout_s=60.0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._hot.close()
        await self._control.close()

    async def play(self, batch: Sequence[list[Op]]) -> None:
        """All of them at once; then the server is emptied."""
        await asyncio.gather(*(self._play(ops) for ops in batch))
        await self._control.call("FLUSHALL")

    async def _play(self, ops: list[Op]) -> None:
        self._number += 1
        ledgers = {
            owner: Ledger(
                self._hot, self._control, Keys(f"b{self._number}", owner), lease_s=10.0,
                server_clock=False,
            )
            for owner in OWNERS
        }  # fmt: skip
        verdict = self.verdict
        for i, op in enumerate(ops):
            for ledger in ledgers.values():
                ledger._clock(op.now_s)  # settle and void have no time of their own
            found = await _do(ledgers[op.owner], op)
            if op.name == "compare":
                self._judge(found, op.args["limits"], last=i == len(ops) - 1)
            if found != op.expected:
                told = "\n  ".join(f"{o.owner} {o.name} {o.args}" for o in ops[: i + 1])
                verdict.wrong.append(f"expected {op.expected}, found {found} after\n  {told}")
                return
            verdict.operations += 1
        verdict.sequences += 1

    def _judge(self, found: Any, limits: Any, *, last: bool) -> None:
        """Figures that may never be wrong, whatever the oracle thinks of the sequence. limits: of
        the budgets that bind, while none was lowered."""
        posted, held, rows, budgets = found
        verdict = self.verdict
        verdict.drift += abs(posted - sum(amount for _, amount, _ in rows))
        verdict.leaked += held if last else 0
        for key, limit in limits.items():
            _, spent, open_ = budgets.get(key, (0, 0, 0))
            verdict.overspend += max(0, spent + open_ - limit)


async def _do(ledger: Ledger, op: Op) -> Any:
    """One operation on the real ledger; its answer in the oracle's words."""
    args, now_s = op.args, op.now_s
    match op.name:
        case "compare":
            return await _figures(ledger, now_s)
        case "reserve":
            asked = HoldRequest(
                id=args["id"], amount_nano=args["amount_nano"], scopes=args["scopes"],
                sent=args["sent"], deadline_s=now_s + args["life_s"], draft=row(args["id"]),
            )  # fmt: skip
            return await _taken(ledger.reserve(asked, now_s))
        case "grow":
            return await _taken(ledger.grow(args["hold_id"], args["amount_nano"]))
        case "settle":
            settled = await ledger.settle(args["hold_id"], row(args["hold_id"], args["cost"]))
            return settled.posted_nano, settled.already, settled.state
        case "sweep":
            swept = await ledger.sweep(now_s, batch=args["batch"])
            return swept.voided, swept.expired
        case "raise_budget" | "freeze_budget" | "reset_budget":
            try:
                await getattr(ledger, op.name)(**args, now_s=now_s)
            except NoSuchBudget:
                return False
            return True
        case "set_budget" | "delete_budget":
            return await getattr(ledger, op.name)(**args, now_s=now_s)
        case "renew_lease":
            return await ledger.renew_lease(now_s)
    return await getattr(ledger, op.name)(**args)


async def _taken(asking: Any) -> str:
    try:
        found = await asking
    except HoldClosed:
        return "closed"
    return "exhausted" if isinstance(found, Exhausted) else "reserved"


async def _figures(ledger: Ledger, now_s: float) -> Any:
    till = await ledger.till()
    rows = [
        (found.hold_id, found.posted_nano, found.state == RowState.UNRECONCILED)
        async for found in ledger.rows()
    ]
    budgets = {
        (found.scope, str(found.period)): (found.limit_nano, found.posted_nano, found.held_nano)
        for found in await ledger.budgets(now_s)
    }
    return till.posted_nano, till.held_nano, sorted(rows), budgets


def emptied(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushall()
