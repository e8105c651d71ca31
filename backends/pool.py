"""The workers of the local pool: who they are, whether they are well, and how busy they are.

    pool = Pool(egress, ["http://127.0.0.1:9001", ...])
    await pool.start()
    pool.states()        what each worker last reported; read from memory, costs nothing
    pool.backend("w1")   how to ask it

Each worker is followed by a task of its own. Our worker pushes a load report at every change and
at least once a second (`GET /load?watch=1`, one JSON object a line). Any other OpenAI-compatible
engine is asked for /health and /v1/models once a second; its load is then only what the gateway
itself has sent there.

A worker is DOWN when it refuses a connection, is still loading, or has not reported for
REPORT_GAP_S; DRAINING when it says so. What a gateway adds of its own (in flight, breaker, measured
latency) is not this module's business.

The list of workers is fixed: `w1`, `w2` and so on in the order given. Discovery would call `_join`
for each worker that it finds, under the name that the worker has there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
import structlog

from backends.base import Failure, Kind, Timeouts
from backends.egress import Egress, Wire
from backends.openai_http import OpenAIHttpBackend
from policies.types import Capability, Health, ModelTraits, WorkerState

# Reports come every second. A worker that misses five hangs or is cut off; a core that it shares
# with others may hold back two or three.
REPORT_GAP_S = 5.0
PROBE_INTERVAL_S = 1.0
# After a failure. Short: a worker that comes back should be used at once.
RETRY_INTERVAL_S = 0.25
# A probe that takes longer says as much as none; less than REPORT_GAP_S, so that two fit in.
PROBE_TIMEOUTS = Timeouts(connect_s=1.0, first_s=2.0, idle_s=2.0, total_s=2.0)
WATCH_TIMEOUTS = Timeouts(
    connect_s=1.0, first_s=REPORT_GAP_S, idle_s=REPORT_GAP_S, total_s=86_400.0
)
# A list of models with many adapters has some ten kilobytes; a report has half of one.
PROBE_BYTES_MAX = 1024 * 1024
LINE_BYTES_MAX = 64 * 1024
# vLLM and SGLang do not say how many requests they run at once: their default is 256 and more, on
# cards that hold far fewer long ones. Careful until their metrics are read.
OTHER_SLOTS = 32
# They serve GLM-4.6V with all of this; they do not list it.
OTHER_CAPABILITIES = frozenset(
    {
        Capability.VISION,
        Capability.TOOLS,
        Capability.STRUCTURED,
        Capability.LOGPROBS,
        Capability.CHOICES,
    }
)

T = TypeVar("T")

_log = structlog.get_logger("backends.pool")


class _ImageLimits(msgspec.Struct):
    factor: int
    min_pixels: int
    max_pixels: int


class _Report(msgspec.Struct):
    """A load report of our worker; of any other engine, `engine` is empty."""

    engine: str = ""
    model: str = ""
    pid: int = 0
    slots: int = 1
    running: int = 0
    waiting: int = 0
    queue_limit: int = 0
    decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    max_model_len: int | None = None
    state: str = "ok"
    image_limits: _ImageLimits | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None
    capabilities: list[str] | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Status(msgspec.Struct):
    status: str = ""


_REPORT = msgspec.json.Decoder(_Report)
_MODELS = msgspec.json.Decoder(_Models)
_STATUS = msgspec.json.Decoder(_Status)

_UNKNOWN = ModelTraits(context_tokens=0, output_tokens_max=0)


class Pool:
    """Follows a fixed list of workers."""

    def __init__(
        self,
        egress: Egress,
        urls: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        """`urls`: base URLs, which the egress is told to allow. `on_change` is called after
        `states()` has become another value."""
        self._egress = egress
        self._clock = clock
        self._on_change = on_change
        self._workers: dict[str, _Worker] = {}
        self._ready = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        for number, url in enumerate(urls, start=1):
            self._join(f"w{number}", url)
        self._states = tuple(worker.state for worker in self._workers.values())

    async def start(self) -> None:
        """Begins to follow every worker; returns at once."""
        for worker in self._workers.values():
            task = asyncio.get_running_loop().create_task(
                self._follow(worker), name=f"pool-{worker.id}"
            )
            self._tasks.add(task)  # held until close(), so that it is not collected while it runs

    async def close(self) -> None:
        """Stops following. The egress is not closed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def states(self) -> tuple[WorkerState, ...]:
        """All workers in the order given, as last reported. One that never was heard of is DOWN."""
        return self._states

    def backend(self, worker_id: str) -> OpenAIHttpBackend:
        """How to ask this worker. Raises KeyError for an unknown id."""
        return self._workers[worker_id].backend

    def model(self, worker_id: str) -> str:
        """The name of the model as this worker knows it; empty before its first report. Raises
        KeyError for an unknown id."""
        return self._workers[worker_id].state.model

    async def wait_ready(self, timeout_s: float) -> bool:
        """Whether a worker is UP, or becomes so within this time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError:
            return False
        return True

    def _join(self, worker_id: str, url: str) -> None:
        self._egress.allow(url)
        self._workers[worker_id] = _Worker(worker_id, url.rstrip("/"), self._egress)

    def _publish(self) -> None:
        states = tuple(worker.state for worker in self._workers.values())
        if states == self._states:
            return
        self._states = states
        if any(state.health is Health.UP for state in states):
            self._ready.set()
        else:
            self._ready.clear()
        if self._on_change is not None:
            self._on_change()

    def _learn(self, worker: _Worker, state: WorkerState, cause: str) -> None:
        before, worker.state = worker.state, state
        if before.health is not state.health:
            _log.info("worker_health", worker=worker.id, health=state.health.value, cause=cause)
        self._publish()

    async def _follow(self, worker: _Worker) -> None:
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

    async def _follow_once(self, worker: _Worker) -> None:
        """Returns when our worker ends its reports; raises Failure when something is wrong."""
        report = await worker.load()
        if report is None:
            while True:
                await self._probe(worker)
                await asyncio.sleep(PROBE_INTERVAL_S)
        wire = await worker.get("/load?watch=1", WATCH_TIMEOUTS)
        try:
            _expect(wire)
            await self._watch(worker, wire)
        finally:
            await wire.close()

    async def _watch(self, worker: _Worker, wire: Wire) -> None:
        rest = b""
        try:
            async for data in wire.chunks():
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > LINE_BYTES_MAX:
                    raise _nonsense()
                for line in lines[-1:]:  # an older report than the last one says nothing
                    await self._reported(worker, _read(_REPORT, line))
        except Failure as failure:
            if failure.kind in (Kind.TIMEOUT_FIRST, Kind.TIMEOUT_IDLE):
                self._missed(worker, "no_report", at_once=True)
            raise

    async def _reported(self, worker: _Worker, report: _Report) -> None:
        worker.seen_s = self._clock()
        if report.state == "ok" and worker.card_of != (report.model, report.pid):
            worker.card = await worker.model()
            worker.card_of = (report.model, report.pid)
        self._learn(worker, worker.of_report(report), report.state)

    async def _probe(self, worker: _Worker) -> None:
        """One look at an engine that is not ours. Raises Failure."""
        wire = await worker.get("/health", PROBE_TIMEOUTS)
        body = await _body(wire)
        if wire.status != 200:
            draining = _maybe(_STATUS, body, _Status()).status == "draining"
            if draining:
                worker.seen_s = self._clock()
                state = msgspec.structs.replace(worker.state, health=Health.DRAINING)
                self._learn(worker, state, "draining")
                return
            raise _nonsense()
        worker.card = await worker.model()
        worker.seen_s = self._clock()
        self._learn(worker, worker.of_probe(), "ok")

    def _missed(self, worker: _Worker, cause: str, *, at_once: bool) -> None:
        """A report or a probe failed. One failure proves nothing, except where nobody listens."""
        if at_once or self._clock() - worker.seen_s >= REPORT_GAP_S:
            state = msgspec.structs.replace(worker.state, health=Health.DOWN)
            self._learn(worker, state, cause)


class _Worker:
    """One engine: how to reach it and what is known of it."""

    def __init__(self, worker_id: str, url: str, egress: Egress) -> None:
        self.id = worker_id
        self.backend = OpenAIHttpBackend(egress, url)
        self.state = WorkerState(id=worker_id, model="", traits=_UNKNOWN, health=Health.DOWN)
        self.seen_s = float("-inf")
        self.card = _Model(id="")
        self.card_of: tuple[str, int] | None = None  # the process that the card was read from
        self._url = url
        self._egress = egress

    async def get(self, path: str, timeouts: Timeouts) -> Wire:
        return await self._egress.open(
            "GET", self._url + path, headers={}, body=None, timeouts=timeouts
        )

    async def load(self) -> _Report | None:
        """Its load report; None when it is not our worker. Raises Failure."""
        wire = await self.get("/load", PROBE_TIMEOUTS)
        report = _maybe(_REPORT, await _body(wire), _Report())
        return report if wire.status == 200 and report.engine == "yuzui" else None

    async def model(self) -> _Model:
        """The first model of its list. Raises Failure."""
        wire = await self.get("/v1/models", PROBE_TIMEOUTS)
        body = await _body(wire)
        _expect(wire)
        models = _read(_MODELS, body).data
        if not models:
            raise _nonsense()
        return models[0]

    def of_report(self, report: _Report) -> WorkerState:
        health = {"ok": Health.UP, "draining": Health.DRAINING}.get(report.state, Health.DOWN)
        context = report.max_model_len or self.card.max_model_len or 0
        listed = _capabilities(self.card.capabilities or [])
        traits = ModelTraits(capabilities=listed, context_tokens=context, output_tokens_max=context)
        if (limits := report.image_limits) is not None:
            traits = msgspec.structs.replace(
                traits,
                image_factor_px=limits.factor,
                image_pixels_min=limits.min_pixels,
                image_pixels_max=limits.max_pixels,
            )
        return WorkerState(
            id=self.id,
            model=report.model,
            traits=traits,
            health=health,
            slots=max(1, report.slots),
            running=max(0, report.running),
            waiting=max(0, report.waiting),
            queue_limit=max(0, report.queue_limit),
            decode_tokens_per_s=max(0.0, report.decode_tokens_per_s),
            prefill_tokens_per_s=max(0.0, report.prefill_tokens_per_s),
        )

    def of_probe(self) -> WorkerState:
        context = self.card.max_model_len or 0
        named = self.card.capabilities
        traits = ModelTraits(
            capabilities=OTHER_CAPABILITIES if named is None else _capabilities(named),
            context_tokens=context,
            output_tokens_max=context,
        )
        return WorkerState(
            id=self.id, model=self.card.id, traits=traits, health=Health.UP, slots=OTHER_SLOTS
        )


def _capabilities(names: Sequence[str]) -> frozenset[Capability]:
    """Those that the decision knows of; an engine may list others."""
    return frozenset(capability for capability in Capability if capability.value in names)


async def _body(wire: Wire) -> bytes:
    try:
        return await wire.read(PROBE_BYTES_MAX)
    finally:
        await wire.close()


def _expect(wire: Wire) -> None:
    if wire.status != 200:
        raise _nonsense()


def _nonsense() -> Failure:
    return Failure(Kind.BROKEN, "the worker answered a probe with something else")


def _read(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise _nonsense() from None


def _maybe(decoder: msgspec.json.Decoder[T], data: bytes, otherwise: T) -> T:
    try:
        return _read(decoder, data)
    except Failure:
        return otherwise
