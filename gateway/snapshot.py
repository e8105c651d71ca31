"""The world as the plan sees it: what workers report, plus what this process has learned.

Everything is in memory and read without waiting. The pool writes reports as they arrive; every
attempt leaves its result here: breaker, measured latency, requests in flight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from msgspec.structs import replace

from backends.base import Failure, Fault, Kind
from policies import breaker, retry
from policies.breaker import Breaker
from policies.types import (
    Attempt,
    BudgetView,
    CloudState,
    ModelTraits,
    Site,
    Snapshot,
    WorkerState,
)

EWMA_WEIGHT = 0.2  # of a new sample: some five answers and an old figure is forgotten
OUTPUT_TOKENS_FIRST = 128  # likely length of an answer before one was seen
RATE_WAIT_S = 2.0  # after a "too fast" that does not say for how long
RETRY_AFTER_MAX_S = 300.0  # linkerd's bound on how long a Retry-After is believed


class Target:
    """What this process knows of one worker or cloud model. Mutable: only World writes it."""

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.blocked_until_s = 0.0
        self.in_flight = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.ttft_ms = 0.0
        self.decode_tokens_per_s = 0.0


class World:
    """The live side of a Snapshot.

    workers: the pool's current reports.   clouds: traits by Ark model id; empty: cloud off.
    budgets: the ledger's current view.    clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        workers: Callable[[], tuple[WorkerState, ...]],
        clouds: Mapping[str, ModelTraits],
        budgets: Callable[[], Mapping[str, tuple[BudgetView, ...]]],
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._workers = workers
        self._clouds = dict(clouds)
        self._budgets = budgets
        self._clock = clock
        self._wall = wall
        self._targets: dict[str, Target] = {}
        self._output_ewma: dict[str, float] = {}
        self._retry = retry.RetryBudget(at_s=clock())

    def take(self) -> Snapshot:
        now_s = self._clock()
        return Snapshot(
            workers=tuple(self._worker(report, now_s) for report in self._workers()),
            clouds=tuple(self._cloud(model, now_s) for model in self._clouds),
            budgets=self._budgets(),
            cloud_enabled=bool(self._clouds),
            wall_s=self._wall(),
        )

    def likely_output_tokens(self, model: str, output_tokens_max: int) -> int:
        """Likely length of an answer of a public model, from what it answered lately."""
        return max(
            1, min(int(self._output_ewma.get(model, OUTPUT_TOKENS_FIRST)), output_tokens_max)
        )

    # ------------------------------------------------------------ results of attempts

    @contextmanager
    def sending(self, attempt: Attempt, prompt_tokens: int, output_tokens: int) -> Iterator[Target]:
        """Counts an attempt as in flight until the block is left, however it is left."""
        target = self.target(attempt.target)
        before = target.breaker
        marked = target.breaker = breaker.sent(before, self._clock())
        target.in_flight += 1
        target.prompt_tokens += prompt_tokens
        target.output_tokens += output_tokens
        try:
            yield target
        finally:
            target.in_flight -= 1
            target.prompt_tokens -= prompt_tokens
            target.output_tokens -= output_tokens
            ours = target.breaker.probing_since_s == marked.probing_since_s
            if marked is not before and ours:  # it was the probe and has proved nothing (yet)
                target.breaker = breaker.unproven(target.breaker)

    def succeeded(
        self,
        attempt: Attempt,
        model: str,
        *,
        ttft_ms: float | None,
        total_ms: float,
        output_tokens: int | None,
    ) -> None:
        """An answer came whole. Times are counted from the moment the attempt was sent.

        ttft_ms:       None when the answer came in one piece, which tells nothing of its beginning
        output_tokens: None when the engine did not say
        """
        target = self.target(attempt.target)
        target.breaker = breaker.succeeded(target.breaker)
        if ttft_ms is not None:
            target.ttft_ms = _ewma(target.ttft_ms, ttft_ms)
        if not output_tokens:
            return
        if ttft_ms is not None and output_tokens > 1 and total_ms > ttft_ms:
            pace = 1000.0 * (output_tokens - 1) / (total_ms - ttft_ms)
            target.decode_tokens_per_s = _ewma(target.decode_tokens_per_s, pace)
        self._output_ewma[model] = _ewma(self._output_ewma.get(model, 0.0), float(output_tokens))

    def failed(self, attempt: Attempt, failure: Failure) -> None:
        """An attempt failed. A caller's own mistake says nothing of the target."""
        if failure.fault is not Fault.UPSTREAM:
            return
        target, now_s = self.target(attempt.target), self._clock()
        if failure.kind in (Kind.RATE_LIMITED, Kind.OVERLOADED, Kind.BUSY):
            # A busy worker reports when it has room again; the cloud only says when to come back.
            if attempt.site is Site.CLOUD:
                wait_s = RATE_WAIT_S if failure.retry_after_s is None else failure.retry_after_s
                until_s = now_s + min(wait_s, RETRY_AFTER_MAX_S)
                target.blocked_until_s = max(target.blocked_until_s, until_s)
            return
        fatal = failure.kind in (Kind.AUTH, Kind.QUOTA, Kind.NOT_FOUND)
        target.breaker = breaker.failed(target.breaker, now_s, fatal=fatal)

    def offered(self) -> None:
        """A request arrived: the retry budget grows by its share."""
        self._retry = retry.offered(self._retry, self._clock())

    def may_retry(self) -> bool:
        """Takes one further attempt out of the retry budget."""
        self._retry, granted = retry.withdraw(self._retry, self._clock())
        return granted

    # ------------------------------------------------------------ inside

    def target(self, name: str) -> Target:
        found = self._targets.get(name)
        if found is None:
            found = self._targets[name] = Target()
        return found

    def _worker(self, report: WorkerState, now_s: float) -> WorkerState:
        known = self.target(report.id)
        return replace(
            report,
            breaker=breaker.state(known.breaker, now_s),
            in_flight=known.in_flight,
            in_flight_prompt_tokens=known.prompt_tokens,
            in_flight_output_tokens=known.output_tokens,
            ttft_ewma_ms=known.ttft_ms,
        )

    def _cloud(self, model: str, now_s: float) -> CloudState:
        known = self.target(model)
        return CloudState(
            model=model,
            traits=self._clouds[model],
            breaker=breaker.state(known.breaker, now_s),
            blocked_until_s=known.blocked_until_s,
            ttft_ewma_ms=known.ttft_ms,
            decode_tokens_per_s=known.decode_tokens_per_s,
            in_flight=known.in_flight,
        )


def _ewma(old: float, sample: float) -> float:
    return sample if old == 0.0 else old + EWMA_WEIGHT * (sample - old)
