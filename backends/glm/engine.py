"""The engine: who waits, who runs, and one thread that turns prompts into tokens.

A request takes a ticket before any work is done for it, also before its picture is decoded, and
counts as waiting from then on: the answer "busy" costs nothing and comes at once. A ticket's life:

    admit() -> waiting -> submit() -> running -> done
                  |          |           |
                  `----------+-----------+--- abort(): at once, or after the step that runs

One slot runs at a time. Nothing here knows torch: the model is behind the `Runner` protocol.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from backends.glm.deltas import Delta
from backends.glm.errors import WorkerBusy, WorkerUnavailable
from backends.glm.output import Output
from backends.glm.types import Constraint, Drawn, Prompt, Sampling

SLOTS = 1
EWMA_WEIGHT = 0.3  # of the newest request: a few requests forget an unusual one
RETRY_AFTER_MAX_S = 60  # beyond a minute the estimate says nothing
MEASURED_TOKENS_MIN = 4  # shorter answers measure the clock, not the model

FinishReason = Literal["stop", "length"]


class Stepper(Protocol):
    """One request on the model. `kv_tokens`: cache entries it holds."""

    kv_tokens: int

    def next_token(self) -> Drawn:
        """One forward pass; the first one reads the prompt."""
        ...


class Runner(Protocol):
    """The model."""

    def open(
        self, prompt: Prompt, sampling: Sampling, constraint: Constraint | None = None
    ) -> Stepper:
        """A request that has done no work yet."""
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
    """What to generate and where to report. `emit` is called from the engine's thread."""

    prompt: Prompt
    sampling: Sampling
    stop_ids: frozenset[int]
    max_tokens: int
    output: Output
    emit: Callable[[Event], None]
    constraint: Constraint | None = None


@dataclass(eq=False, slots=True)
class Ticket:
    """A place in the engine, from admission to the end."""

    admitted_s: float
    aborted: bool = False
    live: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLoad:
    """A snapshot for load reports; speeds are tokens a second of one request, 0.0: not measured."""

    slots: int
    running: int
    waiting: int
    queue_limit: int
    decode_tokens_per_s: float
    prefill_tokens_per_s: float
    kv_tokens_used: int
    kv_tokens_total: int


@dataclass(slots=True)
class Rate:
    """Amount per second over recent requests: a ratio of two exponentially weighted sums, so that
    a request of 5 tokens, which mostly measures overhead, weighs less than one of 2,000."""

    amount: float = 0.0
    seconds: float = 0.0

    def add(self, amount: float, seconds: float) -> None:
        """Take in one request."""
        self.amount += EWMA_WEIGHT * (amount - self.amount)
        self.seconds += EWMA_WEIGHT * (seconds - self.seconds)

    @property
    def per_second(self) -> float:
        """0.0 before the first sample."""
        return self.amount / self.seconds if self.seconds > 0 else 0.0


@dataclass(slots=True)
class _Speeds:
    prefill: Rate = field(default_factory=Rate)
    decode: Rate = field(default_factory=Rate)
    requests: Rate = field(default_factory=Rate)


class Engine:
    """Admission and the decode loop. Every public method may be called from any thread."""

    def __init__(
        self,
        runner: Runner,
        *,
        queue_limit: int,
        kv_tokens_total: int,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`queue_limit`: requests that may wait; `on_change`: called after counts changed, from
        whichever thread changed them."""
        self._runner = runner
        self._queue_limit = queue_limit
        self._kv_tokens_total = kv_tokens_total
        self._on_change = on_change
        self._clock = clock
        self._wake = threading.Condition()
        self._queue: deque[tuple[Ticket, Job]] = deque()
        self._waiting: set[Ticket] = set()
        self._running: dict[Ticket, Stepper | None] = {}
        self._draining = self._stopping = False
        self._speeds = _Speeds()
        self._thread = threading.Thread(target=self._loop, name="glm-engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Abort everything and end the thread, waiting for the step that runs."""
        with self._wake:
            self._stopping = self._draining = True
            for ticket in [*self._waiting, *self._running]:
                self._abort_locked(ticket)
            self._wake.notify_all()
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
            if len(self._waiting) + len(self._running) >= SLOTS + self._queue_limit:
                raise WorkerBusy(
                    waiting=len(self._waiting), retry_after_s=self._retry_after_locked()
                )
            ticket = Ticket(self._clock())
            self._waiting.add(ticket)
        self._on_change()
        return ticket

    def submit(self, ticket: Ticket, job: Job) -> None:
        """Queue the work of an admitted ticket; one aborted meanwhile ends at once."""
        with self._wake:
            if not ticket.aborted:
                self._queue.append((ticket, job))
                self._wake.notify()
                return
        job.emit(ABORTED)

    def abort(self, ticket: Ticket) -> None:
        """Give the place up, in whatever state; harmless after the end. The job hears ABORTED."""
        with self._wake:
            if not ticket.live:
                return
            self._abort_locked(ticket)
        self._on_change()

    def load(self) -> EngineLoad:
        """Counts and speeds of this moment."""
        with self._wake:
            return EngineLoad(
                slots=SLOTS,
                running=len(self._running),
                waiting=len(self._waiting),
                queue_limit=self._queue_limit,
                decode_tokens_per_s=round(self._speeds.decode.per_second, 2),
                prefill_tokens_per_s=round(self._speeds.prefill.per_second, 2),
                kv_tokens_used=sum(s.kv_tokens for s in self._running.values() if s),
                kv_tokens_total=self._kv_tokens_total,
            )

    def _abort_locked(self, ticket: Ticket) -> None:
        ticket.aborted = True
        if ticket in self._waiting:
            self._waiting.discard(ticket)
            ticket.live = False
            for queued, job in self._queue:
                if queued is ticket:
                    self._queue.remove((queued, job))
                    job.emit(ABORTED)
                    break

    def _retry_after_locked(self) -> int:
        """Seconds until a place is likely free: one slot's turn, rounded up."""
        rate = self._speeds.requests.per_second * SLOTS
        turn_s = 1 / rate if rate > 0 else 1.0
        return min(RETRY_AFTER_MAX_S, max(1, math.ceil(turn_s)))

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._stopping:
                    self._wake.wait()
                if self._stopping:
                    return
                ticket, job = self._queue.popleft()
                self._waiting.discard(ticket)
                self._running[ticket] = None
            self._on_change()
            last = self._serve(ticket, job)
            # The slot is free before the caller hears of the end: its next request finds it free.
            with self._wake:
                del self._running[ticket]
                ticket.live = False
            self._on_change()
            job.emit(last)

    def _serve(self, ticket: Ticket, job: Job) -> Finished | Failed:
        try:
            return self._generate(ticket, job)
        except Exception as error:  # one request's failure must not end the engine for all others
            return Failed(f"{type(error).__name__}: {error}")

    def _generate(self, ticket: Ticket, job: Job) -> Finished | Failed:
        started_s = self._clock()
        stepper = self._running[ticket] = self._runner.open(
            job.prompt, job.sampling, job.constraint
        )
        first_s = started_s
        produced = 0
        reason: FinishReason | None = None
        while reason is None:
            if ticket.aborted:
                return ABORTED
            drawn = stepper.next_token()
            produced += 1
            if produced == 1:
                first_s = self._clock()
            if drawn.token_id in job.stop_ids:
                reason = "stop"
                continue
            deltas = job.output.push(drawn)
            if job.output.stopped:
                reason = "stop"
            elif produced >= job.max_tokens:
                reason = "length"
            if deltas:
                job.emit(Progress(deltas=deltas))
        ended_s = self._clock()
        self.observe(
            prompt_tokens=len(job.prompt.ids),
            prefill_s=first_s - started_s,
            completion_tokens=produced,
            decode_s=ended_s - first_s,
        )
        return Finished(
            deltas=job.output.finish(cut=reason == "length"),
            reason=reason,
            completion_tokens=produced,
            reasoning_tokens=job.output.reasoning_tokens,
            queue_ms=_ms(started_s - ticket.admitted_s),
            ttft_ms=_ms(first_s - ticket.admitted_s),
            slot_ms=_ms(ended_s - started_s),
        )

    def observe(
        self,
        *,
        prompt_tokens: int,
        prefill_s: float,
        completion_tokens: int,
        decode_s: float,
    ) -> None:
        """Take in the measured speed of one request: token counts and seconds."""
        with self._wake:
            self._speeds.prefill.add(prompt_tokens, prefill_s)
            # The first token belongs to the prefill, so n tokens took n - 1 decode steps.
            if completion_tokens > MEASURED_TOKENS_MIN:
                self._speeds.decode.add(completion_tokens - 1, decode_s)
            self._speeds.requests.add(1, prefill_s + decode_s)


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
