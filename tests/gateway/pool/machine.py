"""Any day of a pool, as a state machine: requests come, wait, are sent, answered, broken off and
given up, while workers die, hang, drain, answer busy and come back. Time is ours.

The world, the waiting room and `plan()` are the real ones; a request does what `gateway.serve`
does with them. The workers are what the pool would say of them, and each attempt ends as the
machine pleases.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.base import Failure, Fault, Kind
from backends.pool.registry import REPORT_GAP_S
from gateway.pool.waiting import LOOK_EVERY_S, NoRoom, WaitingRoom, late_for
from gateway.snapshot import World
from policies import latency
from policies.breaker import OPEN_FIRST_S
from policies.plan import plan
from policies.types import Attempt, BreakerState, Facts, Health, Refusal, Site, SloClass
from tests.policies.builders import TRAITS, facts, rules, worker

PLACES = 4
SLOTS = 2
PATIENCE_MS = {SloClass.INTERACTIVE: 8_000.0, SloClass.BATCH: 20_000.0}
NAMES = ("w1", "w2", "w3")
REPORT_EVERY_S = 1.0
LOST = (Kind.CONNECT, Kind.BROKEN, Kind.TIMEOUT_FIRST)


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves when it is told to."""

    now_s = 1_000.0

    def time(self) -> float:
        return self.now_s


class Worker:
    """One worker as it is, and when it was last heard of."""

    def __init__(self, name: str, now_s: float) -> None:
        self.name = name
        self.state = "up"  # up | hanging | draining | gone
        self.said = Health.UP
        self.up_since_s = self.heard_s = now_s
        self.running = 0


class Request:
    """One request, from its arrival to its only end."""

    def __init__(self, asked: Facts, now_s: float) -> None:
        self.facts = asked
        self.arrived_s = now_s
        self.ends: list[str] = []
        self.attempt: Attempt | None = None  # under way
        self.was_sent = False
        self.over: asyncio.Future[Kind | None] | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def sent(self) -> bool:
        return self.attempt is not None


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.rng = Random(7)
        self.requests: list[Request] = []
        self.rules = rules(cloud_models=("big",), patience_ms=PATIENCE_MS)

    @initialize(count=st.integers(1, 3), cloud=st.booleans(), warm_up_s=st.sampled_from([0.0, 5.0]))
    def begin(self, count: int, cloud: bool, warm_up_s: float) -> None:
        self.workers = {name: Worker(name, self.loop.now_s) for name in NAMES[:count]}
        self.world = World(
            workers=lambda: self.reports,
            clouds={"big": TRAITS} if cloud else {},
            budgets=dict,
            clock=self.loop.time,
            wall=self.loop.time,
            warm_up_s=warm_up_s,
            line=lambda: self.room.line(),
            freed=lambda: self.room.look(),
        )
        self.room = WaitingRoom(
            self.world, self.rules, self.rng, places=PLACES, clock=self.loop.time
        )
        self.reports: tuple[Any, ...] = ()
        self.publish()

    # ------------------------------------------------------------ the pool's side

    def publish(self) -> None:
        self.reports = tuple(
            worker(
                w.name, slots=SLOTS, queue_limit=0, running=w.running, health=w.said,
                heard_s=w.heard_s, up_since_s=w.up_since_s,
            )
            for w in self.workers.values()
        )  # fmt: skip
        self.settle(self.room.look)

    def report(self, one: Worker) -> None:
        """What it says when it can: a report is also what ends a worker's being lost."""
        if one.state == "hanging":
            return
        said = {"up": Health.UP, "draining": Health.DRAINING, "gone": Health.DOWN}[one.state]
        if one.said is Health.DOWN and said is Health.UP:
            one.up_since_s = self.loop.now_s
        one.said = said
        if one.state != "gone":
            one.running = sum(self.at(one.name, r) for r in self.requests)
            one.heard_s = self.loop.now_s

    def settle(self, *calls: Any) -> None:
        async def turns() -> None:
            for call in calls:
                call()
            for _ in range(12):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    @staticmethod
    def at(name: str, request: Request) -> bool:
        return request.attempt is not None and request.attempt.target == name

    # ------------------------------------------------------------ a request's side

    async def serve(self, request: Request) -> None:
        """gateway.serve without money and bytes."""
        world, room, asked = self.world, self.room, request.facts
        turn = room.turn(asked)
        world.offered()
        planned = plan(asked, world.take(asked), self.rules, self.loop.now_s, self.rng)
        if isinstance(planned, Refusal):
            request.ends.append("refused")
            return
        left, failed_on = list(planned.attempts), set[str]()
        while left:
            attempt = left.pop(0)
            elsewhere = next((a for a in left if a.site is not Site.LOCAL), None)
            try:
                place = await turn.place(attempt, elsewhere=elsewhere, avoid=frozenset(failed_on))
            except NoRoom:
                left = late_for(left)
                continue
            target = place.attempt.target
            with place.sending:
                self.sent_well(place.attempt)
                kind = await self.outcome(request, place.attempt)
                if kind is None:
                    times = {"ttft_ms": 50.0, "total_ms": 500.0, "output_tokens": 20}
                    world.succeeded(place.attempt, "glm", **times)
                    request.ends.append("answered")
                    return
                fault = Fault.CALLER if kind is Kind.BAD_REQUEST else Fault.UPSTREAM
                # told before the slot is free: or the next in line would be sent after it
                world.failed(place.attempt, Failure(kind, "as the machine pleased", fault=fault))
            failed_on.add(target)
            if fault is Fault.CALLER or not (kind is Kind.BUSY or world.may_retry()):
                break
        request.ends.append("failed")

    async def outcome(self, request: Request, attempt: Attempt) -> Kind | None:
        request.attempt, request.over = attempt, self.loop.create_future()
        request.was_sent = True
        try:
            return await request.over
        finally:
            request.attempt = request.over = None

    def sent_well(self, attempt: Attempt) -> None:
        """Nothing is sent to a worker that drains, is down, owes a report or has no slot."""
        if attempt.site is Site.CLOUD:
            return
        known = self.world.worker(attempt.target)
        assert known is not None
        assert known.health is Health.UP, known
        assert not known.silent, known
        assert latency.occupancy(known) <= known.slots, known
        target = self.world.target(attempt.target)
        assert target.breaker.trips == 0 or target.breaker.probing_since_s == self.loop.now_s

    def under_way(self) -> list[Request]:
        return [request for request in self.requests if request.sent]

    # ------------------------------------------------------------ what happens

    @rule(
        slo=st.sampled_from(SloClass),
        tenant=st.sampled_from(["acme", "umbrella"]),
        deadline_ms=st.sampled_from([None, None, 1_500]),
        side=st.sampled_from([None, None, Site.LOCAL]),
        count=st.integers(1, 4),
    )
    def ask(self, count: int, **more: Any) -> None:
        for _ in range(count):
            number = len(self.requests)
            request = Request(facts(request_id=f"yz-{number}", **more), self.loop.now_s)
            self.requests.append(request)
            request.task = self.loop.create_task(self.serve(request))
        self.settle()

    @precondition(lambda self: self.under_way())
    @rule(data=st.data(), kind=st.sampled_from([None, None, *LOST, Kind.BUSY, Kind.BAD_REQUEST]))
    def end(self, data: st.DataObject, kind: Kind | None) -> None:
        chosen = data.draw(st.sampled_from(self.under_way()))
        assert chosen.over is not None
        chosen.over.set_result(kind)
        self.settle()

    @precondition(lambda self: any(not r.ends for r in self.requests))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from([r for r in self.requests if not r.ends]))
        assert chosen.task is not None
        chosen.ends.append("left")
        chosen.task.cancel()
        self.settle()

    @rule(name=st.sampled_from(NAMES), state=st.sampled_from(["up", "hanging", "draining", "gone"]))
    def becomes(self, name: str, state: str) -> None:
        """One that is gone breaks off what it has, and the pool hears of it at once."""
        one = self.workers.get(name)
        if one is None:
            return
        one.state = state
        self.report(one)
        if state == "gone":
            one.running = 0
            for request in self.under_way():
                if self.at(name, request) and request.over is not None:
                    request.over.set_result(Kind.BROKEN)
        self.publish()

    @rule(steps=st.integers(1, 40))
    def time_passes(self, steps: int) -> None:
        """In steps in which whoever waits looks up."""
        for _ in range(steps):
            self.loop.now_s += LOOK_EVERY_S
            for one in self.workers.values():
                if self.loop.now_s - one.heard_s >= REPORT_EVERY_S:
                    self.report(one)
                if one.state == "hanging" and self.loop.now_s - one.heard_s >= REPORT_GAP_S:
                    one.said = Health.DOWN
                    for request in self.under_way():  # calls without a first byte are broken off
                        if self.at(one.name, request) and request.over is not None:
                            if not request.over.done():
                                request.over.set_result(Kind.BROKEN)
            self.publish()

    # ------------------------------------------------------------ what is true after each step

    @invariant()
    def counters_are_what_is_under_way(self) -> None:
        if not self.requests:
            return
        there = Counter(r.attempt.target for r in self.requests if r.attempt is not None)
        for name in (*self.workers, "big"):
            target = self.world.target(name)
            assert target.in_flight == there[name]
            assert there[name] or (target.prompt_tokens, target.output_tokens) == (0, 0)

    @invariant()
    def nobody_is_lost(self) -> None:
        """Whoever has not ended waits in the line or is under way."""
        open_ = [r for r in self.requests if not r.ends]
        for request in self.requests:
            assert request.task is not None
            assert request.task.done() == bool(request.ends), request.ends
            assert len(request.ends) <= 1
        if open_:
            assert sum(not r.sent for r in open_) == self.room.waiting

    @invariant()
    def the_line_is_bounded_and_nobody_in_it_is_late(self) -> None:
        if not self.requests:
            return
        fresh = Counter(r.facts.slo for r in self.requests if not (r.ends or r.was_sent))
        assert all(count <= PLACES for count in fresh.values())  # who comes back is let in again
        for line in self.room._lines.values():
            for waiter in line:
                assert waiter.until_s > self.loop.now_s

    @invariant()
    def nobody_waits_beside_a_free_slot(self) -> None:
        if not self.requests or not self.room.waiting:
            return
        free = {w.id for w in self.world.take().workers if latency.is_free(w)}
        for line in self.room._lines.values():
            for waiter in line:  # one that has failed it is asked again only if there is no other
                assert (waiter.fits - waiter.avoid).isdisjoint(free)

    @invariant()
    def a_pool_without_a_worker_says_so_and_tries_again_soon(self) -> None:
        if not self.requests:
            return
        taken = self.world.take()
        asked = [w for w in taken.workers if w.health is Health.UP]
        able = [w for w in asked if w.breaker is not BreakerState.OPEN]
        assert bool(taken.alerts) == (not able)
        if asked and not able:
            soonest = min(self.world.target(w.id).breaker.open_until_s for w in asked)
            probing = any(self.world.target(w.id).breaker.probing_since_s for w in asked)
            assert probing or soonest <= self.loop.now_s + OPEN_FIRST_S

    def teardown(self) -> None:
        """Everybody comes back and every attempt is answered: then everybody has an end."""
        if not hasattr(self, "room"):
            self.loop.close()
            return
        for name in self.workers:
            self.becomes(name, "up")
        for _ in range(200):
            if all(r.ends for r in self.requests):
                break
            for request in self.under_way():
                assert request.over is not None
                request.over.set_result(None)
            self.time_passes(4)
        assert all(len(r.ends) == 1 for r in self.requests)
        self.counters_are_what_is_under_way()
        assert self.room.waiting == 0
        self.settle(self.room.close)
        self.loop.close()
