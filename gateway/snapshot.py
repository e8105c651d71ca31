"""The world as the plan sees it: what workers report, plus what this process has learned.

Everything is in memory and read without waiting. The pool writes reports as they arrive; every
attempt leaves its result here: breaker, measured latency, requests in flight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

import structlog
from msgspec.structs import replace

from backends.base import Failure, Fault, Kind
from policies import affinity, balance, breaker, latency, outlier, retry
from policies.breaker import Breaker
from policies.types import (
    Attempt,
    BreakerState,
    BudgetView,
    CloudState,
    Facts,
    Health,
    Line,
    ModelTraits,
    Site,
    Snapshot,
    WorkerState,
)

_log = structlog.get_logger("yuzui.snapshot")

EWMA_WEIGHT = 0.2  # of a new sample: some five answers and an old figure is forgotten
OUTPUT_TOKENS_FIRST = 128  # likely length of an answer before one was seen
RATE_WAIT_S = 2.0  # after a "too fast" that does not say for how long
RETRY_AFTER_MAX_S = 300.0  # linkerd's bound on how long a Retry-After is believed
# A worker that was heard of so lately is worth waiting for: it is being restarted, most likely, and
# that takes as long as loading its model. Later than that a request is refused at once.
RETURN_S = 60.0
# Keys remembered of each worker: some hundred conversations. A worker's cache holds fewer.
MEMORY_MAX = 8_192
# What says that a worker is gone or hangs, and not only that one request was unlucky.
_LOST = (Kind.CONNECT, Kind.BROKEN, Kind.TIMEOUT_FIRST)
# What no further request would change: the target is put aside at once. Whose fault it is (a key
# or an account of the gateway's, most likely) does not matter to the next caller.
_FATAL = (Kind.AUTH, Kind.QUOTA, Kind.NOT_FOUND)


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
        self.lost_s = 0.0  # when it was last found gone; believed until it reports again
        self.refused_s = 0.0  # when it last answered busy; likewise
        self.busy_s = 0.0  # when something was last known to run there, from here or elsewhere
        self.window = outlier.Window()
        # keys of prompts and pictures sent there, the latest at the end; see policies.affinity
        self.memory: dict[str, None] = {}
        self.unreported = 0  # sent since its last report, minus answered since
        self.report: WorkerState | None = None


class Sending:
    """An attempt under way: it counts as in flight from its making until `close`, or until the
    block of the `with` statement is left, however it is left."""

    def __init__(
        self,
        world: World,
        target: Target,
        now_s: float,
        prompt_tokens: int,
        output_tokens: int,
        slots: int,
    ) -> None:
        self._world = world
        self._tokens = prompt_tokens, output_tokens
        self._slots = slots
        self._open = True
        self._before = target.breaker
        self._marked = target.breaker = breaker.sent(self._before, now_s)
        self.target = target
        target.in_flight += slots
        target.unreported += slots
        target.prompt_tokens += prompt_tokens
        target.output_tokens += output_tokens

    def __enter__(self) -> Target:
        return self.target

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        target = self.target
        target.in_flight -= self._slots
        target.unreported -= self._slots
        target.prompt_tokens -= self._tokens[0]
        target.output_tokens -= self._tokens[1]
        ours = target.breaker.probing_since_s == self._marked.probing_since_s
        if self._marked is not self._before and ours:
            # it was the probe and has proved nothing (yet)
            target.breaker = breaker.unproven(target.breaker)
        self._world.freed()


class World:
    """The live side of a Snapshot.

    workers: the pool's current reports.   clouds: traits by Ark model id; empty: cloud off.
    budgets: the ledger's current view.    clock: monotonic seconds.
    line: who waits for a local slot.      freed: called when an attempt is over.
    """

    def __init__(
        self,
        *,
        workers: Callable[[], tuple[WorkerState, ...]],
        clouds: Mapping[str, ModelTraits],
        budgets: Callable[[], Mapping[str, tuple[BudgetView, ...]]],
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
        warm_up_s: float = 0.0,
        line: Callable[[], Line] = Line,
        freed: Callable[[], None] = lambda: None,
    ) -> None:
        self._warm_up_s = warm_up_s
        self._line = line
        self.freed = freed
        self._workers = workers
        self._clouds = dict(clouds)
        self._budgets = budgets
        self._clock = clock
        self._wall = wall
        self._targets: dict[str, Target] = {}
        self._output_ewma: dict[str, float] = {}
        self._retry = retry.RetryBudget(at_s=clock())

    def take(self, facts: Facts | None = None) -> Snapshot:
        """The world now. facts: of the request to be decided, for what workers hold of it."""
        now_s = self._clock()
        reports = [self._worker(report, now_s, facts) for report in self._workers()]
        if len(self._targets) > len(reports) + len(self._clouds):
            self._forget({report.id for report in reports})
        workers = latency.assumed(reports)
        return Snapshot(
            workers=workers,
            alerts=_alerts(workers),
            clouds=tuple(self._cloud(model, now_s) for model in self._clouds),
            budgets=self._budgets(),
            cloud_enabled=bool(self._clouds),
            wall_s=self._wall(),
            line=self._line(),
        )

    def worker(self, worker_id: str) -> WorkerState | None:
        """One worker of the snapshot; None when it has left the pool."""
        for report in self._workers():
            if report.id == worker_id:
                return self._worker(report, self._clock())
        return None

    def likely_output_tokens(self, model: str, output_tokens_max: int) -> int:
        """Likely length of an answer of a public model, from what it answered lately."""
        return max(
            1, min(int(self._output_ewma.get(model, OUTPUT_TOKENS_FIRST)), output_tokens_max)
        )

    # ------------------------------------------------------------ results of attempts

    def sending(
        self, attempt: Attempt, prompt_tokens: int, output_tokens: int, slots: int = 1
    ) -> Sending:
        """Counts an attempt as in flight from now on. slots: of a worker, one for each answer."""
        target = self.target(attempt.target)
        return Sending(self, target, self._clock(), prompt_tokens, output_tokens, slots)

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
        target.window = outlier.add(target.window, self._clock(), well=True)
        if ttft_ms is not None:
            target.ttft_ms = _ewma(target.ttft_ms, ttft_ms)
        if not output_tokens:
            return
        if ttft_ms is not None and output_tokens > 1 and total_ms > ttft_ms:
            pace = 1000.0 * (output_tokens - 1) / (total_ms - ttft_ms)
            target.decode_tokens_per_s = _ewma(target.decode_tokens_per_s, pace)
        self._output_ewma[model] = _ewma(self._output_ewma.get(model, 0.0), float(output_tokens))

    def failed(self, attempt: Attempt, failure: Failure, *, adapter: str = "") -> None:
        """An attempt failed. A caller's own mistake says nothing of the target, nor does anything
        that went wrong in the gateway itself. adapter: the one that was asked for."""
        fatal = failure.kind in _FATAL
        if failure.fault is Fault.CALLER or (failure.fault is Fault.GATEWAY and not fatal):
            return
        target, now_s = self.target(attempt.target), self._clock()
        if attempt.site is Site.LOCAL and failure.kind is Kind.NOT_FOUND:
            # It serves another model than it last said, or has lost the adapter: its next report
            # tells. One who asks for an adapter that is gone must not take the worker from others.
            if not adapter:
                target.refused_s = now_s
            return
        if failure.kind in (Kind.RATE_LIMITED, Kind.OVERLOADED, Kind.BUSY):
            # A busy worker reports when it has room again; the cloud only says when to come back.
            if attempt.site is Site.LOCAL:
                target.refused_s = now_s
            else:
                wait_s = RATE_WAIT_S if failure.retry_after_s is None else failure.retry_after_s
                until_s = now_s + min(wait_s, RETRY_AFTER_MAX_S)
                target.blocked_until_s = max(target.blocked_until_s, until_s)
            return
        if attempt.site is Site.LOCAL and failure.kind in _LOST:
            known, target.lost_s = self._is_lost(target), now_s
            if known:  # one death breaks many calls, and is one failure
                return
        target.window = outlier.add(target.window, now_s, well=False)
        failing = outlier.failing(target.window)
        before = target.breaker
        target.breaker = breaker.failed(before, now_s, fatal=fatal, failing=failing)
        if target.breaker.trips > before.trips:
            target.window = outlier.Window()
            self._ejected(attempt, target, now_s, failure)

    def _ejected(self, attempt: Attempt, target: Target, now_s: float, failure: Failure) -> None:
        """A breaker has opened. The last worker of all is not put aside in silence, nor for long:
        whether it is still ill only another request can tell."""
        last = attempt.site is Site.LOCAL and not any(
            worker.health is Health.UP and worker.breaker is not BreakerState.OPEN
            for worker in self.take().workers
        )
        if last:
            target.breaker = breaker.at_most_until(target.breaker, now_s + breaker.OPEN_FIRST_S)
        _log.warning(
            "last_worker_ejected" if last else "ejected",
            target=attempt.target,
            cause=failure.kind.value,
            for_s=round(target.breaker.open_until_s - now_s, 1),
        )

    def sent(self, attempt: Attempt, facts: Facts) -> None:
        """A worker has begun to answer: it holds this prompt now."""
        if attempt.site is not Site.LOCAL or not (facts.prefixes or facts.pictures):
            return
        memory = self.target(attempt.target).memory
        for key in (*(prefix.key for prefix in facts.prefixes), *facts.pictures):
            memory.pop(key, None)
            memory[key] = None
        while len(memory) > MEMORY_MAX:
            del memory[next(iter(memory))]

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

    def _forget(self, workers: set[str]) -> None:
        """What is known of workers that have left the pool and of which nothing is awaited: one
        that comes under the same name is another."""
        for name in self._targets.keys() - workers - self._clouds.keys():
            if not self._targets[name].in_flight:
                del self._targets[name]

    def _is_lost(self, target: Target) -> bool:
        """Whether a worker was found gone and has not reported since."""
        return target.report is not None and 0 < target.report.heard_s <= target.lost_s

    def _worker(self, report: WorkerState, now_s: float, facts: Facts | None = None) -> WorkerState:
        known = self.target(report.id)
        if known.report is not report:
            if known.report is not None and known.report.up_since_s != report.up_since_s:
                known.memory.clear()  # another process, or one that nobody knows anything of
            known.report, known.unreported = report, 0
        held = pictures = 0
        if facts is not None and known.memory:
            held = affinity.held_tokens(facts.prefixes, known.memory)
            pictures = sum(key in known.memory for key in facts.pictures)
        health = Health.DOWN if self._is_lost(known) else report.health
        if known.in_flight or report.running or report.waiting:
            known.busy_s = now_s
        unheard_s = now_s - report.heard_s
        heard = report.heard_s > 0
        recent = heard and unheard_s < RETURN_S
        return replace(
            report,
            health=health,
            returning=recent and health is not Health.UP,
            warmth=balance.warmth(now_s - report.up_since_s, self._warm_up_s),
            refused=0 < report.heard_s <= known.refused_s,
            silent=heard and latency.is_silent(report.engine, unheard_s),
            idle_s=now_s - known.busy_s,
            unreported=known.unreported,
            held_tokens=held,
            held_pictures=pictures,
            breaker=breaker.state(known.breaker, now_s),
            in_flight=known.in_flight,
            in_flight_prompt_tokens=known.prompt_tokens,
            in_flight_output_tokens=known.output_tokens,
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


def _alerts(workers: Sequence[WorkerState]) -> tuple[str, ...]:
    """What an operator should hear of: a pool that nobody can be asked in."""
    if not workers or any(
        w.health is Health.UP and w.breaker is not BreakerState.OPEN for w in workers
    ):
        return ()
    states = ", ".join(
        f"{w.id} {'ejected' if w.health is Health.UP else w.health.value}" for w in workers
    )
    return (f"no worker can be asked: {states}",)


def _ewma(old: float, sample: float) -> float:
    return sample if old == 0.0 else old + EWMA_WEIGHT * (sample - old)
