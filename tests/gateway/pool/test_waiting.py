"""The waiting room: who gets a slot, who leaves without one, and that no slot is lost."""

from __future__ import annotations

import asyncio
import math
import time
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from msgspec.structs import replace

from backends.base import Failure, Fault, Kind
from gateway.pool.waiting import RETRY_AFTER_MAX_S, NoRoom, Place, WaitingRoom, late_for
from gateway.snapshot import World
from gateway.tasks import spawn
from policies import latency
from policies.types import Attempt, Facts, Health, Reason, Site, SloClass, WorkerState
from tests.gateway.pool.machine import PoolMachine
from tests.gateway.rig import until
from tests.policies.builders import TRAITS, facts, rules, worker


@pytest.fixture(autouse=True)
def patient_with_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports here come when a test makes them, however long the machine takes meanwhile."""
    monkeypatch.setattr(latency, "SILENT_S", math.inf)


PATIENT = {SloClass.INTERACTIVE: 30_000.0, SloClass.BATCH: 30_000.0}


class Kit:
    """A room before workers of one slot each, whose reports the test makes."""

    def __init__(self, *workers: WorkerState, places: int = 10, **how: Any) -> None:
        self.reports = workers or (one_slot("w1"),)
        self.world = World(
            workers=lambda: self.reports,
            clouds={},
            budgets=dict,
            clock=time.monotonic,
            line=lambda: self.room.line(),
            freed=lambda: self.room.look(),
        )
        self.room = WaitingRoom(
            self.world,
            rules(patience_ms={**PATIENT, **how}),
            Random(1),
            places=places,
            clock=time.monotonic,
        )

    def ask(self, asked: Facts | None = None, **more: Any) -> asyncio.Task[Place]:
        turn = self.room.turn(asked or facts())
        return spawn(turn.place(local(), **more), name="ask")

    def report(self, *workers: WorkerState) -> None:
        self.reports = tuple(replace(w, heard_s=time.monotonic()) for w in workers)
        self.room.look()


def one_slot(name: str, **changes: Any) -> WorkerState:
    return worker(name, slots=1, heard_s=time.monotonic(), **changes)


def local(target: str = "w1") -> Attempt:
    return Attempt(
        site=Site.LOCAL,
        target=target,
        reason=Reason.LOCAL_FITS,
        hold_nano=7,
        scopes=(),
        ttft_ms=70.0,
        finish_ms=100.0,
    )


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_free_slot_is_had_at_once_with_the_hold_of_the_plan() -> None:
    kit = Kit()
    turn = kit.room.turn(facts())
    place = await turn.place(local())
    assert (place.attempt, turn.waited_ms) == (local(), 0.0)
    assert kit.world.take().workers[0].in_flight == 1


async def test_the_next_one_waits_until_the_first_has_left() -> None:
    kit = Kit()
    first = await kit.ask()
    second = kit.ask()
    await settle()
    assert kit.room.line().interactive == 1
    assert not second.done()
    first.sending.close()
    place = await second
    assert place.attempt.target == "w1"
    assert place.attempt.hold_nano != 7  # reckoned for the worker as it is now
    assert kit.room.waiting == 0


async def test_the_worker_is_chosen_when_a_slot_is_free() -> None:
    kit = Kit(one_slot("w1"), one_slot("w2", running=1))
    held = await kit.ask()
    waiting = kit.ask()
    await settle()
    kit.report(one_slot("w1", running=1), one_slot("w2"))
    assert (await waiting).attempt.target == "w2"
    held.sending.close()


def slots(name: str, count: int, **changes: Any) -> WorkerState:
    return worker(name, slots=count, heard_s=time.monotonic(), **changes)


async def test_several_answers_go_where_there_are_slots_for_them() -> None:
    """The plan named a worker with one slot left; the other has four."""
    kit = Kit(slots("w1", 4, running=3), slots("w2", 4))
    place = await kit.ask(facts(choices=3))
    assert place.attempt.target == "w2"
    assert {w.id: w.in_flight for w in kit.world.take().workers} == {"w1": 0, "w2": 3}
    # a fourth answer is one too many for each of them now, and one is not
    several = kit.ask(facts(choices=2))
    await settle()
    assert not several.done()
    place.sending.close()
    assert (await several).attempt.target == "w2"


async def test_who_needs_several_slots_is_not_passed_forever_by_those_who_need_one() -> None:
    kit = Kit(slots("w1", 2), places=100)
    held = [await kit.ask() for _ in range(2)]
    several = kit.ask(facts(choices=2))
    await settle()
    singles = [kit.ask() for _ in range(5)]
    await settle()
    held[0].sending.close()  # one slot: kept for the one who is next
    await settle()
    assert not several.done()
    assert not any(single.done() for single in singles)
    held[1].sending.close()
    (await several).sending.close()
    for single in singles:
        (await single).sending.close()
    assert kit.world.take().workers[0].in_flight == 0


async def test_a_request_for_more_answers_than_a_worker_has_slots_has_the_whole_worker() -> None:
    kit = Kit(slots("w1", 2))
    place = await kit.ask(facts(choices=8))
    assert kit.world.take().workers[0].in_flight == 8
    single = kit.ask()
    await settle()
    assert not single.done()
    place.sending.close()
    (await single).sending.close()


async def test_interactive_before_batch_and_batch_all_the_same() -> None:
    kit = Kit(places=100)
    held = await kit.ask()
    served: list[SloClass] = []

    async def one(slo: SloClass) -> None:
        place = await kit.room.turn(facts(slo=slo)).place(local())
        served.append(slo)
        place.sending.close()

    tasks = [spawn(one(SloClass.BATCH), name="batch") for _ in range(3)]
    await settle()
    tasks += [spawn(one(SloClass.INTERACTIVE), name="interactive") for _ in range(30)]
    await settle()
    held.sending.close()
    await asyncio.gather(*tasks)
    assert len(served) == 33
    assert served[:9] == [SloClass.INTERACTIVE] * 9
    assert [i for i, slo in enumerate(served) if slo is SloClass.BATCH] == [9, 19, 29]


async def test_a_crowd_of_one_tenant_does_not_stand_before_another() -> None:
    kit = Kit(places=100)
    held = await kit.ask()
    served: list[str] = []

    async def one(tenant: str) -> None:
        place = await kit.room.turn(facts(tenant=tenant)).place(local())
        served.append(tenant)
        place.sending.close()

    tasks = [spawn(one("crowd"), name="crowd") for _ in range(20)]
    await settle()
    tasks += [spawn(one("guest"), name="guest") for _ in range(2)]
    await settle()
    held.sending.close()
    await asyncio.gather(*tasks)
    assert served.index("guest") <= 1
    assert len(served) == 22


async def test_who_cannot_make_it_any_more_leaves_in_that_moment() -> None:
    kit = Kit(**{SloClass.INTERACTIVE: 60_000.0})
    held = await kit.ask()
    began_s = time.monotonic()
    turn = kit.room.turn(facts(deadline_ms=150))
    with pytest.raises(NoRoom) as refused:
        await turn.place(local())
    assert 0.05 < time.monotonic() - began_s < 10
    assert turn.waited_ms >= 70
    assert refused.value.retry_after_s >= 1
    assert kit.room.waiting == 0
    held.sending.close()


async def test_who_left_the_line_unserved_does_not_stand_behind_others_for_it() -> None:
    kit = Kit(places=1000)
    held = await kit.ask()
    gone = [kit.ask(facts(tenant="a")) for _ in range(50)]
    await settle()
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    assert kit.room.waiting == 0
    served: list[str] = []

    async def one(tenant: str) -> None:
        place = await kit.room.turn(facts(tenant=tenant)).place(local())
        served.append(tenant)
        place.sending.close()

    coming = [spawn(one("a"), name="a")]
    await settle()
    coming += [spawn(one("b"), name="b") for _ in range(20)]
    await settle()
    held.sending.close()
    await asyncio.gather(*coming)
    assert served[0] == "a", "it came first"


async def test_a_wait_without_an_end_is_a_minute_to_the_caller() -> None:
    kit = Kit()
    await kit.ask()
    turn = kit.room.turn(facts(deadline_ms=50))
    with pytest.raises(NoRoom) as refused:
        await turn.place(replace(local(), queued_ms=math.inf))
    assert refused.value.retry_after_s == RETRY_AFTER_MAX_S


async def test_a_look_that_fails_leaves_nobody_in_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kit = Kit()
    await kit.ask()
    broken = RuntimeError("a world that cannot be taken")

    def look() -> None:
        raise broken

    monkeypatch.setattr(kit.room, "look", look)
    with pytest.raises(RuntimeError) as failed:
        await kit.room.turn(facts()).place(local())
    assert failed.value is broken
    assert kit.room.waiting == 0


async def test_one_that_leaves_loses_no_slot() -> None:
    """Cancelled in the very turn of the loop in which its slot was given to it, and before."""
    kit = Kit()
    held = await kit.ask()
    first, second, third = kit.ask(), kit.ask(), kit.ask()
    await settle()
    second.cancel()
    await settle()
    held.sending.close()  # gives the slot to the first, which has not run yet
    first.cancel()
    place = await third
    assert first.cancelled()
    assert kit.world.take().workers[0].in_flight == 1
    place.sending.close()
    assert kit.world.take().workers[0].in_flight == 0
    assert kit.room.waiting == 0


async def test_a_worker_that_answered_busy_is_not_asked_before_it_has_reported() -> None:
    kit = Kit()
    (await kit.ask()).sending.close()
    kit.world.failed(local(), Failure(Kind.BUSY, "no", fault=Fault.UPSTREAM))
    waiting = kit.ask()
    await settle()
    assert not waiting.done()
    kit.report(one_slot("w1"))
    (await waiting).sending.close()


async def test_a_worker_found_dead_is_waited_for_and_another_is_taken_first() -> None:
    kit = Kit(one_slot("w1"))
    kit.world.failed(local(), Failure(Kind.CONNECT, "gone"))
    assert kit.world.take().workers[0].health is Health.DOWN
    waiting = kit.ask(avoid=frozenset({"w1"}))
    await settle()
    assert not waiting.done()
    kit.report(one_slot("w1"), one_slot("w2"))
    assert (await waiting).attempt.target == "w2"
    again = await kit.ask(avoid=frozenset({"w2", "w1"}))  # when no other fits
    assert again.attempt.target == "w1"


async def test_who_has_another_place_leaves_as_soon_as_its_turn_is_out_of_sight() -> None:
    """Its patience is a minute; then its pool shrinks to one worker that is busy for hours."""
    kit = Kit(one_slot("w1", running=1), one_slot("w2", running=1))
    cloud = replace(local("big"), site=Site.CLOUD, ttft_ms=60_000.0)
    leaving, staying = kit.ask(elsewhere=cloud), kit.ask()
    await settle()
    assert not leaving.done()
    kit.report(one_slot("w1", running=1, decode_tokens_per_s=0.01))
    with pytest.raises(NoRoom):
        await leaving
    await settle()
    assert not staying.done()  # it has nowhere else to go
    staying.cancel()


async def test_nobody_waits_for_what_does_not_come_back() -> None:
    kit = Kit(one_slot("w1", running=1))
    waiting = kit.ask()
    await settle()
    kit.reports = (worker("w1", health=Health.DOWN, heard_s=1.0),)  # for longer than RETURN_S
    with pytest.raises(NoRoom):
        await waiting


async def test_one_that_only_fits_a_taken_worker_does_not_stand_in_the_way_of_others() -> None:
    short = replace(TRAITS, context_tokens=500)
    kit = Kit(one_slot("w1", traits=short, running=1), one_slot("w2", running=1))
    stuck = kit.ask(facts(prompt_tokens_likely=600, prompt_tokens_max=600))
    await settle()
    other = kit.ask()
    await settle()
    kit.report(one_slot("w1", traits=short), one_slot("w2", running=1))
    assert (await other).attempt.target == "w1"
    assert not stuck.done()
    kit.report(one_slot("w1", traits=short), one_slot("w2"))
    assert (await stuck).attempt.target == "w2"


async def test_without_places_everybody_goes_where_the_plan_said() -> None:
    kit = Kit(one_slot("w1", running=1), places=0)
    assert (await kit.ask()).attempt == local()


async def test_what_remains_of_a_plan_says_why() -> None:
    cloud = replace(local("big"), site=Site.CLOUD)
    assert late_for([local(), cloud]) == [replace(cloud, reason=Reason.QUEUE_LATE)]


async def test_a_thousand_come_and_go_and_every_slot_is_free_again() -> None:
    kit = Kit(*(one_slot(f"w{n}") for n in range(3)), places=2_000)
    rng = Random(5)
    together = [0]
    most = [0]

    async def one(leaves: bool) -> None:
        turn = kit.room.turn(facts(tenant=rng.choice("abc")))
        place = await turn.place(local(f"w{rng.randrange(3)}"))
        together[0] += 1
        most[0] = max(most[0], together[0])
        with place.sending:
            try:
                await asyncio.sleep(0)
            finally:
                together[0] -= 1

    tasks = [spawn(one(False), name="one") for _ in range(1_000)]
    for task in tasks[::7]:
        asyncio.get_running_loop().call_later(rng.random() * 0.05, task.cancel)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most[0] == 3
    assert [w.in_flight for w in kit.world.take().workers] == [0, 0, 0]
    await until(lambda: kit.room.waiting == 0)
    kit.room.close()


async def test_a_worker_that_owes_a_report_is_passed_over_and_waited_for_when_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kit = Kit(one_slot("w1"), one_slot("w2"))
    monkeypatch.setattr(latency, "SILENT_S", 100.0)
    kit.reports = (replace(kit.reports[0], heard_s=time.monotonic() - 101), kit.reports[1])
    assert (await kit.ask()).attempt.target == "w2"
    second = kit.ask()
    await settle()
    assert not second.done()
    kit.report(one_slot("w1"), one_slot("w2", running=1))
    assert (await second).attempt.target == "w1"


def test_any_day_of_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """See tests.gateway.pool.machine."""
    monkeypatch.undo()  # here reports are late in earnest
    run_state_machine_as_test(
        PoolMachine, settings=settings(max_examples=25, stateful_step_count=30, deadline=None)
    )
