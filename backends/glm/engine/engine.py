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
from collections.abc import Callable, Hashable
from functools import partial

from backends.glm.answer.deltas import Delta
from backends.glm.engine.events import (
    ABORTED,
    Event,
    Failed,
    FinishReason,
    Job,
    Progress,
    Ticket,
)
from backends.glm.engine.model import Runner
from backends.glm.engine.prefix import BLOCK, SHARED_BLOCKS_MIN, PrefixIndex, block_keys
from backends.glm.engine.runs import Run
from backends.glm.engine.scheduler import Entry, Scheduler
from backends.glm.engine.speeds import EngineLoad, Speeds
from backends.glm.errors import WorkerBusy, WorkerUnavailable
from backends.glm.types import Drawn


class Engine:
    """Admission and the step loop. Every public method may be called from any thread."""

    def __init__(
        self,
        runner: Runner,
        *,
        scheduler: Scheduler,
        queue_limit: int,
        kept_blocks: int = 0,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`queue_limit`: requests that may wait; `kept_blocks`: how much of prompts is remembered
        (see `prefix`); `on_change`: called after counts changed, by whoever changed them."""
        self._runner = runner
        self._scheduler = scheduler
        self._queue_limit = queue_limit
        self._index = PrefixIndex(kept_blocks)
        self._prompt_tokens = self._cached_tokens = 0
        self._reading_s = 0.0  # since when prompts are being read
        self._news = False  # something happened that may change what the next step is
        self._on_change = on_change
        self._clock = clock
        self._wake = threading.Condition()
        self._order = itertools.count()
        self._waiting: set[Ticket] = set()
        self._runs: dict[Hashable, Run] = {}
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
            self._tell_news_locked()
        for run in given_up:
            run.job.emit(ABORTED)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        self._runner.stop(timeout_s)

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
                    retry_after_s=self._speeds.retry_after_s(1, slots),
                )
            ticket = Ticket(self._clock())
            self._waiting.add(ticket)
        self._on_change()
        return ticket

    def submit(self, ticket: Ticket, job: Job) -> None:
        """Queue the work of an admitted ticket; one aborted meanwhile ends at once.

        Raises: WorkerBusy if too many tokens wait already, ValueError if it can never fit; who
        submits bounds prompt and output by the cache.
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
        keys = block_keys(job.prompt, job.partition)
        with self._wake:
            if ahead := self._scheduler.in_the_way(entry):
                raise WorkerBusy(
                    waiting=len(self._waiting),
                    retry_after_s=self._speeds.retry_after_s(ahead, self._scheduler.slots),
                )
            if not ticket.aborted:
                self._runs[ticket] = Run(ticket, job, entry, keys)
                self._scheduler.add(entry)
                self._tell_news_locked()
                return
        job.emit(ABORTED)

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
        pictures, cached_pictures = self._runner.pictures()
        with self._wake:
            scheduler, speeds = self._scheduler, self._speeds
            return EngineLoad(
                slots=scheduler.slots,
                running=len(scheduler.running),
                waiting=len(self._waiting),
                waiting_tokens=scheduler.waiting_tokens,
                queue_limit=self._queue_limit,
                decode_tokens_per_s=round(speeds.decode.per_second, 2),
                decode_tokens_per_s_total=round(speeds.total.per_second, 2),
                prefill_tokens_per_s=round(speeds.prefill.per_second, 2),
                kv_tokens_used=scheduler.rows.tokens_used,
                kv_tokens_total=scheduler.rows.tokens,
                prompt_tokens=self._prompt_tokens,
                cached_tokens=self._cached_tokens,
                pictures=pictures,
                cached_pictures=cached_pictures,
            )

    def forget_speeds(self) -> None:
        """Measure anew from here."""
        with self._wake:
            self._speeds = Speeds()

    def read_beside(self, tokens: int) -> None:
        """From now on, read so many prompt tokens in a step in which others decode."""
        with self._wake:
            self._scheduler.beside_tokens = tokens

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
        self._end_locked(run)
        return [run]

    def _loop(self) -> None:
        while True:
            with self._wake:
                while not (self._runs or self._stopping):
                    self._wake.wait()
                self._news = False
                closed = self._close_given_up_locked()
                started = self._start_locked()
                over = self._stopping and not self._runs
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
        for run in list(self._runs.values()):
            if run.ticket.aborted or run.failure is not None:
                self._end_locked(run)
                closed.append((run, ABORTED if run.failure is None else Failed.by(run.failure)))
        return closed

    def _start_locked(self) -> list[tuple[Run, list[int]]]:
        """Who starts now, and the kept blocks that are the beginning of its prompt."""
        started = []
        while (entry := self._scheduler.start(self._better_later)) is not None:
            run = self._runs[entry.key]
            run.started_s = self._clock()
            if all(other is entry or other.decoding for other in self._scheduler.running):
                self._reading_s = run.started_s
            self._waiting.discard(run.ticket)
            # One token has to be read at least, because its logits are wanted.
            blocks = self._index.match(run.keys[: (entry.prompt_tokens - 1) // BLOCK])
            run.cached_tokens = len(blocks) * BLOCK
            self._scheduler.found(entry, run.cached_tokens)
            self._prompt_tokens += entry.prompt_tokens
            self._cached_tokens += run.cached_tokens
            started.append((run, blocks))
        return started

    def _better_later(self, entry: Entry) -> bool:
        """Whether somebody reads, at this moment, what this one would have to read as well."""
        inside = self._runs.values()
        reading = [r.keys for r in inside if r.entry.running and not r.entry.decoding]
        return self._index.soon(self._runs[entry.key].keys, reading) >= SHARED_BLOCKS_MIN

    def _keep_locked(self, run: Run, keys: list[bytes]) -> None:
        blocks = self._index.keep(keys)
        if blocks:
            self._runner.keep(run.generation, blocks)

    def _end_locked(self, run: Run) -> None:
        if run.generation is not None:
            self._runner.close(run.generation)
        self._scheduler.remove(run.entry)
        del self._runs[run.ticket]
        run.ticket.live = False

    def _open(self, run: Run, blocks: list[int]) -> None:
        run.entry.ready = False
        try:
            opened = self._runner.open(
                run.job, run.entry.first_row, blocks, partial(self._seen, run)
            )
        except Exception as error:  # one request's failure must not end the engine for all others
            self._fail(run, error)
            return
        run.generation = opened.generation
        if opened.ready:
            run.entry.ready = True

    def _seen(self, run: Run, error: Exception | None) -> None:
        with self._wake:
            run.entry.ready, run.failure = True, error
            self._tell_news_locked()

    def _fail(self, run: Run, error: Exception) -> None:
        with self._wake:
            self._end_locked(run)
        self._on_change()
        run.job.emit(Failed.by(error))

    def _advance(self, work: list[tuple[Run, int]]) -> None:
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
        told: list[tuple[Run, Event]] = []
        with self._wake:
            decoded = sum(run.entry.decoding for run, _ in work)
            self._speeds.step(decoded=decoded, seconds=now_s - began_s)
            self._read_locked(
                [run for (run, _), one in zip(work, drawn, strict=True) if one], now_s
            )
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

    def _read_locked(self, drawn: list[Run], now_s: float) -> None:
        """Prompts that are read now took the time since others were, or since they began."""
        read = [len(r.job.prompt.ids) - r.cached_tokens for r in drawn if not r.answer]
        if read:
            self._speeds.prefill.add(sum(read), now_s - self._reading_s)
            self._reading_s = now_s

    def _take_locked(self, run: Run, drawn: Drawn, now_s: float) -> Event | None:
        """Add a drawn token to its answer. An answer that ends here gives its slot back."""
        job = run.job
        run.answer.append(drawn.token_id)
        if len(run.answer) == 1:
            run.first_s = now_s
            self._keep_locked(run, run.keys)
        reason: FinishReason | None = None
        deltas: list[Delta] = []
        try:
            if drawn.token_id in job.stop_ids:
                reason = "stop"
            else:
                deltas = job.output.push(drawn)
                if job.output.stopped:
                    reason = "stop"
                elif len(run.answer) >= job.max_tokens:
                    reason = "length"
            if reason is None:
                return Progress(deltas=deltas) if deltas else None
            deltas += job.output.finish(cut=reason == "length")
            # The next turn of this talk begins with it. The last token's entry was never computed.
            self._keep_locked(run, block_keys(job.prompt, job.partition, run.answer[:-1]))
            self._speeds.requests.add(1, now_s - run.started_s)
            end = run.finished(reason, deltas, now_s)
        except Exception as error:  # as above
            self._end_locked(run)
            return Failed.by(error)
        self._end_locked(run)
        return end
