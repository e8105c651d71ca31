"""Any sequence of operations, on the real ledger and on the oracle: they must agree throughout.

Short by default; a longer run is a matter of LEDGER_SEQUENCES below.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from gateway.ledger import Exhausted, HoldClosed, HoldRequest, Ledger
from gateway.rows import RowState
from tests.gateway.ledger_kit import NOW_S, row
from tests.gateway.ledger_model import Books

LEDGER_SEQUENCES = 25
STEPS = 30

OWNERS = ("gw-a", "gw-b")
SCOPES = ("tenant:t", "org:o", "backend:cloud")
PERIODS = ("day", "month", "total")
ZONES = ("Asia/Shanghai", "Europe/Berlin")

owners = st.sampled_from(OWNERS)
scope_sets = st.sets(st.sampled_from(SCOPES)).map(lambda found: tuple(sorted(found)))
# few ids, so that duplicates, delayed and foreign operations are common
ids = st.none() | st.integers(0, 5).map(lambda n: f"r{n // 2}.{n % 2}")  # None: the last one
money = st.sampled_from([0, 1, 2, 7, 10, 50, 100]) | st.integers(0, 120)


class LedgerAgainstModel(RuleBasedStateMachine):
    url = ""  # set by the test

    def __init__(self) -> None:
        super().__init__()
        with redis.Redis.from_url(self.url) as client:
            client.flushall()
        self.runner = asyncio.Runner()
        self.ledgers = {owner: self.do(self.open(owner)) for owner in OWNERS}
        self.model = Books()
        self.now_s = NOW_S
        self.last_id = "r0.0"

    def pick(self, hold_id: str | None) -> str:
        self.last_id = hold_id or self.last_id
        return self.last_id

    async def open(self, owner: str) -> Ledger:
        return await Ledger.connect(self.url, instance=owner, server_clock=False)

    def do(self, coro: Any) -> Any:
        return self.runner.run(coro)

    def teardown(self) -> None:
        for ledger in self.ledgers.values():
            self.do(ledger.close())
        self.runner.close()

    def foreign(self, owner: str, hold_id: str) -> bool:
        """Whether an open hold belongs to somebody else; such calls are refused elsewhere."""
        hold = self.model.holds.get(hold_id)
        return hold is not None and hold.state.open and hold.owner != owner

    # ---- budgets

    @initialize(limit=st.integers(20, 200), period=st.sampled_from(PERIODS))
    def begin_with_a_budget(self, limit: int, period: str) -> None:
        """Else most sequences would have nothing to overspend."""
        for scope in SCOPES[:2]:
            self.set_budget(OWNERS[0], scope, period, limit, ZONES[0])

    @rule(
        owner=owners, scope=st.sampled_from(SCOPES), period=st.sampled_from(PERIODS),
        limit=st.integers(0, 300), zone=st.sampled_from(ZONES),
    )  # fmt: skip
    def set_budget(self, owner: str, scope: str, period: str, limit: int, zone: str) -> None:
        self.model.set_budget(scope, period, limit, zone)
        self.do(
            self.ledgers[owner].set_budget(
                scope, limit_nano=limit, period=period, zone=zone, now_s=self.now_s
            )
        )

    @rule(owner=owners, scope=st.sampled_from(SCOPES), period=st.sampled_from(PERIODS))
    def delete_budget(self, owner: str, scope: str, period: str) -> None:
        known = self.do(self.ledgers[owner].delete_budget(scope, period, now_s=self.now_s))
        assert known == self.model.delete_budget(scope, period)

    # ---- holds

    @rule(
        owner=owners, hold_id=ids, amount=money, scopes=scope_sets, sent=st.booleans(),
        life_s=st.sampled_from([1.0, 20.0, 3600.0]),
    )  # fmt: skip
    def reserve(
        self, owner: str, hold_id: str | None, amount: int, scopes: tuple[str, ...], sent: bool,
        life_s: float,
    ) -> None:  # fmt: skip
        hold_id = self.pick(hold_id)
        if self.foreign(owner, hold_id):
            return
        expected = self.model.reserve(owner, hold_id, amount, scopes, sent, life_s, self.now_s)
        asked = HoldRequest(
            id=hold_id, amount_nano=amount, scopes=scopes, sent=sent,
            deadline_s=self.now_s + life_s, draft=row(hold_id),
        )  # fmt: skip
        try:
            found = self.do(self.ledgers[owner].reserve(asked, self.now_s))
        except HoldClosed:
            assert expected == "closed"
            return
        assert expected == ("exhausted" if isinstance(found, Exhausted) else "reserved")

    @rule(
        owner=owners, numbers=st.sets(st.integers(10, 99), min_size=3, max_size=6), amount=money,
        scopes=scope_sets, cost=money,
    )  # fmt: skip
    def burst(
        self, owner: str, numbers: set[int], amount: int, scopes: tuple[str, ...], cost: int
    ) -> None:
        """Several requests at once, of which the first is settled: budgets fill up."""
        names = [f"b{number}.0" for number in sorted(numbers)]
        for name in names:
            self.reserve(owner, name, amount, scopes, True, 3600.0)
        self.settle(owner, names[0], cost)

    @rule(owner=owners, hold_id=ids)
    def mark_sent(self, owner: str, hold_id: str | None) -> None:
        hold_id = self.pick(hold_id)
        assert self.do(self.ledgers[owner].mark_sent(hold_id)) == self.model.mark_sent(hold_id)

    @rule(owner=owners, hold_id=ids, cost=money | st.sampled_from([-1, -2]))
    def settle(self, owner: str, hold_id: str | None, cost: int) -> None:
        hold_id = self.pick(hold_id)
        if self.foreign(owner, hold_id):
            return
        if cost < 0:  # just what was held, or one more
            held = self.model.holds.get(hold_id)
            cost = (held.amount if held is not None else 0) - cost - 1
        found = self.do(self.ledgers[owner].settle(hold_id, row(hold_id, cost)))
        expected = self.model.settle(hold_id, cost, self.now_s)
        assert (found.posted_nano, found.already, found.state) == expected

    @rule(owner=owners, hold_id=ids)
    def void(self, owner: str, hold_id: str | None) -> None:
        hold_id = self.pick(hold_id)
        if self.foreign(owner, hold_id):
            return
        self.do(self.ledgers[owner].void(hold_id))
        self.model.void(owner, hold_id, self.now_s)

    # ---- time

    @rule(seconds=st.sampled_from([0.5, 1.0, 5.0, 11.0, 61.0, 3600.0, 40_000.0, 86_400.0 * 40]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        for ledger in self.ledgers.values():
            ledger._clock(self.now_s)  # settle and void have no time of their own

    @rule(owner=owners)
    def renew(self, owner: str) -> None:
        self.do(self.ledgers[owner].renew_lease(self.now_s))
        self.model.leases[owner] = self.now_s + 10

    @rule(owner=owners, batch=st.sampled_from([1, 3, 200]))
    def sweep(self, owner: str, batch: int) -> None:
        found = self.do(self.ledgers[owner].sweep(self.now_s, batch=batch))
        assert (found.voided, found.expired) == self.model.sweep(self.now_s)

    # ---- they agree

    @invariant()
    def agree(self) -> None:
        self.do(self.compare())
        assert self.model.flaws(self.now_s) == []

    async def compare(self) -> None:
        ledger = self.ledgers[OWNERS[0]]
        till = await ledger.till()
        assert (till.posted_nano, till.held_nano) == (self.model.posted(), self.model.held())
        booked = [
            (found.hold_id, found.posted_nano, found.state == RowState.UNRECONCILED)
            async for found in ledger.rows()
        ]
        assert sorted(booked) == sorted(self.model.rows)
        listed = {
            (found.scope, str(found.period)): (found.limit_nano, found.posted_nano, found.held_nano)
            for found in await ledger.budgets(self.now_s)
        }
        assert listed == {
            key: (budget.limit, counter.posted, counter.held)
            for key, budget in self.model.budgets.items()
            for counter in [self.model.counter(*key, self.now_s)]
        }


def test_the_ledger_agrees_with_its_model(redis_url: str) -> None:
    LedgerAgainstModel.url = redis_url
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        LedgerAgainstModel,
        settings=settings(
            max_examples=LEDGER_SEQUENCES,
            stateful_step_count=STEPS,
            deadline=None,
            # no shrinking: against a real server it takes minutes, and 30 steps can be read
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
        ),
    )
