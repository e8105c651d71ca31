from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator, Sequence

import pytest
from structlog.testing import capture_logs

from backends.glm.answer.output import Output
from backends.glm.engine.engine import FAILED_STEPS_MAX, Engine
from backends.glm.engine.events import ABORTED, Event, Failed, Finished, Job, Progress
from backends.glm.errors import WorkerBusy, WorkerError, WorkerUnavailable
from backends.glm.types import Drawn, Prompt, Sampling
from tests.backends.glm.scripted import Play, Script, scheduler

STOP = 0
PROMPT = Prompt(ids=[7] * 10, image_token_id=-1, pixels=None, thinking="closed")
WAIT_S = 20


class Inbox:
    """The events of one job."""

    def __init__(self) -> None:
        self._events: queue.Queue[Event] = queue.Queue()
        self.emit = self._events.put

    def next(self) -> Event:
        return self._events.get(timeout=WAIT_S)

    def last(self) -> tuple[str, Event]:
        """All text, and the event after which there is none."""
        text = ""
        while isinstance(event := self.next(), Progress):
            text += "".join(delta.text for delta in event.deltas)
        if isinstance(event, Finished):
            text += "".join(delta.text for delta in event.deltas)
        return text, event

    @property
    def empty(self) -> bool:
        return self._events.empty()


def job(
    inbox: Inbox,
    *,
    max_tokens: int = 100,
    stops: tuple[str, ...] = (),
    prompt: Prompt = PROMPT,
    tenant: str = "",
) -> Job:
    return Job(
        prompt=prompt,
        tenant=tenant,
        sampling=Sampling(),
        stop_ids=frozenset({STOP}),
        max_tokens=max_tokens,
        output=Output(lambda i: bytes([i]), think_ids=(None, None), thinking="closed", stops=stops),
        emit=inbox.emit,
    )


class Bench:
    """An engine over a script, stopped at the end of the test."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.changes: queue.Queue[None] = queue.Queue()

    def start(
        self,
        script: Script,
        queue_limit: int = 2,
        slots: int = 1,
        step_tokens: int = 4096,
        kept_blocks: int = 0,
    ) -> Engine:
        engine = Engine(
            script,
            scheduler=scheduler(slots, row_tokens=128, step_tokens=step_tokens),
            queue_limit=queue_limit,
            kept_blocks=kept_blocks,
            on_change=lambda: self.changes.put(None),
        )
        engine.start()
        self.engines.append(engine)
        return engine

    def counts(self, engine: Engine, running: int, waiting: int) -> None:
        """Wait until the engine reports these counts."""
        while (engine.load().running, engine.load().waiting) != (running, waiting):
            self.changes.get(timeout=WAIT_S)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    for engine in made.engines:
        engine.stop(WAIT_S)
        assert engine._model.stopped
        assert not engine._thread.is_alive()


def test_until_a_stop_id(bench: Bench) -> None:
    engine, inbox = bench.start(Script([*b"Hello", STOP])), Inbox()
    engine.submit(engine.admit(), job(inbox))
    text, end = inbox.last()
    assert isinstance(end, Finished)
    assert (text, end.reason, end.completion_tokens) == ("Hello", "stop", 6)
    bench.counts(engine, 0, 0)


def test_until_the_token_limit(bench: Bench) -> None:
    engine, inbox = bench.start(Script(b"Hello")), Inbox()
    engine.submit(engine.admit(), job(inbox, max_tokens=3))
    text, end = inbox.last()
    assert isinstance(end, Finished)
    assert (text, end.reason, end.completion_tokens) == ("Hel", "length", 3)


def test_until_a_stop_string_and_no_step_further(bench: Bench) -> None:
    script = Script(b"one END two")
    engine, inbox = bench.start(script), Inbox()
    engine.submit(engine.admit(), job(inbox, stops=("END",)))
    text, end = inbox.last()
    assert isinstance(end, Finished)
    assert (text, end.reason, end.completion_tokens, script.steps) == ("one ", "stop", 7, 7)


def test_one_runs_and_the_others_wait_in_order(bench: Bench) -> None:
    script = Script(b"ab", gated=True)
    engine = bench.start(script)
    inboxes = [Inbox() for _ in range(3)]
    for inbox in inboxes:
        engine.submit(engine.admit(), job(inbox, max_tokens=2))
    bench.counts(engine, 1, 2)
    for done, inbox in enumerate(inboxes, start=1):
        script.allow(2)
        assert inbox.last()[0] == "ab"
        assert all(other.empty for other in inboxes[done + 1 :])
    bench.counts(engine, 0, 0)


def test_a_full_queue_says_when_to_come_back(bench: Bench) -> None:
    script = Script(b"a", gated=True)
    engine = bench.start(script, queue_limit=1)
    tickets = [engine.admit(), engine.admit()]  # being prepared counts as waiting
    assert (engine.load().running, engine.load().waiting) == (0, 2)
    with pytest.raises(WorkerBusy) as caught:
        engine.admit()
    assert caught.value.status == 503
    assert caught.value.retry_after_s == 1
    engine.abort(tickets[0])
    engine.abort(engine.admit())


def test_retry_after_grows_with_the_measured_turn(bench: Bench) -> None:
    now_s = itertools.count(step=2.5)  # every look at the clock is 2.5 s after the last one
    engine = Engine(
        Script(b"a"),
        scheduler=scheduler(),
        queue_limit=0,
        on_change=lambda: bench.changes.put(None),
        clock=lambda: float(next(now_s)),
    )
    engine.start()
    bench.engines.append(engine)
    inbox = Inbox()
    engine.submit(engine.admit(), job(inbox, max_tokens=1))
    inbox.last()  # started, one step begun and ended: three looks, so 5 s in the slot
    engine.admit()
    with pytest.raises(WorkerBusy) as caught:
        engine.admit()
    assert caught.value.retry_after_s == 5


def test_abort_while_running_takes_effect_after_the_step_that_runs(bench: Bench) -> None:
    script = Script(b"abcdef", gated=True)
    engine, inbox, following = bench.start(script), Inbox(), Inbox()
    ticket = engine.admit()
    engine.submit(ticket, job(inbox))
    engine.submit(engine.admit(), job(following, max_tokens=1))
    script.allow(2)
    for _ in range(3):
        script.entered.acquire(timeout=WAIT_S)  # the third step has begun
    engine.abort(ticket)
    script.allow(1)  # lets that step end
    assert inbox.last()[1] is ABORTED
    script.entered.acquire(timeout=WAIT_S)  # the next step belongs to the one who waited
    assert script.steps == 3
    script.allow(1)
    assert following.last()[0] == "a"


@pytest.mark.parametrize("submitted", [False, True])
def test_abort_while_waiting(bench: Bench, submitted: bool) -> None:
    script = Script(b"ab", gated=True)
    engine, first, second = bench.start(script), Inbox(), Inbox()
    engine.submit(engine.admit(), job(first, max_tokens=2))
    bench.counts(engine, 1, 0)
    ticket = engine.admit()
    if submitted:
        engine.submit(ticket, job(second))
    engine.abort(ticket)
    assert engine.load().waiting == 0
    if not submitted:
        engine.submit(ticket, job(second))  # prepared too late
    assert second.next() is ABORTED
    engine.abort(ticket)  # a second time: harmless
    script.allow(2)
    assert first.last()[0] == "ab"
    bench.counts(engine, 0, 0)
    assert script.steps == 2


@pytest.mark.parametrize("fail_at", [0, 2])
def test_a_broken_generation_does_not_end_the_engine(bench: Bench, fail_at: int) -> None:
    engine, broken, good = bench.start(Script(b"abc", fail_at=fail_at)), Inbox(), Inbox()
    engine.submit(engine.admit(), job(broken))
    _, end = broken.last()
    assert isinstance(end, Failed)
    assert not end.aborted
    assert "the device caught fire" in end.detail
    engine.submit(engine.admit(), job(good, max_tokens=fail_at))
    end = good.last()[1]
    assert isinstance(end, Failed if fail_at == 0 else Finished)
    bench.counts(engine, 0, 0)


def test_draining_serves_those_inside_and_nobody_else(bench: Bench) -> None:
    script = Script(b"ab", gated=True)
    engine, inbox = bench.start(script), Inbox()
    engine.submit(engine.admit(), job(inbox, max_tokens=2))
    engine.drain()
    with pytest.raises(WorkerUnavailable) as caught:
        engine.admit()
    assert (caught.value.status, caught.value.code) == (503, "worker_draining")
    script.allow(2)
    assert isinstance(inbox.last()[1], Finished)


def test_stopping_tells_everybody(bench: Bench) -> None:
    script = Script(b"ab", gated=True)
    engine, running, waiting = bench.start(script), Inbox(), Inbox()
    engine.submit(engine.admit(), job(running))
    bench.counts(engine, 1, 0)
    engine.submit(engine.admit(), job(waiting))
    script.allow(1)
    script.entered.acquire(timeout=WAIT_S)
    script.entered.acquire(timeout=WAIT_S)  # inside the second step
    script.allow(1)
    engine.stop(WAIT_S)
    assert waiting.last()[1] is ABORTED
    assert running.last()[1] is ABORTED


def test_cache_use_is_reported_while_a_request_runs(bench: Bench) -> None:
    script = Script(b"ab", gated=True)
    engine, inbox = bench.start(script, slots=2), Inbox()
    engine.submit(engine.admit(), job(inbox, max_tokens=2))
    script.allow(1)
    assert isinstance(inbox.next(), Progress)
    assert (engine.load().kv_tokens_used, engine.load().kv_tokens_total) == (128, 256)
    script.allow(1)
    inbox.last()
    assert engine.load().kv_tokens_used == 0


def test_speeds_are_those_of_the_steps(bench: Bench) -> None:
    engine, inbox = bench.start(Script(b"a")), Inbox()
    assert engine.load().decode_tokens_per_s == 0.0
    engine.submit(engine.admit(), job(inbox, max_tokens=5))
    inbox.last()
    load = engine.load()
    assert load.prefill_tokens_per_s > 0
    assert load.decode_tokens_per_s == load.decode_tokens_per_s_total > 0  # one request alone
    engine.forget_speeds()
    assert engine.load().decode_tokens_per_s_total == 0.0


def test_requests_join_and_leave_between_steps(bench: Bench) -> None:
    script = Script(b"abc", gated=True)
    engine, first, second, third = bench.start(script, slots=2), Inbox(), Inbox(), Inbox()
    engine.submit(engine.admit(), job(first, max_tokens=3))
    script.allow(1)
    assert isinstance(first.next(), Progress)
    script.entered.acquire(timeout=WAIT_S)
    script.entered.acquire(timeout=WAIT_S)  # inside the second step
    engine.submit(engine.admit(), job(second, max_tokens=2))
    engine.submit(engine.admit(), job(third, max_tokens=1))
    script.allow(2)  # the rest of the first, with the second beside it
    assert first.last()[0] == "bc"
    script.allow(1)
    assert (second.last()[0], third.last()[0]) == ("ab", "a")
    assert script.sizes == [[10], [1], [1, 10], [1, 10]]
    bench.counts(engine, 0, 0)


def test_a_long_prompt_is_read_between_the_tokens_of_others(bench: Bench) -> None:
    script = Script(b"ab", gated=True)
    engine, talking, reading = bench.start(script, slots=2, step_tokens=4), Inbox(), Inbox()
    engine.submit(engine.admit(), job(talking, max_tokens=6))
    script.allow(3)
    assert isinstance(talking.next(), Progress)
    for _ in range(4):
        script.entered.acquire(timeout=WAIT_S)  # inside the fourth step
    engine.submit(engine.admit(), job(reading, max_tokens=1))
    script.allow(5)
    assert (talking.last()[0], reading.last()[0]) == ("babab", "a")
    assert script.sizes == [[4], [4], [2], [1], [1, 3], [1, 3], [1, 3], [1, 1]]


def test_only_the_one_at_fault_is_given_up(bench: Bench) -> None:
    script = Script(b"abc", fail_at=2, gated=True)
    engine, broken, good = bench.start(script, slots=2), Inbox(), Inbox()
    engine.submit(engine.admit(), job(broken, max_tokens=3))
    script.allow(1)
    broken.next()
    engine.submit(engine.admit(), job(good, max_tokens=2))
    with capture_logs() as lines:
        script.allow(20)
        assert isinstance(broken.last()[1], Failed)
    assert [line["requests"] for line in lines if line["event"] == "step_failed"] == [2]
    assert good.last()[0] == "ab"
    bench.counts(engine, 0, 0)


def test_what_never_fits_is_the_fault_of_who_submits_it(bench: Bench) -> None:
    engine = bench.start(Script(b"a"))
    ticket = engine.admit()
    with pytest.raises(ValueError, match="whole cache"):
        engine.submit(ticket, job(Inbox(), max_tokens=1000))
    engine.abort(ticket)
    bench.counts(engine, 0, 0)


def test_a_prompt_that_was_read_is_not_read_again(bench: Bench) -> None:
    script = Script(b"abcdefgh")
    engine = bench.start(script, kept_blocks=8)
    long = Prompt(ids=list(range(40)), image_token_id=-1, pixels=None, thinking="closed")
    ends = []
    for prompt, tenant in ((long, "x"), (long, "x"), (long, "y")):
        inbox = Inbox()
        engine.submit(engine.admit(), job(inbox, max_tokens=2, prompt=prompt, tenant=tenant))
        end = inbox.last()[1]
        assert isinstance(end, Finished)
        ends.append(end.cached_tokens)
    assert ends == [0, 32, 0]
    assert script.sizes == [[40], [1], [8], [1], [40], [1]]
    assert (engine.load().prompt_tokens, engine.load().cached_tokens) == (120, 32)


def test_the_next_turn_begins_with_the_last_one(bench: Bench) -> None:
    engine = bench.start(Script(b"abcdefghijklmnopqrstuvw"), kept_blocks=8)
    first, second = Inbox(), Inbox()
    engine.submit(engine.admit(), job(first, max_tokens=23))  # 10 + 22 entries: two blocks
    first.last()
    ids = [*PROMPT.ids, *b"abcdefghijklmnopqrstuvw", 9, 9, 9]
    turn = Prompt(ids=ids, image_token_id=-1, pixels=None, thinking="closed")
    engine.submit(engine.admit(), job(second, max_tokens=1, prompt=turn))
    end = second.last()[1]
    assert isinstance(end, Finished)
    assert end.cached_tokens == 32


def test_equal_prompts_that_come_together_are_read_once(bench: Bench) -> None:
    script = Script(b"ab", gated=True)
    engine = bench.start(script, slots=3, queue_limit=9, kept_blocks=8)
    long = Prompt(ids=list(range(70)), image_token_id=-1, pixels=None, thinking="closed")
    inboxes = [Inbox() for _ in range(3)]
    engine.submit(engine.admit(), job(Inbox(), max_tokens=1))
    script.entered.acquire(timeout=WAIT_S)
    for inbox in inboxes:
        engine.submit(engine.admit(), job(inbox, max_tokens=2, prompt=long))
    script.allow(10)
    assert [inbox.last()[0] for inbox in inboxes] == ["ab"] * 3
    assert script.sizes == [[10], [70], [1, 6, 6], [1, 1]]


def test_who_waits_for_pictures_begins_when_they_are_seen(bench: Bench) -> None:
    script = Script(b"ab")
    script.blind = True
    engine, seen, broken, gone = bench.start(script, slots=3), Inbox(), Inbox(), Inbox()
    tickets = []
    for inbox in (seen, broken, gone):
        tickets.append(engine.admit())
        engine.submit(tickets[-1], job(inbox, max_tokens=2))
    bench.counts(engine, 3, 0)
    engine.abort(tickets[2])
    assert gone.last()[1] is ABORTED
    while len(script.on_ready) < 3:
        bench.changes.get(timeout=WAIT_S)
    script.on_ready[1](RuntimeError("cannot look at this"))
    end = broken.last()[1]
    assert isinstance(end, Failed)
    assert "cannot look" in end.detail
    script.on_ready[0](None)
    assert seen.last()[0] == "ab"
    bench.counts(engine, 0, 0)
    assert script.closed == 3


LONG = Prompt(ids=list(range(40)), image_token_id=-1, pixels=None, thinking="closed")


def test_a_prompt_that_cannot_be_kept_costs_nobody_the_answer(bench: Bench) -> None:
    script = Script(b"abc")
    script.broken["keep"] = RuntimeError("out of memory")
    engine = bench.start(script, kept_blocks=8)
    ends = []
    for number in range(3):
        if number == 1:
            script.broken.clear()
        inbox = Inbox()
        engine.submit(engine.admit(), job(inbox, max_tokens=3, prompt=LONG))
        text, end = inbox.last()
        assert isinstance(end, Finished)
        assert text == "abc"
        ends.append(end.cached_tokens)
    assert ends == [0, 0, 32]  # what was not copied is not found either
    assert engine.trouble is None


class Panic(BaseException):
    """As pyo3 raises for a panic of a library in Rust."""


@pytest.mark.parametrize(
    ("call", "error", "why"),
    [
        ("close", RuntimeError("on fire"), "could not be cleared: RuntimeError at"),
        ("step", Panic("on fire"), "thread has ended: Panic at"),
    ],
)
def test_an_engine_that_cannot_go_on_tells_everybody(
    bench: Bench, call: str, error: BaseException, why: str
) -> None:
    script = Script(b"ab", gated=True)
    engine = bench.start(script, slots=2)
    inboxes = [Inbox() for _ in range(3)]
    for inbox in inboxes:
        engine.submit(engine.admit(), job(inbox, max_tokens=1 if inbox is inboxes[0] else 9))
    bench.counts(engine, 2, 1)
    prepared_late = engine.admit()
    script.broken[call] = error
    script.allow(9)
    ends = [inbox.last()[1] for inbox in inboxes]
    if call == "close":  # its answer was whole
        assert isinstance(ends.pop(0), Finished)
    for end in ends:
        assert isinstance(end, Failed)
        assert (end.engine, end.aborted) == (True, False)
        assert why in end.detail
        assert "fire" not in end.detail
    assert why in (engine.trouble or "")
    bench.counts(engine, 0, 0)
    with pytest.raises(WorkerUnavailable) as caught:
        engine.admit()
    assert (caught.value.status, caught.value.code) == (503, "worker_failed")
    with pytest.raises(WorkerUnavailable):
        engine.submit(prepared_late, job(Inbox()))
    engine.abort(prepared_late)


def test_a_device_that_fails_every_step_ends_the_engine(bench: Bench) -> None:
    script = Script(b"ab")
    engine = bench.start(script)
    script.broken["step"] = RuntimeError("device-side assert")
    for number in range(1, FAILED_STEPS_MAX + 1):
        inbox = Inbox()
        engine.submit(engine.admit(), job(inbox))
        end = inbox.last()[1]
        assert isinstance(end, Failed)
        assert not end.engine  # its own step failed
        if number == FAILED_STEPS_MAX - 1:  # one that succeeds between them: it was the requests
            script.broken.clear()
            good = Inbox()
            engine.submit(engine.admit(), job(good, max_tokens=1))
            assert isinstance(good.last()[1], Finished)
            script.broken["step"] = RuntimeError("device-side assert")
    assert engine.trouble is None
    for _ in range(FAILED_STEPS_MAX - 1):
        inbox = Inbox()
        engine.submit(engine.admit(), job(inbox))
        inbox.last()
    while engine.trouble is None:
        bench.changes.get(timeout=WAIT_S)
    assert "5 steps in a row" in engine.trouble
    assert "assert" not in engine.trouble


def test_one_that_hangs_is_given_up_and_what_it_still_brings_is_nobodys(bench: Bench) -> None:
    script = Script(b"ab", gated=True)
    engine, running, waiting = bench.start(script), Inbox(), Inbox()
    engine.submit(engine.admit(), job(running))
    script.entered.acquire(timeout=WAIT_S)
    engine.submit(engine.admit(), job(waiting))
    before = engine.pulse()
    assert before.steps.busy
    assert before == engine.pulse()  # nothing moves
    engine.give_up("no step has ended")
    engine.give_up("a second reason")
    for inbox in (running, waiting):
        assert inbox.next() == Failed("no step has ended", engine=True)
    script.allow(9)  # it comes back after all
    engine._thread.join(WAIT_S)
    assert running.empty
    assert engine.trouble == "no step has ended"
    assert script.steps == 1


def test_a_pulse_says_what_there_is_to_do(bench: Bench) -> None:
    script = Script(b"ab")
    script.blind = True
    engine, inbox = bench.start(script), Inbox()
    assert not engine.pulse().steps.busy
    ticket = engine.admit()
    engine.submit(ticket, job(inbox))
    bench.counts(engine, 1, 0)
    while not script.on_ready:
        bench.changes.get(timeout=WAIT_S)
    pulse = engine.pulse()  # its pictures are being encoded: no step can be taken
    assert (pulse.steps.busy, pulse.pictures.busy) == (False, True)
    engine.abort(ticket)
    inbox.last()


@pytest.mark.parametrize(("slots", "queue_limit"), [(1, 1), (1, 7), (4, 4), (8, 0)])
def test_all_answers_of_a_request_are_let_in_together(
    bench: Bench, slots: int, queue_limit: int
) -> None:
    """Whatever an idle engine has places for it takes: nothing of it is in its own way."""
    engine = bench.start(Script(b"ab"), slots=slots, queue_limit=queue_limit)
    n = min(8, slots + queue_limit)
    for _ in range(2):
        inboxes = [Inbox() for _ in range(n)]
        tickets = engine.submit(engine.admit(), *(job(i, max_tokens=110) for i in inboxes))
        assert len(set(tickets)) == n
        for inbox in inboxes:
            assert isinstance(inbox.last()[1], Finished)
        bench.counts(engine, 0, 0)
    ticket = engine.admit()
    with pytest.raises(WorkerError, match=f"`n` is at most {slots + queue_limit} here") as caught:
        engine.submit(ticket, *[job(Inbox())] * (slots + queue_limit + 1))
    assert (caught.value.status, caught.value.param) == (400, "n")
    engine.abort(ticket)


def test_of_a_request_that_does_not_fit_beside_others_nothing_is_let_in(bench: Bench) -> None:
    script = Script(b"ab", gated=True)
    engine = bench.start(script, slots=2, queue_limit=2)
    first = engine.admit()
    engine.submit(first, job(Inbox()))
    bench.counts(engine, 1, 0)
    ticket = engine.admit()
    with pytest.raises(WorkerBusy):  # three places are left
        engine.submit(ticket, *(job(Inbox()) for _ in range(4)))
    bench.counts(engine, 1, 1)
    inboxes = [Inbox() for _ in range(3)]
    tickets = engine.submit(ticket, *(job(inbox, max_tokens=1) for inbox in inboxes))
    bench.counts(engine, 1, 3)
    with pytest.raises(WorkerBusy):
        engine.admit()
    for one in (first, *tickets):
        engine.abort(one)
    assert all(inbox.last()[1] is ABORTED for inbox in inboxes)
    script.allow(1)
    bench.counts(engine, 0, 0)


def test_what_goes_wrong_with_one_of_a_step_ends_that_one(bench: Bench) -> None:
    class Faulty(Script):
        def step(self, work: Sequence[tuple[Play, int]]) -> list[Drawn | Exception | None]:
            found = super().step(work)
            return [*found[:-1], ValueError("no token is allowed")] if len(work) > 1 else found

    engine = bench.start(Faulty(b"ab", gated=True), slots=2)
    good, bad = Inbox(), Inbox()
    engine.submit(engine.admit(), job(good, max_tokens=4), job(bad, max_tokens=4))
    bench.counts(engine, 2, 0)
    engine._model.allow(9)
    end = bad.last()[1]
    assert isinstance(end, Failed)
    assert "ValueError" in end.detail
    assert good.last()[0] == "abab"
    assert engine._model.steps == 4  # none was taken again


def test_no_call_of_the_model_holds_the_counts_up(bench: Bench) -> None:
    """Whatever the model does, load and health can be read: they are, on the event loop."""

    class Asking(Script):
        def __getattribute__(self, name: str) -> object:
            if name in ("open", "step", "keep", "close"):
                thread = threading.Thread(target=lambda: (engine.load(), asked.append(name)))
                thread.start()
                thread.join(WAIT_S)
            return super().__getattribute__(name)

    asked: list[str] = []
    engine, inbox = bench.start(Asking(b"ab"), kept_blocks=8), Inbox()
    engine.submit(engine.admit(), job(inbox, max_tokens=2, prompt=LONG))
    assert isinstance(inbox.last()[1], Finished)
    assert set(asked) == {"open", "step", "keep", "close"}


def test_a_queue_is_bounded_by_its_tokens_too(bench: Bench) -> None:
    script = Script(b"a", gated=True)
    engine, waiting = bench.start(script, queue_limit=99), []
    for number in range(4):  # the cache has 128 entries, so 256 may wait; each needs 109
        ticket = engine.admit()
        if number < 3:
            engine.submit(ticket, job(Inbox()))
            waiting.append(ticket)
            bench.counts(engine, 1, number)
    assert engine.load().waiting_tokens == 2 * 109
    assert engine.load().preparing == 1  # the fourth, which is not submitted yet
    with pytest.raises(WorkerBusy) as caught:
        engine.submit(ticket, job(Inbox()))
    assert caught.value.retry_after_s == 1
    engine.submit(ticket, job(Inbox(), max_tokens=3))  # a short one still fits
    for one in (*waiting, ticket):
        engine.abort(one)
    script.allow(1)
    bench.counts(engine, 0, 0)


def test_prompts_read_together_are_measured_together(bench: Bench) -> None:
    now_s = itertools.count()
    engine = Engine(
        Script(b"a", gated=True),
        scheduler=scheduler(4),
        queue_limit=9,
        on_change=lambda: bench.changes.put(None),
        clock=lambda: float(next(now_s)),
    )
    bench.engines.append(engine)
    inboxes = [Inbox() for _ in range(3)]
    for inbox in inboxes:
        engine.submit(engine.admit(), job(inbox, max_tokens=1))
    engine.start()
    engine._model.allow(9)
    for inbox in inboxes:
        inbox.last()
    # Three tickets, three starts at 3, 4 and 5, and one step of 30 tokens from 6 to 7.
    assert engine.load().prefill_tokens_per_s == round(30 / (7 - 3), 2)
