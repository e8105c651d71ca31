"""The waiting room before the pool: requests wait here, not in the dark of a worker's own queue.

    turn = room.turn(facts)                      once per request
    place = await turn.place(attempt, ...)       a worker with a free slot, or NoRoom
    with place.sending: ...

The worker is chosen when a slot is free, by what is known then. Who is next is decided in
`policies.turns`; here they wait, each with a timer of its own that takes it out of the line in the
moment in which it could not make it any more. Every report of a worker and every end of an attempt
is a reason to look whether somebody's turn has come.

A worker that answers busy (another gateway was quicker, or its memory is short) gives the request
back: it goes to the front of the line again, with the tag it had, and the worker is not asked again
before it has reported. Several gateways need no more agreement than that.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import math
from collections.abc import Callable, Iterable
from random import Random
from typing import NamedTuple

from msgspec.structs import replace

from gateway.snapshot import Sending, World
from policies import latency, turns
from policies.plan import place, target_ms
from policies.types import Attempt, Facts, Health, Line, Reason, Site, SloClass, Snapshot
from policies.weigh import Rules, fitting

# A breaker that becomes half-open sends no event, so whoever waits for it looks now and then.
LOOK_EVERY_S = 0.25
RETRY_AFTER_MAX_S = 60.0


class NoRoom(Exception):
    """No slot came free in time. retry_after_s: when one is likely to."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("no local slot came free in time")
        self.retry_after_s = retry_after_s


class Place(NamedTuple):
    """Where an attempt goes now; it counts as in flight already."""

    attempt: Attempt
    sending: Sending


def late_for(left: Iterable[Attempt]) -> list[Attempt]:
    """What remains of a plan when the pool has no room in time: the other side, for this reason."""
    return [replace(a, reason=Reason.QUEUE_LATE) for a in left if a.site is not Site.LOCAL]


class _Waiter:
    """One request in the line."""

    __slots__ = (
        "attempt",
        "avoid",
        "elsewhere",
        "facts",
        "fits",
        "future",
        "number",
        "shape",
        "tag",
        "until_s",
    )

    def __init__(
        self,
        facts: Facts,
        attempt: Attempt,
        avoid: frozenset[str],
        key: tuple[float, int],
        future: asyncio.Future[Place],
    ) -> None:
        self.facts = facts
        self.attempt = attempt
        self.avoid = avoid
        self.tag, self.number = key
        self.future = future
        self.until_s = 0.0  # when it gives up; elsewhere: it has another place to go then
        self.elsewhere = False
        self.fits: frozenset[str] = frozenset()  # workers that could answer it at all
        self.shape: object = None  # of the pool for which that was worked out

    @property
    def key(self) -> tuple[float, int]:
        return self.tag, self.number


class WaitingRoom:
    """Everybody of one gateway process who waits for a local slot.

    places: how many of each class may wait at once; 0: nobody waits, whoever finds no free slot is
    sent to the worker that the plan named
    """

    def __init__(
        self,
        world: World,
        rules: Rules,
        rng: Random,
        *,
        places: int,
        clock: Callable[[], float],
    ) -> None:
        self._world = world
        self._rules = rules
        self._rng = rng
        self._places = places
        self._clock = clock
        self._numbers = itertools.count()
        self._lines: dict[SloClass, list[_Waiter]] = {slo: [] for slo in SloClass}
        self._turns = {slo: turns.Turns() for slo in SloClass}
        self._since_batch = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        return sum(map(len, self._lines.values()))

    def line(self) -> Line:
        """Who waits now, for the snapshot."""
        lines = self._lines
        return Line(
            interactive=len(lines[SloClass.INTERACTIVE]),
            batch=len(lines[SloClass.BATCH]),
            places=self._places,
        )

    def turn(self, facts: Facts) -> Turn:
        """One request's place in the order, for as long as it lives."""
        return Turn(self, facts)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ------------------------------------------------------------ for a turn

    def now_s(self) -> float:
        return self._clock()

    def sending(self, facts: Facts, attempt: Attempt) -> Place:
        tokens = facts.prompt_tokens_likely, facts.choices * facts.output_tokens_likely
        slots = facts.choices if attempt.site is Site.LOCAL else 1
        return Place(attempt, self._world.sending(attempt, *tokens, slots))

    def at_once(self, facts: Facts, attempt: Attempt, avoid: frozenset[str]) -> Place | None:
        """A place without waiting: nobody waits, and the worker that the plan named is free."""
        if not self._places:
            return self.sending(facts, attempt)
        if self.waiting or attempt.target in avoid:
            return None
        worker = self._world.worker(attempt.target)
        free = worker is not None and latency.is_free(worker, facts.choices)
        return self.sending(facts, attempt) if free else None

    def patience_s(self, facts: Facts, attempt: Attempt, elsewhere: Attempt | None) -> float:
        """How long after its arrival it may still get a slot."""
        rules = self._rules
        wanted_ms = target_ms(facts, rules)
        return turns.patience_ms(facts, attempt, elsewhere, wanted_ms, rules) / 1000.0

    def key(self, facts: Facts) -> tuple[float, int]:
        """A tag in the line of its class; ties are broken by who came first."""
        self._turns[facts.slo], tag = turns.join(self._turns[facts.slo], facts)
        return tag, next(self._numbers)

    def left(self, facts: Facts) -> None:
        """One that has a tag has gone without a slot."""
        self._turns[facts.slo] = turns.left(self._turns[facts.slo], facts)

    async def wait(
        self,
        facts: Facts,
        attempt: Attempt,
        avoid: frozenset[str],
        key: tuple[float, int],
        until_s: float,
        *,
        elsewhere: bool = False,
    ) -> Place:
        loop = asyncio.get_running_loop()
        waiter = _Waiter(facts, attempt, avoid, key, loop.create_future())
        waiter.until_s, waiter.elsewhere = until_s, elsewhere
        line = self._lines[facts.slo]
        left_s = until_s - self._clock()
        timer = loop.call_later(max(0.0, left_s), self._give_up, waiter)
        try:
            bisect.insort(line, waiter, key=lambda w: w.key)
            self.look()
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled():
                waiter.future.result().sending.close()  # it had its slot in the same moment
            raise
        finally:
            timer.cancel()
            if waiter in line:
                line.remove(waiter)

    # ------------------------------------------------------------ whose turn it is

    def look(self) -> None:
        """Gives every free slot to whoever is next for it."""
        while self.waiting:
            world = self._world.take()
            free = {worker.id for worker in world.workers if latency.is_free(worker)}
            self._reshape(world)
            if not free or not self._give_one(world, free):
                break
        if self.waiting and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._tick)

    def _tick(self) -> None:
        """Time has passed. Who waits for workers that do not come back waits in vain."""
        self._timer = None
        world = self._world.take()
        there = {w.id for w in world.workers if w.health is Health.UP or w.returning}
        now_s = self._clock()
        for ahead, waiter in enumerate([w for line in self._lines.values() for w in line]):
            vain = waiter.fits.isdisjoint(there)
            if not vain and waiter.elsewhere:
                fit = [w for w in world.workers if w.id in waiter.fits]
                left_ms = 1000.0 * (waiter.until_s - now_s)
                vain = turns.hopeless(waiter.facts, fit, ahead=ahead, left_ms=left_ms)
            if vain:
                self._give_up(waiter)
        self.look()

    def _give_one(self, world: Snapshot, free: set[str]) -> bool:
        """Gives a slot to the first who can use one. Who needs several and is next keeps those that
        are free from going to others behind, or single requests would pass forever."""
        first = turns.first_class(self._since_batch)
        for slo in (first, *(other for other in SloClass if other is not first)):
            for waiter in self._lines[slo]:
                # what each worker holds of this prompt is looked up for it alone
                if waiter.future.done() or waiter.fits.isdisjoint(free):
                    continue
                attempt = place(
                    waiter.facts,
                    self._world.take(waiter.facts),
                    self._rules,
                    self._rng,
                    waiter.attempt,
                    waiter.avoid,
                )
                if attempt is not None:
                    self._give(slo, waiter, attempt)
                    return True
                free -= _kept_for(waiter, world, free)
        return False

    def _give(self, slo: SloClass, waiter: _Waiter, attempt: Attempt) -> None:
        self._lines[slo].remove(waiter)
        self._turns[slo] = turns.served(self._turns[slo], waiter.tag)
        batch_waits = bool(self._lines[SloClass.BATCH])
        batch = slo is SloClass.BATCH or not batch_waits
        self._since_batch = 0 if batch else self._since_batch + 1
        waiter.future.set_result(self.sending(waiter.facts, attempt))

    def _reshape(self, world: Snapshot) -> None:
        """Who can answer what is worked out anew when the pool is another one."""
        shape = tuple((w.id, w.model, w.health, w.traits) for w in world.workers)
        for line in self._lines.values():
            for waiter in line:
                if waiter.shape != shape:
                    waiter.shape = shape
                    waiter.fits = fitting(waiter.facts, world, self._rules)

    def _give_up(self, waiter: _Waiter) -> None:
        if not waiter.future.done():
            waiter.future.set_exception(NoRoom(self._retry_after_s(waiter)))

    def _retry_after_s(self, waiter: _Waiter) -> float:
        """When a slot is likely to be free: the wait that was predicted, between 1 s and 60 s."""
        return math.ceil(min(RETRY_AFTER_MAX_S, max(1.0, waiter.attempt.queued_ms / 1000.0)))


def _kept_for(waiter: _Waiter, world: Snapshot, free: set[str]) -> set[str]:
    """Workers that have free slots, and too few for all the answers of this request."""
    choices = waiter.facts.choices
    if choices == 1:
        return set()
    fit = [w for w in world.workers if w.id in free and w.id in waiter.fits]
    return {w.id for w in fit if not latency.is_free(w, choices)}


class Turn:
    """One request before the pool: when it came, how long it has waited, where it stands."""

    def __init__(self, room: WaitingRoom, facts: Facts) -> None:
        self._room = room
        self._facts = facts
        self._arrived_s = room.now_s()
        self._key: tuple[float, int] | None = None
        self._joined = facts  # as it was when it got its key
        self.waited_ms = 0.0

    async def place(
        self,
        attempt: Attempt,
        *,
        elsewhere: Attempt | None = None,
        avoid: frozenset[str] = frozenset(),
    ) -> Place:
        """Where this attempt goes, as soon as it can.

        elsewhere: what follows when no slot comes free in time
        avoid:     workers that have failed this request; they get it when no other fits

        Raises NoRoom when it could not make it any more.
        """
        room = self._room
        if attempt.slo is not None:
            self._facts = replace(self._facts, slo=attempt.slo)
        if attempt.site is Site.CLOUD:
            return room.sending(self._facts, attempt)
        found = room.at_once(self._facts, attempt, avoid)
        if found is not None:
            return found
        began_s = room.now_s()
        if self._key is None:
            self._key, self._joined = room.key(self._facts), self._facts
        until_s = self._arrived_s + room.patience_s(self._facts, attempt, elsewhere)
        try:
            return await room.wait(
                self._facts, attempt, avoid, self._key, until_s, elsewhere=elsewhere is not None
            )
        except BaseException:  # no room, or the caller has left
            room.left(self._joined)
            self._key = None
            raise
        finally:
            self.waited_ms += 1000.0 * (room.now_s() - began_s)
