"""The engine: who waits, who runs, and one thread that turns prompts into tokens.

A request takes a ticket before its body is read, and waits from then on. A ticket's life:

    admit() -> waiting -> submit() -> running -> done
                  |          |           |
                  `----------+-----------+--- abort(): at once, or after the step that runs

Requests join and leave the running batch between any two steps, as the scheduler decides. Nothing
here knows torch: the model is behind the `BatchModel` protocol, and nothing is asked of it while
the lock is held, so that counts and health can be read whatever it does.

What breaks with one request ends that request. An engine that cannot go on (`trouble`) tells all
who are inside, admits nobody, and is not mended: its process has to end.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from functools import partial

import structlog

from backends.glm.engine.events import ABORTED, Event, Failed, Finished, Job, Progress, Ticket
from backends.glm.engine.keeping import Keeping
from backends.glm.engine.progress import Part, Pulse
from backends.glm.engine.runs import Run
from backends.glm.engine.scheduler import Entry, Scheduler
from backends.glm.engine.seam import BatchModel
from backends.glm.engine.speeds import EngineLoad, Speeds
from backends.glm.errors import WorkerBusy, bad_request, place_of, worker_draining, worker_failed

# Failed steps in a row, each of one request: a broken device. As many as open a gateway's breaker.
FAILED_STEPS_MAX = 5

_log = structlog.get_logger("glm.engine")


class Engine:
    """Admission and the step loop. Every public method may be called from any thread."""

    def __init__(
        self,
        model: BatchModel,
        *,
        scheduler: Scheduler,
        queue_limit: int,
        kept_blocks: int = 0,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`queue_limit`: requests that may wait; `kept_blocks`: how much of prompts is remembered
        (see `prefix`); `on_change`: called after counts changed, by whoever changed them."""
        self._model = model
        self._scheduler = scheduler
        self._queue_limit = queue_limit
        self._keeping = Keeping(model, kept_blocks)
        self._news = False  # something happened that may change what the next step is
        self._on_change = on_change
        self._clock = clock
        self._wake = threading.Condition()
        self._order = itertools.count()
        self._waiting: set[Ticket] = set()
        self._runs: dict[Hashable, Run] = {}
        self._draining = self._stopping = False
        self._trouble: str | None = None
        self._done = self._failed_steps = 0  # pieces of work, whatever came of them; in a row
        self._speeds = Speeds()
        self._thread = threading.Thread(target=self._run, name="glm-engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Abort everything and end the thread, waiting for the step that runs."""
        with self._wake:
            self._stopping = self._draining = True
            tickets = {*self._waiting, *(run.ticket for run in self._runs.values())}
            given_up = [run for ticket in tickets for run in self._abort_locked(ticket)]
            self._tell_news_locked()
        for run in given_up:
            run.job.emit(ABORTED)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._model.stop(timeout_s)

    @property
    def trouble(self) -> str | None:
        """Why the engine cannot go on; None: it can."""
        return self._trouble

    def give_up(self, why: str) -> None:
        """The engine is over: everybody inside hears of it, nobody is admitted any more. The thread
        may hang in the model for ever; whatever it still brings is nobody's."""
        with self._wake:
            if self._trouble is not None:
                return
            self._trouble = why
            runs = list(self._runs.values())
            inside = {*self._waiting, *(run.ticket for run in runs)}
            for ticket in inside:
                ticket.live = False
            for held in (self._runs, self._waiting, self._scheduler.running):
                held.clear()
            self._scheduler.waiting.clear()
            self._tell_news_locked()
        _log.error("engine_given_up", why=why, requests=len(inside))
        for run in runs:
            run.job.emit(Failed(why, engine=True))
        self._on_change()

    def pulse(self) -> Pulse:
        """What there is to do, and how much was done, for `progress.Watch`."""
        seen = self._model.pictures()
        with self._wake:
            return Pulse(
                steps=Part(busy=self._scheduler.busy, done=self._done),
                pictures=Part(busy=seen.waiting > 0, done=seen.batches),
            )

    def drain(self) -> None:
        """Admit nobody any more; those who hold a ticket are served."""
        with self._wake:
            self._draining = True
        self._on_change()

    def admit(self) -> Ticket:
        """Take a place.

        Raises: WorkerBusy when slots and queue are full, WorkerUnavailable when draining or over.
        """
        with self._wake:
            if self._trouble is not None:
                raise worker_failed()
            if self._draining:
                raise worker_draining()
            inside = len(self._waiting) + len(self._scheduler.running)
            if inside >= self._scheduler.slots + self._queue_limit:
                raise self._busy_locked(1)
            ticket = Ticket(self._clock())
            self._waiting.add(ticket)
        self._on_change()
        return ticket

    def submit(self, ticket: Ticket, *jobs: Job) -> list[Ticket]:
        """Queue the work of an admitted ticket, a job for each answer that is wanted, all of it or
        nothing; one aborted meanwhile ends at once. Every answer has a place: their tickets.

        Raises: WorkerError 400 if an idle worker has fewer places, WorkerBusy if others have them
        or the cache, WorkerUnavailable when over, ValueError if it is longer than the cache.
        """
        slots, places = self._scheduler.slots, self._scheduler.slots + self._queue_limit
        if len(jobs) > places:
            room = f"{slots} slots and a queue of {self._queue_limit}"
            raise bad_request(f"`n` is at most {places} here: this worker has {room}.", param="n")
        tickets = [ticket, *(Ticket(ticket.admitted_s) for _ in jobs[1:])]
        runs = [Run.of(*one, next(self._order)) for one in zip(tickets, jobs, strict=True)]
        if max(run.entry.kv_tokens for run in runs) > self._scheduler.rows.tokens:
            raise ValueError("the request is longer than the whole cache")
        with self._wake:
            if self._trouble is not None:
                raise worker_failed()
            others = len(self._waiting - {ticket}) + len(self._scheduler.running)
            tokens = sum(run.entry.kv_tokens for run in runs)
            ahead = max(others + len(jobs) - places, self._scheduler.in_the_way(tokens))
            if ahead > 0:
                raise self._busy_locked(ahead)
            if not ticket.aborted:
                self._waiting.update(tickets)
                for run in runs:
                    self._runs[run.ticket] = run
                    self._scheduler.add(run.entry)
                self._tell_news_locked()
                return tickets
        for job in jobs:
            job.emit(ABORTED)
        return tickets

    def abort(self, ticket: Ticket) -> None:
        """Give the place up, in whatever state; harmless after the end. The job hears ABORTED."""
        with self._wake:
            if not ticket.live:
                return
            given_up = self._abort_locked(ticket)
            self._tell_news_locked()
        for run in given_up:
            run.job.emit(ABORTED)
        self._on_change()

    def load(self) -> EngineLoad:
        """Counts and speeds of this moment."""
        seen = self._model.pictures()
        with self._wake:
            scheduler = self._scheduler
            return replace(
                self._speeds.load(),
                slots=scheduler.slots,
                running=len(scheduler.running),
                waiting=len(self._waiting),
                preparing=max(0, len(self._waiting) - len(scheduler.waiting)),
                waiting_tokens=scheduler.waiting_tokens,
                queue_limit=self._queue_limit,
                kv_tokens_used=scheduler.rows.tokens_used,
                kv_tokens_total=scheduler.rows.tokens,
                prompt_tokens=self._keeping.prompt_tokens,
                cached_tokens=self._keeping.cached_tokens,
                pictures=seen.asked,
                cached_pictures=seen.remembered,
            )

    def forget_speeds(self) -> None:
        """Measure anew from here."""
        with self._wake:
            self._speeds = Speeds(reading_s=self._speeds.reading_s)

    def read_beside(self, tokens: int) -> None:
        """From now on, read so many prompt tokens in a step in which others decode."""
        with self._wake:
            self._scheduler.beside_tokens = tokens

    def _busy_locked(self, ahead: int) -> WorkerBusy:
        retry_after_s = self._speeds.retry_after_s(ahead, self._scheduler.slots)
        return WorkerBusy(waiting=len(self._waiting), retry_after_s=retry_after_s)

    def _tell_news_locked(self) -> None:
        self._news = True
        self._wake.notify()

    def _abort_locked(self, ticket: Ticket) -> list[Run]:
        """One that runs is closed by the engine's thread; any other is over now, and returned if
        it is to be told so."""
        ticket.aborted = True
        run = self._runs.get(ticket)
        if run is not None and run.entry.running:
            return []
        self._waiting.discard(ticket)
        ticket.live = False
        if run is None:
            return []
        self._remove_locked(run)
        return [run]

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # a panic of a library in Rust is no Exception
            self.give_up(f"the engine's thread has ended: {place_of(error)}")
            _log.error("engine_broke", error=repr(error)[:300])

    def _loop(self) -> None:
        while self._trouble is None:
            with self._wake:
                while not (self._runs or self._stopping or self._trouble):
                    self._wake.wait()
                self._news = False
                closed = self._close_given_up_locked()
                started = self._start_locked()
                over = self._stopping and not self._runs
            self._close(run for run, _ in closed)
            for run, event in closed:
                run.job.emit(event)
            if closed or started:
                self._on_change()
            if over:
                return
            for run, blocks in started:
                self._open(run, blocks)
            with self._wake:
                work = [(self._runs[entry.key], n) for entry, n in self._scheduler.plan()]
                while not (work or self._news or not self._runs):
                    self._wake.wait()  # everybody's pictures are being encoded
            if work:
                self._advance(work)

    def _close_given_up_locked(self) -> list[tuple[Run, Event]]:
        """Those whose callers have left, and those whose pictures cannot be encoded."""
        closed: list[tuple[Run, Event]] = []
        for run in [r for r in self._runs.values() if r.ticket.aborted or r.failure is not None]:
            self._remove_locked(run)
            closed.append((run, ABORTED if run.failure is None else Failed.by(run.failure)))
        return closed

    def _start_locked(self) -> list[tuple[Run, list[int]]]:
        """Who starts now, and the kept blocks that are the beginning of its prompt."""
        started = []
        while (entry := self._scheduler.start(self._better_later)) is not None:
            run = self._runs[entry.key]
            run.started_s = self._clock()
            if all(other is entry or other.decoding for other in self._scheduler.running):
                self._speeds.reading_s = run.started_s
            self._waiting.discard(run.ticket)
            blocks = self._keeping.found(run)
            self._scheduler.found(entry, run.cached_tokens)
            started.append((run, blocks))
        return started

    def _better_later(self, entry: Entry) -> bool:
        """Whether somebody reads, at this moment, what this one would have to read as well."""
        return self._keeping.better_later(self._runs[entry.key], self._runs.values())

    def _remove_locked(self, run: Run) -> None:
        self._scheduler.remove(run.entry)
        del self._runs[run.ticket]
        run.ticket.live = False

    def _close(self, runs: Iterable[Run]) -> None:
        """They are over: their rows are cleared before anybody else starts in them."""
        for run in runs:
            if run.generation is None:
                continue
            try:
                self._model.close(run.generation)
            except Exception as error:  # another tenant would get rows with this one's entries
                self.give_up(f"a request's rows could not be cleared: {place_of(error)}")

    def _open(self, run: Run, blocks: list[int]) -> None:
        run.entry.ready = False
        try:
            opened = self._model.open(
                run.job, run.entry.first_row, blocks, partial(self._seen, run)
            )
        except Exception as error:  # one request's failure must not end the engine for all others
            self._fail(run, error)
            return
        finally:
            self._done += 1
        run.generation = opened.generation
        if opened.ready:
            run.entry.ready = True

    def _seen(self, run: Run, error: Exception | None) -> None:
        with self._wake:
            run.entry.ready, run.failure = True, error
            self._tell_news_locked()

    def _fail(self, run: Run, error: Exception) -> None:
        with self._wake:
            if self._trouble is not None:
                return  # it has been told
            self._remove_locked(run)
        self._close([run])
        self._on_change()
        run.job.emit(Failed.by(error))

    def _advance(self, work: list[tuple[Run, int]]) -> None:
        """One step of the batch. When it fails, its members take it one by one, so that only those
        who cannot take it alone either are given up."""
        began_s = self._clock()
        try:
            drawn = self._model.step([(run.generation, n) for run, n in work])
        except Exception as error:  # as above
            self._done += 1
            self._step_failed(work, error)
            return
        self._done += 1
        self._failed_steps = 0
        now_s = self._clock()
        # Prompts that are read to their end with this step, and what came of it for everybody.
        read = [run for (run, _), one in zip(work, drawn, strict=True) if one and not run.answer]
        told: list[tuple[Run, Event]] = []
        for (run, _), one in zip(work, drawn, strict=True):
            if one is not None and (event := self._keeping.take(run, one, now_s)) is not None:
                told.append((run, event))
        over = [run for run, event in told if not isinstance(event, Progress)]
        with self._wake:
            if self._trouble is not None:
                return  # given up while this step was under way: all have been told
            decoded = sum(run.entry.decoding for run, _ in work)
            self._speeds.step(decoded=decoded, seconds=now_s - began_s)
            self._speeds.read([r.entry.prompt_tokens - r.cached_tokens for r in read], now_s)
            for run, tokens in work:
                self._scheduler.served(run.entry, tokens)
            for run, event in told:
                if isinstance(event, Finished):
                    self._speeds.requests.add(1, now_s - run.started_s)
            for run in over:
                self._remove_locked(run)
        self._close(over)
        # A slot is free before its caller hears of the end: the next request finds it free.
        if over:
            self._on_change()
        for run, event in told:
            run.job.emit(event)

    def _step_failed(self, work: list[tuple[Run, int]], error: Exception) -> None:
        if len(work) > 1:
            _log.warning("step_failed", requests=len(work), error=place_of(error))
            for member in work:
                if self._trouble is None:
                    self._advance([member])
            return
        self._fail(work[0][0], error)
        self._failed_steps += 1
        if self._failed_steps >= FAILED_STEPS_MAX:
            self.give_up(f"{FAILED_STEPS_MAX} steps in a row failed, the last: {place_of(error)}")
