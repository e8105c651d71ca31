"""One worker: how it is asked, and what is known of it."""

from __future__ import annotations

import msgspec

from backends.base import Failure, Timeouts
from backends.egress import Egress, Wire
from backends.engines.dialect import Dialect
from backends.engines.sglang import Sglang
from backends.engines.vllm import Vllm
from backends.engines.yuzui import Plain, Yuzui
from backends.openai_http import OpenAIHttpBackend
from backends.pool.members import Member
from backends.pool.metrics import Published, Totals, read_loads, read_metrics, read_slots
from backends.pool.metrics import tokens_per_s as pace_between
from backends.pool.reports import (
    CARDS,
    NAMED,
    REPORT,
    STATUS,
    Card,
    Named,
    Report,
    Status,
    adapters_of,
    capabilities_of,
    engine_of,
    maybe,
    nonsense,
    read,
)
from policies.types import Capability, Health, ModelTraits, WorkerState

# A probe that takes longer says as much as none; two of them fit into the time after which a silent
# worker is missed.
PROBE_TIMEOUTS = Timeouts(connect_s=1.0, first_s=2.0, idle_s=2.0, total_s=2.0)
# A list of models with many adapters has some ten kilobytes, metrics have some hundred.
PROBE_BYTES_MAX = 4 * 1024 * 1024
# vLLM and SGLang do not say how many requests they run at once: their default is 256 and more, on
# cards that hold far fewer long ones. When some wait inside of them, no more are sent anyway.
OTHER_SLOTS = 32
# Where an engine lists no max_model_len (OpenAI's API has none): the context of GLM-4.6V. One that
# was started with less refuses what is longer.
OTHER_CONTEXT = 131_072
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
PACE_WEIGHT = 0.3  # of a new look: some three seconds and an old pace is forgotten

_DIALECTS: dict[str, Dialect] = {d.name: d for d in (Yuzui(), Vllm(), Sglang(), Plain())}
_UNKNOWN = ModelTraits(context_tokens=0, output_tokens_max=0)


class Worker:
    """What the pool knows of one worker. Only the task that follows it writes here."""

    def __init__(self, member: Member, egress: Egress, probes: Egress) -> None:
        """`egress`: for calls.   `probes`: for everything else that it is asked."""
        self.member = member
        self.id = member.name
        self.url = member.url.rstrip("/")
        self._headers = {"authorization": f"Bearer {member.api_key}"} if member.api_key else {}
        self.backend = OpenAIHttpBackend(egress, self.url, headers=self._headers)
        self.state = WorkerState(
            id=self.id,
            model="",
            traits=_UNKNOWN,
            health=Health.DOWN,
            engine=member.engine or "openai",
            weight=member.weight,
            levels=member.levels,
            tenants=member.tenants,
        )
        self.seen_s = float("-inf")
        self.card = Card(id="")
        self.adapter_ids: dict[str, str] = {}
        self.card_of: tuple[str, int] | None = None  # the process that the card was read from
        self._slots = member.slots
        self._pace = Totals()
        self._tokens_per_s = 0.0
        self._probes = probes
        self.speak(member.engine or "openai")

    def speak(self, engine: str) -> None:
        """It is known now what it is."""
        self.engine = engine
        self.backend.dialect = _DIALECTS[engine]

    # ------------------------------------------------------------ asking it

    async def get(self, path: str, timeouts: Timeouts) -> Wire:
        return await self._probes.open(
            "GET", self.url + path, headers=self._headers, body=None, timeouts=timeouts
        )

    async def fetch(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises Failure."""
        wire = await self.get(path, PROBE_TIMEOUTS)
        try:
            return wire.status, await wire.read(PROBE_BYTES_MAX)
        finally:
            await wire.close()

    async def load(self) -> Report | None:
        """Its load report; None when it is not our worker. Raises Failure."""
        if self.member.engine not in ("", "yuzui"):
            return None
        status, body = await self.fetch("/load")
        if status != 200 or maybe(NAMED, body, Named()).engine != "yuzui":
            return None
        return read(REPORT, body)

    async def read_card(self) -> None:
        """The first model of its list. Raises Failure."""
        status, body = await self.fetch("/v1/models")
        if status != 200:
            raise nonsense()
        cards = read(CARDS, body).data
        if not cards:
            raise nonsense()
        before = self.card.id
        self.card = next((card for card in cards if not card.parent), cards[0])
        if before != self.card.id:  # another server, perhaps: what was read of the last is void
            self._slots = self.member.slots
        self.adapter_ids = adapters_of(cards)

    async def drains(self) -> bool:
        """Whether an engine that is not ours says that it is about to stop; False: it is well.
        Raises Failure when it is neither."""
        status, body = await self.fetch("/health")
        if status == 200:
            return False
        if maybe(STATUS, body, Status()).status == "draining":
            return True
        raise nonsense()

    async def published(self) -> Published | None:
        """Load as vLLM or SGLang publish it; None when it is another engine, or publishes none."""
        if self.member.engine == "openai":
            return None
        status, body = await self.fetch("/metrics")
        found = read_metrics(body.decode("utf-8", "replace")) if status == 200 else None
        if found is None and (self.member.engine or engine_of(self.card)) == "sglang":
            found = await self._loads()
        if found is not None and self._slots is None and found.engine == "sglang":
            self._slots = await self._server_slots()
        return found

    async def _loads(self) -> Published | None:
        for path in ("/v1/loads", "/get_load"):
            status, body = await self.fetch(path)
            if status == 200 and (found := read_loads(body)) is not None:
                return found
        return None

    async def _server_slots(self) -> int:
        for path in ("/server_info", "/get_server_info"):
            try:
                status, body = await self.fetch(path)
            except Failure:
                continue
            if status == 200 and (slots := read_slots(body)) is not None:
                return slots
        return OTHER_SLOTS

    # ------------------------------------------------------------ what it is

    def of_report(self, report: Report) -> WorkerState:
        health = {"ok": Health.UP, "draining": Health.DRAINING}.get(report.state, Health.DOWN)
        context = report.max_model_len or self.card.max_model_len or 0
        listed = capabilities_of(self.card.capabilities or [])
        traits = ModelTraits(capabilities=listed, context_tokens=context, output_tokens_max=context)
        if (limits := report.image_limits) is not None:
            traits = msgspec.structs.replace(
                traits,
                image_factor_px=limits.factor,
                image_pixels_min=limits.min_pixels,
                image_pixels_max=limits.max_pixels,
            )
        return msgspec.structs.replace(
            self.state,
            model=report.model,
            traits=traits,
            health=health,
            engine="yuzui",
            # while it loads it has none yet; what it had it will have again (engine.remembered)
            adapters=frozenset(report.adapters) if health is Health.UP else self.state.adapters,
            slots=max(1, report.slots),
            running=report.running,
            waiting=report.waiting,
            preparing=report.preparing,
            queue_limit=report.queue_limit,
            kv_used=report.kv_used,
            kv_tokens=report.kv_tokens_total,
            waiting_tokens=report.waiting_tokens,
            decode_tokens_per_s=report.decode_tokens_per_s,
            prefill_tokens_per_s=report.prefill_tokens_per_s,
            heard_s=self.seen_s,
        )

    def of_probe(self, published: Published | None) -> WorkerState:
        context = self.card.max_model_len or OTHER_CONTEXT
        named = self.card.capabilities
        capabilities = self.member.capabilities
        if capabilities is None:
            capabilities = OTHER_CAPABILITIES if named is None else capabilities_of(named)
        traits = ModelTraits(
            capabilities=capabilities, context_tokens=context, output_tokens_max=context
        )
        load = published or Published(engine=self.engine)
        self._measure(load.pace)
        return msgspec.structs.replace(
            self.state,
            model=self.card.id,
            traits=traits,
            health=Health.UP,
            engine=self.engine,
            adapters=frozenset(self.adapter_ids),
            slots=self._slots or OTHER_SLOTS,
            running=load.running,
            waiting=load.waiting,
            kv_used=load.kv_used,
            decode_tokens_per_s=self._tokens_per_s,
            heard_s=self.seen_s,
        )

    def _measure(self, pace: Totals) -> None:
        before, self._pace = self._pace, pace
        sample = pace_between(before, pace)
        if sample is not None:
            known = self._tokens_per_s
            self._tokens_per_s = known + PACE_WEIGHT * (sample - known) if known else sample
