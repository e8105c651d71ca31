"""The engine: who waits, who runs, and one thread that turns prompts into tokens.

A request takes a ticket before any work is done for it, also before its picture is decoded, and
counts as waiting from then on: the answer "busy" costs nothing and comes at once. A ticket's life:

    admit() -> waiting -> submit() -> running -> done
                  |          |           |
                  `----------+-----------+--- abort(): at once, or after the step that runs

Requests join and leave the running batch between any two steps; who does is the scheduler's
decision. Nothing here knows torch: the model is behind the `Runner` protocol.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from backends.glm.deltas import Delta
from backends.glm.errors import WorkerBusy, WorkerUnavailable
from backends.glm.output import Output
from backends.glm.scheduler import Entry, Scheduler
from backends.glm.speeds import EngineLoad, Speeds
from backends.glm.types import Constraint, Drawn, Prompt, Sampling

FinishReason = Literal["stop", "length"]


class Runner(Protocol):
    """The model. Only the engine's thread calls it. A generation is the model's own value."""

    def open(self, job: Job, row: int) -> Any:
        """A request that has done no work yet; its cache begins at this row."""
        ...

    def step(self, work: Sequence[tuple[Any, int]]) -> list[Drawn | None]:
        """One forward pass over so many further tokens of each: of its prompt, or the one drawn
        last. The token drawn for each, None where the prompt is not read to its end yet."""
        ...

    def close(self, generation: Any) -> None:
        """It is over; its rows may be another's from now on."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """New text."""

    deltas: list[Delta]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The last event of a good generation. `completion_tokens` counts every generated token, the
    stop token too; `cached_tokens` those of the prompt that were not read again; times are
    milliseconds, queue and first token counted from admission."""

    deltas: list[Delta]
    reason: FinishReason
    completion_tokens: int
    reasoning_tokens: int
    queue_ms: int
    ttft_ms: int
    slot_ms: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a broken generation. `aborted`: nothing broke, the ticket was given up."""

    detail: str
    aborted: bool = False


Event = Progress | Finished | Failed
ABORTED = Failed("aborted", aborted=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to generate and where to report. `emit` is called from the engine's thread; `tenant`:
    whose turn and whose cached prefixes it shares; `priority`: lower goes first."""

    prompt: Prompt
    sampling: Sampling
    stop_ids: frozenset[int]
    max_tokens: int
    output: Output
    emit: Callable[[Event], None]
    constraint: Constraint | None = None
    tenant: str = ""
    priority: int = 0


@dataclass(eq=False, slots=True)
class Ticket:
    """A place in the engine, from admission to the end."""

    admitted_s: float
    aborted: bool = False
    live: bool = True


@dataclass(eq=False, slots=True)
class _Run:
    """A submitted job on its way. Times are seconds of the engine's clock."""

    ticket: Ticket
    job: Job
    entry: Entry
    generation: Any = None
    produced: int = 0
    started_s: float = 0.0
    first_s: float = 0.0


class Engine:
    """Admission and the step loop. Every public method may be called from any thread."""

    def __init__(
        self,
        runner: Runner,
        *,
        scheduler: Scheduler,
        queue_limit: int,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`queue_limit`: requests that may wait; `on_change`: called after counts changed, from
        whichever thread changed them."""
        self._runner = runner
        self._scheduler = scheduler
        self._queue_limit = queue_limit
        self._on_change = on_change
        self._clock = clock
        self._wake = threading.Condition()
        self._order = itertools.count()
        self._waiting: set[Ticket] = set()
        self._runs: dict[Hashable, _Run] = {}
        self._draining = self._stopping = False
        self._speeds = Speeds()
        self._thread = threading.Thread(target=self._loop, name="glm-engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Abort everything and end the thread, waiting for the step that runs."""
        with self._wake:
            self._stopping = self._draining = True
            tickets = {*self._waiting, *(run.ticket for run in self._runs.values())}
            given_up = [run for ticket in tickets for run in self._abort_locked(ticket)]
            self._wake.notify_all()
        _tell_aborted(given_up)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def drain(self) -> None:
        """Admit nobody any more; those who hold a ticket are served."""
        with self._wake:
            self._draining = True
        self._on_change()

    def admit(self) -> Ticket:
        """Take a place.

        Raises: WorkerBusy when slots and queue are full, WorkerUnavailable while draining.
        """
        with self._wake:
            if self._draining:
                raise WorkerUnavailable(
                    code="worker_draining", message="This worker is shutting down."
                )
            slots = self._scheduler.slots
            inside = len(self._waiting) + len(self._scheduler.running)
            if inside >= slots + self._queue_limit:
                raise WorkerBusy(
                    waiting=len(self._waiting),
                    retry_after_s=self._speeds.retry_after_s(ahead=1, slots=slots),
                )
            ticket = Ticket(self._clock())
            self._waiting.add(ticket)
        self._on_change()
        return ticket

    def submit(self, ticket: Ticket, job: Job) -> None:
        """Queue the work of an admitted ticket; one aborted meanwhile ends at once.

        Raises: ValueError if it can never fit; who submits bounds prompt and output by the cache.
        """
        entry = Entry(
            key=ticket,
            tenant=job.tenant,
            priority=job.priority,
            order=next(self._order),
            prompt_tokens=len(job.prompt.ids),
            max_tokens=job.max_tokens,
        )
        if entry.kv_tokens > self._scheduler.rows.tokens:
            raise ValueError("the request is longer than the whole cache")
        with self._wake:
            if not ticket.aborted:
                self._runs[ticket] = _Run(ticket, job, entry)
                self._scheduler.add(entry)
                self._wake.notify()
                return
        job.emit(ABORTED)

    def abort(self, ticket: Ticket) -> None:
        """Give the place up, in whatever state; harmless after the end. The job hears ABORTED."""
        with self._wake:
            if not ticket.live:
                return
            given_up = self._abort_locked(ticket)
            self._wake.notify()
        _tell_aborted(given_up)
        self._on_change()

    def load(self) -> EngineLoad:
        """Counts and speeds of this moment."""
        with self._wake:
            scheduler, speeds = self._scheduler, self._speeds
            return EngineLoad(
                slots=scheduler.slots,
                running=len(scheduler.running),
                waiting=len(self._waiting),
                queue_limit=self._queue_limit,
                decode_tokens_per_s=round(speeds.decode.per_second, 2),
                decode_tokens_per_s_total=round(speeds.total.per_second, 2),
                prefill_tokens_per_s=round(speeds.prefill.per_second, 2),
                kv_tokens_used=scheduler.rows.tokens_used,
                kv_tokens_total=scheduler.rows.tokens,
            )

    def forget_speeds(self) -> None:
        """Measure anew from here."""
        with self._wake:
            self._speeds = Speeds()

    def _abort_locked(self, ticket: Ticket) -> list[_Run]:
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
        self._end_locked(run)
        return [run]

    # ------------------------------------------------------------ the engine's thread

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._runs or self._stopping):
                    self._wake.wait()
                closed = self._close_aborted_locked()
                started = self._start_locked()
                over = self._stopping and not self._runs
            _tell_aborted(closed)
            if closed or started:
                self._on_change()
            if over:
                return
            for run in started:
                self._open(run)
            with self._wake:
                work = [(self._runs[entry.key], n) for entry, n in self._scheduler.plan()]
            if work:
                self._advance(work)

    def _close_aborted_locked(self) -> list[_Run]:
        closed = [run for run in self._runs.values() if run.ticket.aborted]
        for run in closed:
            self._end_locked(run)
        return closed

    def _start_locked(self) -> list[_Run]:
        started = []
        while (entry := self._scheduler.start()) is not None:
            run = self._runs[entry.key]
            run.started_s = self._clock()
            self._waiting.discard(run.ticket)
            started.append(run)
        return started

    def _end_locked(self, run: _Run) -> None:
        if run.generation is not None:
            self._runner.close(run.generation)
        self._scheduler.remove(run.entry)
        del self._runs[run.ticket]
        run.ticket.live = False

    def _open(self, run: _Run) -> None:
        try:
            run.generation = self._runner.open(run.job, run.entry.first_row)
        except Exception as error:  # one request's failure must not end the engine for all others
            self._fail(run, error)

    def _fail(self, run: _Run, error: Exception) -> None:
        with self._wake:
            self._end_locked(run)
        self._on_change()
        run.job.emit(Failed(f"{type(error).__name__}: {error}"))

    def _advance(self, work: list[tuple[_Run, int]]) -> None:
        """One step of the batch. When it fails, its members take it one by one, so that only those
        who cannot take it alone either are given up."""
        began_s = self._clock()
        try:
            drawn = self._runner.step([(run.generation, n) for run, n in work])
        except Exception as error:  # as above
            if len(work) == 1:
                self._fail(work[0][0], error)
                return
            for member in work:
                self._advance([member])
            return
        now_s = self._clock()
        told: list[tuple[_Run, Event]] = []
        with self._wake:
            decoded = sum(run.entry.decoding for run, _ in work)
            self._speeds.step(decoded=decoded, seconds=now_s - began_s)
            for (run, tokens), one in zip(work, drawn, strict=True):
                self._scheduler.served(run.entry, tokens)
                event = None if one is None else self._take_locked(run, one, now_s)
                if event is not None:
                    told.append((run, event))
        # A slot is free before its caller hears of the end: the next request finds it free.
        if any(not isinstance(event, Progress) for _, event in told):
            self._on_change()
        for run, event in told:
            run.job.emit(event)

    def _take_locked(self, run: _Run, drawn: Drawn, now_s: float) -> Event | None:
        """Add a drawn token to its answer. An answer that ends here gives its slot back."""
        job = run.job
        run.produced += 1
        if run.produced == 1:
            run.first_s = now_s
        reason: FinishReason | None = None
        deltas: list[Delta] = []
        try:
            if drawn.token_id in job.stop_ids:
                reason = "stop"
            else:
                deltas = job.output.push(drawn)
                if job.output.stopped:
                    reason = "stop"
                elif run.produced >= job.max_tokens:
                    reason = "length"
            if reason is None:
                return Progress(deltas=deltas) if deltas else None
            end = self._finished(
                run, reason, [*deltas, *job.output.finish(cut=reason == "length")], now_s
            )
        except Exception as error:  # as above
            self._end_locked(run)
            return Failed(f"{type(error).__name__}: {error}")
        self._end_locked(run)
        return end

    def _finished(
        self, run: _Run, reason: FinishReason, deltas: list[Delta], now_s: float
    ) -> Finished:
        prompt_tokens = len(run.job.prompt.ids)
        self._speeds.prefill.add(prompt_tokens, run.first_s - run.started_s)
        self._speeds.requests.add(1, now_s - run.started_s)
        return Finished(
            deltas=deltas,
            reason=reason,
            completion_tokens=run.produced,
            reasoning_tokens=run.job.output.reasoning_tokens,
            queue_ms=_ms(run.started_s - run.ticket.admitted_s),
            ttft_ms=_ms(run.first_s - run.ticket.admitted_s),
            slot_ms=_ms(now_s - run.started_s),
        )


def _tell_aborted(runs: Sequence[_Run]) -> None:
    for run in runs:
        run.job.emit(ABORTED)


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
