"""The pool: a task for each worker, which follows it.

Our worker pushes a load report at every change and at least once a second (`GET /load?watch=1`, one
JSON object a line). Any other OpenAI-compatible engine is asked once a second for /health, and for
the load that it publishes (`backends.pool.metrics`); where it publishes none, its load is only what
the gateway itself has sent there.

A worker is DOWN when it refuses a connection, is still loading, or has not reported for
REPORT_GAP_S; DRAINING when it says so. When it goes DOWN, calls that wait there for the first byte
of their answer are broken off, so that they can be made elsewhere; an answer that has begun is left
to its own time limits. What a gateway adds of its own (in flight, breaker, measured latency) is not
this module's business.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec
import structlog

from backends.base import Failure, Kind, Timeouts
from backends.egress import Egress, Wire
from backends.openai_http import OpenAIHttpBackend
from backends.origins import EgressDenied
from backends.pool.discovery import Source
from backends.pool.members import Member, members_of
from backends.pool.reports import REPORT, Report, engine_of, nonsense, read
from backends.pool.worker import Worker
from policies.types import Health, WorkerState

# Reports come every second. A worker that misses five hangs or is cut off; a core that it shares
# with others may hold back two or three.
REPORT_GAP_S = 5.0
PROBE_INTERVAL_S = 1.0
# After a failure. Short: a worker that comes back should be used at once.
RETRY_INTERVAL_S = 0.25
WATCH_TIMEOUTS = Timeouts(
    connect_s=1.0, first_s=REPORT_GAP_S, idle_s=REPORT_GAP_S, total_s=86_400.0
)
PROBES_MAX = 8_192  # connections at once: two to each of far more workers than a pool has
LINE_BYTES_MAX = 64 * 1024  # a report has half a kilobyte

_log = structlog.get_logger("backends.pool")


class Pool:
    """Follows its members, and those that its sources find."""

    def __init__(
        self,
        egress: Egress,
        members: Sequence[Member | str],
        *,
        sources: Sequence[Source] = (),
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        """`members`: those that are fixed; URLs alone are named w1, w2 and so on. The egress is
        told to allow each of them; they are probed past it, so that no crowd of calls makes a well
        worker look silent. `on_change` is called after `states()` has become another value.
        """
        self._egress = egress
        self._probes = Egress(allowed=[], connections_max=PROBES_MAX)
        self._clock = clock
        self._on_change = on_change
        self._sources = tuple(sources)
        self._workers: dict[str, Worker] = {}
        self._found: dict[str, dict[str, Member]] = {}  # by source, then by name
        self._ready = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._started = False
        named = iter(members_of([m for m in members if isinstance(m, str)]))
        for member in members:
            self._join(next(named) if isinstance(member, str) else member)
        self._states = tuple(worker.state for worker in self._workers.values())

    async def start(self) -> None:
        """Begins to follow every worker and every source; returns at once."""
        self._started = True
        for worker in self._workers.values():
            self._begin(worker)
        for source in self._sources:
            loop = asyncio.get_running_loop()
            self._tasks[source.name] = loop.create_task(self._ask(source), name=source.name)

    async def close(self) -> None:
        """Stops following. The egress of the calls is not closed."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        await self._probes.close()

    def states(self) -> tuple[WorkerState, ...]:
        """All workers in the order given, as last reported. One that never was heard of is DOWN."""
        return self._states

    def backend(self, worker_id: str) -> OpenAIHttpBackend:
        """How to ask this worker. Raises KeyError for one that is not in the pool (any more)."""
        return self._workers[worker_id].backend

    def model(self, worker_id: str, adapter: str = "") -> str:
        """The name of the model, or of an adapter on it, as this worker knows it; empty before its
        first report. Raises KeyError for a worker that is not in the pool (any more)."""
        worker = self._workers[worker_id]
        if not adapter:
            return worker.state.model
        # One that it has lost since is asked for by its usual name, so that the worker refuses it.
        return worker.adapter_ids.get(adapter, f"{worker.state.model}:{adapter}")

    @property
    def size(self) -> int:
        """How many workers there are, well or not."""
        return len(self._workers)

    def names(self) -> tuple[str, ...]:
        """The ids of everybody who is in it now."""
        return tuple(self._workers)

    def url(self, worker_id: str) -> str:
        """Where it is. Raises KeyError."""
        return self._workers[worker_id].url

    async def wait_ready(self, timeout_s: float) -> bool:
        """Whether a worker is UP, or becomes so within this time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            return False
        return True

    # ------------------------------------------------------------ who is in it

    def _join(self, member: Member) -> None:
        self._egress.allow(member.url)
        self._probes.allow(member.url)
        worker = self._workers[member.name] = Worker(member, self._egress, self._probes)
        if self._started:
            self._begin(worker)

    def _begin(self, worker: Worker) -> None:
        # held until close() or until it leaves, so that it is not collected while it runs
        loop = asyncio.get_running_loop()
        self._tasks[f"pool-{worker.id}"] = loop.create_task(
            self._follow(worker), name=f"pool-{worker.id}"
        )

    def _leave(self, name: str) -> None:
        """Nothing new is sent there; what runs there is finished."""
        worker = self._workers.pop(name)
        task = self._tasks.pop(f"pool-{name}", None)
        if task is not None:
            task.cancel()
        self._egress.forget(worker.url)
        self._probes.forget(worker.url)

    async def _ask(self, source: Source) -> None:
        """Never returns."""
        while True:
            try:
                found = {member.name: member for member in await source.members()}
            except Exception as error:
                # Whatever it is (no name server, no Redis, nonsense), who is known already stays.
                _log.warning("source_failed", source=source.name, error=type(error).__name__)
            else:
                self._found_by(source.name, found)
            await asyncio.sleep(source.every_s)

    def _found_by(self, source: str, found: dict[str, Member]) -> None:
        before = self._found.get(source, {})
        for name in before.keys() - found.keys():
            _log.info("worker_left", worker=name, source=source)
            self._leave(name)
        kept = {}
        for name, member in found.items():
            if name in before and before[name] == member:
                kept[name] = member
                continue
            if name in before:  # it is said to be something else now
                self._leave(name)
            elif name in self._workers:
                _log.warning("worker_named_twice", worker=name, source=source)
                continue
            try:
                self._join(member)
            except EgressDenied:
                _log.warning("worker_denied", worker=name, source=source)
                continue
            kept[name] = member
            _log.info("worker_joined", worker=name, source=source, url=member.url)
        self._found[source] = kept
        self._publish()

    # ------------------------------------------------------------ what is known of them

    def _publish(self) -> None:
        states = tuple(worker.state for worker in self._workers.values())
        if states == self._states:
            return
        self._states = states
        if any(state.health is Health.UP for state in states):
            self._ready.set()
        else:
            self._ready.clear()
        if self._on_change is None:
            return
        try:
            self._on_change()
        except Exception as error:
            # Whatever it is, the tasks that follow workers and sources call this, and must go on.
            _log.error("pool_listener_failed", error=type(error).__name__)

    def _learn(self, worker: Worker, state: WorkerState, cause: str) -> None:
        before = worker.state
        if before.health is not state.health:
            _log.info("worker_health", worker=worker.id, health=state.health.value, cause=cause)
            if state.health is Health.UP:
                state = msgspec.structs.replace(state, up_since_s=self._clock())
        worker.state = state
        if before.health is Health.UP and state.health is Health.DOWN:
            self._egress.abandon(worker.url)
        self._publish()

    async def _follow(self, worker: Worker) -> None:
        """Never returns. Every way in which a worker can fail ends in another try."""
        while True:
            try:
                await self._follow_once(worker)
            except Failure as failure:
                self._missed(worker, failure.kind.value, at_once=failure.kind is Kind.CONNECT)
            except Exception as error:
                # The last line of defence: one odd answer must not end the watch over a worker.
                _log.error("worker_probe_error", worker=worker.id, error=type(error).__name__)
                self._missed(worker, "probe_error", at_once=False)
            await asyncio.sleep(RETRY_INTERVAL_S)

    async def _follow_once(self, worker: Worker) -> None:
        """Returns when our worker ends its reports; raises Failure when something is wrong."""
        report = await worker.load()
        if report is None:
            while True:
                await self._probe(worker)
                await asyncio.sleep(PROBE_INTERVAL_S)
        worker.speak("yuzui")
        wire = await worker.get("/load?watch=1", WATCH_TIMEOUTS)
        try:
            if wire.status != 200:
                raise nonsense()
            await self._watch(worker, wire)
        finally:
            await wire.close()

    async def _watch(self, worker: Worker, wire: Wire) -> None:
        rest, whole_s = b"", self._clock()
        try:
            async for data in wire.chunks():
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > LINE_BYTES_MAX:
                    raise nonsense()
                for line in lines[-1:]:  # an older report than the last one says nothing
                    await self._reported(worker, read(REPORT, line))
                    whole_s = self._clock()
                if self._clock() - whole_s >= REPORT_GAP_S:  # it sends, but no whole report
                    raise Failure(Kind.TIMEOUT_IDLE, "the worker has not reported in time")
        except Failure as failure:
            if failure.kind in (Kind.TIMEOUT_FIRST, Kind.TIMEOUT_IDLE):
                self._missed(worker, "no_report", at_once=True)
            raise

    async def _reported(self, worker: Worker, report: Report) -> None:
        worker.seen_s = self._clock()
        if report.state == "ok" and worker.card_of != (report.model, report.pid):
            await worker.read_card()
            worker.card_of = (report.model, report.pid)
        self._learn(worker, worker.of_report(report), report.state)

    async def _probe(self, worker: Worker) -> None:
        """One look at an engine that is not ours. Raises Failure."""
        if await worker.drains():
            worker.seen_s = self._clock()
            state = msgspec.structs.replace(worker.state, health=Health.DRAINING)
            self._learn(worker, state, "draining")
            return
        await worker.read_card()
        published = await worker.published()
        if not worker.member.engine:
            worker.speak(published.engine if published is not None else engine_of(worker.card))
        worker.seen_s = self._clock()
        self._learn(worker, worker.of_probe(published), "ok")

    def _missed(self, worker: Worker, cause: str, *, at_once: bool) -> None:
        """A report or a probe failed. One failure proves nothing, except where nobody listens."""
        if at_once or self._clock() - worker.seen_s >= REPORT_GAP_S:
            state = msgspec.structs.replace(worker.state, health=Health.DOWN)
            self._learn(worker, state, cause)
