"""The vocabulary: frozen, keyword-only values that every room shares.

Units stand last in a name: `_nano` is a billionth of a yuan (1e-9 CNY), `_ms` milliseconds, `_s`
seconds of the clock that was passed in, `_tokens` model tokens. Money is always an integer of
nano-CNY: every price that Ark publishes (CNY per million tokens, at most three decimals) is then a
whole number per token (0.03 CNY/M = 30 nano), and a counter stays exact in Redis Lua up to 2**53,
which is 9,007,199 CNY.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum

import msgspec

NANO_PER_CNY = 1_000_000_000
MONEY_NANO_MAX = 2**53 - 1


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all vocabulary: compares, prints, serialises; cannot change."""


class Sensitivity(IntEnum):
    """How far data may travel. The order is fixed; a larger number is stricter."""

    PUBLIC = 0
    INTERNAL = 1
    SENSITIVE = 2


STRICTEST = Sensitivity.SENSITIVE


class Site(StrEnum):
    """On the premises, or outside."""

    LOCAL = "local"
    CLOUD = "cloud"


class SloClass(StrEnum):
    """Whether somebody waits for the answer."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class Capability(StrEnum):
    """What a request needs beyond plain text."""

    VISION = "vision"
    TOOLS = "tools"
    STRUCTURED = "structured"
    LOGPROBS = "logprobs"
    CHOICES = "choices"  # n > 1


class Reason(StrEnum):
    """Why a request went where it went, or why it was refused."""

    # local
    LOCAL_FITS = "local_fits"  # the pool can answer in time: the normal case
    PINNED = "sensitive_pinned"  # the label keeps it on the premises
    LOCAL_ASKED = "local_asked"  # the caller named the side
    CLOUD_OFF = "cloud_off"  # nothing but the pool is configured
    CLOUD_BUDGET = "cloud_budget_exhausted"  # the pool queues it: the cloud has no money left
    CLOUD_BREAKER = "cloud_breaker_open"  # the cloud is failing: the pool queues it
    BUDGET_SOFT = "budget_soft_limit"  # a budget is at a soft limit: the pool queues it
    CLOUD_UNFIT = "cloud_unfit"  # no cloud model can do what the request asks
    # cloud
    POOL_FULL = "pool_full"  # every local slot and queue place is taken
    QUEUE_LATE = "queue_late"  # it waited at the pool, and no slot would come free in time
    DEADLINE = "deadline"  # the pool would answer later than the caller allows
    POOL_DOWN = "pool_down"  # no worker is fit to be asked
    CLOUD_ASKED = "cloud_asked"
    LOCAL_UNFIT = "local_unfit"  # no local model can do what the request asks
    LOCAL_BUDGET = "local_budget_exhausted"  # a budget for the pool has no money left
    # either
    FALLBACK = "fallback"  # an earlier attempt of the same plan failed
    # refusals
    SENSITIVE_LOCAL_UNAVAILABLE = "sensitive_local_unavailable"
    BUDGET_EXHAUSTED = "budget_exhausted"
    NO_CAPACITY = "no_capacity"
    MODEL_UNKNOWN = "model_unknown"
    SIDE_FORBIDDEN = "side_forbidden"  # cloud/... asked for data that must stay
    UNFIT = "no_target_fits"  # a capability is missing everywhere
    TOO_LONG = "context_length_exceeded"  # for every target that could do it otherwise


class Principal(Value, frozen=True, kw_only=True):
    """Who asks, as proven by a verified token. Absent claims are None or empty."""

    tenant: str
    subject: str
    key_id: str
    org: str | None = None
    models: tuple[str, ...] = ()  # allowed public names; empty: all
    sensitivity_floor: Sensitivity | None = None
    label_malformed: bool = False  # the claim was there and could not be read
    slo: SloClass = SloClass.INTERACTIVE
    budgets: tuple[str, ...] = ()  # further scopes to draw on, kind:name


class Label(Value, frozen=True, kw_only=True):
    """The sensitivity that counts for one request, and where it came from."""

    level: Sensitivity
    source: str  # claim | header | body | tenant_default | unknown_label | ...
    note: str | None = None  # said to the caller, e.g. that an unknown label counted as strictest


class ImageSize(Value, frozen=True, kw_only=True, array_like=True):
    """Width and height of one picture in pixels, and the detail that the caller asked for."""

    width: int
    height: int
    detail: str | None = None


class Prefix(Value, frozen=True, kw_only=True, array_like=True):
    """One boundary of a prompt: a hash over everything before it, and its likely tokens."""

    key: str
    tokens: int


class Facts(Value, frozen=True, kw_only=True):
    """What the decision needs to know of one request: sizes and rights, never its text."""

    request_id: str
    tenant: str
    scopes: tuple[str, ...]  # budget scopes of the caller, kind:name
    model: str  # public name, without the side prefix
    adapter: str = ""  # a LoRA adapter on top: only workers that have it can answer
    side: Site | None  # local/... or cloud/... was asked for
    label: Label
    needs: frozenset[Capability] = frozenset()
    images: tuple[ImageSize, ...] = ()
    remote_images: int = 0  # pictures named by a URL that somebody must fetch
    prompt_tokens_max: int  # an upper bound for text, without pictures
    prompt_tokens_likely: int  # the same as an estimate, for latency
    output_tokens_max: int  # of one answer, clamped; also what is sent upstream
    output_tokens_likely: int  # of one answer
    choices: int = 1  # answers wanted, each of which may be that long
    # what will do when money is short and the caller set no limit; 0: nothing less than the above
    output_tokens_tight: int = 0
    # for how many a local stream holds money at first: its hold grows; 0: for all
    output_tokens_first: int = 0
    deadline_ms: int | None = None  # to the first token
    slo: SloClass = SloClass.INTERACTIVE
    stream: bool = False
    prefixes: tuple[Prefix, ...] = ()  # where there are several workers to choose from
    pictures: tuple[str, ...] = ()  # a key for each


class Health(StrEnum):
    """What the probes of a worker say."""

    UP = "up"
    DRAINING = "draining"
    DOWN = "down"


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class ModelTraits(Value, frozen=True, kw_only=True):
    """What one engine or cloud model can do, and how it counts pictures."""

    capabilities: frozenset[Capability] = frozenset()
    context_tokens: int
    output_tokens_max: int
    image_factor_px: int = 28  # one token covers a square of this side
    image_pixels_min: int = 6_272  # a smaller picture is scaled up to this
    image_pixels_max: int = 4_816_896  # a larger one is scaled down to this


class WorkerState(Value, frozen=True, kw_only=True):
    """One local worker as last reported, plus what we sent since (in-flight guards)."""

    id: str
    model: str  # name the worker serves
    traits: ModelTraits
    health: Health = Health.UP
    breaker: BreakerState = BreakerState.CLOSED
    slots: int = 1
    running: int = 0
    waiting: int = 0
    preparing: int = 0  # of the waiting, those that no slot could help: pictures are being decoded
    queue_limit: int = 0
    in_flight: int = 0  # answers that this gateway has asked it for and that are not over
    in_flight_prompt_tokens: int = 0
    in_flight_output_tokens: int = 0  # expected, not yet produced
    decode_tokens_per_s: float = 0.0  # of one request; 0: not measured yet
    prefill_tokens_per_s: float = 0.0
    engine: str = "yuzui"  # yuzui | vllm | sglang | openai
    kv_used: float = 0.0  # share of its key-value cache that is taken, 0..1
    kv_tokens: int = 0  # what that cache holds; 0: it does not say
    waiting_tokens: int = 0  # of them, what the requests that wait inside of it will need
    weight: float = 1.0  # how much it is preferred to others that would be as quick
    warmth: float = 1.0  # 0..1: below 1 it has only just come, and gets its load little by little
    levels: frozenset[Sensitivity] = frozenset()  # the labels it may see; empty: all
    tenants: frozenset[str] = frozenset()  # whose requests it may see; empty: everybody's
    adapters: frozenset[str] = frozenset()  # names of the LoRA adapters it has loaded
    up_since_s: float = 0.0  # monotonic clock
    held_tokens: int = 0  # likely in its cache, of the beginning of this request's prompt
    held_pictures: int = 0  # likely seen by it, of this request's pictures
    unreported: int = 0  # sent there since its last report, minus answered since
    refused: bool = False  # it answered busy since its last report
    silent: bool = False  # it owes a report: it may hang, and is not asked before it has given one
    idle_s: float = 0.0  # for so long nothing has run there
    heard_s: float = 0.0  # when its last good report came, monotonic clock; 0: never
    returning: bool = False  # not UP, but it was a moment ago: worth waiting for


class CloudState(Value, frozen=True, kw_only=True):
    """One cloud model as this gateway sees it."""

    model: str  # id at Ark
    traits: ModelTraits
    breaker: BreakerState = BreakerState.CLOSED
    blocked_until_s: float = 0.0  # Retry-After or a minute window, monotonic clock
    ttft_ewma_ms: float = 0.0
    decode_tokens_per_s: float = 0.0
    in_flight: int = 0


class Steer(StrEnum):
    """What the plan does when a budget is at one of its soft limits."""

    PREFER_LOCAL = "prefer_local"  # wait for a worker instead of overflowing
    LOWER_PRIORITY = "lower_priority"  # treated as batch: may wait longer for a worker
    CHEAPER = "cheaper"  # of the cloud models that fit, the cheapest first


class SoftLimit(Value, frozen=True, kw_only=True):
    """From this share of a budget on, posted and held together, the plan steers."""

    at_percent: int
    steer: Steer


class BudgetView(Value, frozen=True, kw_only=True):
    """A budget as last read. A hint for the plan; the ledger alone decides.

    hard:    False: it counts and steers, and never refuses.   frozen: it refuses everything.
    pace:    its soft limits also apply while spending runs ahead of the clock of its period.
    starts_at_s, resets_at_s: wall clock; None: its period never begins again.
    """

    scope: str
    limit_nano: int
    posted_nano: int
    held_nano: int
    resets_at_s: float | None = None
    starts_at_s: float | None = None
    period: str = ""
    hard: bool = True
    frozen: bool = False
    soft: tuple[SoftLimit, ...] = ()
    pace: bool = False

    @property
    def left_nano(self) -> int:
        return self.limit_nano - self.posted_nano - self.held_nano


class Line(Value, frozen=True, kw_only=True):
    """Requests of this gateway that wait for a local slot, by class.

    places: how many of each class may wait; 0: nobody waits here, and a worker queues for itself
    """

    interactive: int = 0
    batch: int = 0
    places: int = 0

    def ahead(self, slo: SloClass) -> int:
        """How many have their turn before a newcomer of this class, but for the turns that batch
        gets in between."""
        return self.interactive + (self.batch if slo is SloClass.BATCH else 0)

    def has_place(self, slo: SloClass) -> bool:
        waiting = self.batch if slo is SloClass.BATCH else self.interactive
        return waiting < self.places


class Snapshot(Value, frozen=True, kw_only=True):
    """The world at one moment, read from memory."""

    workers: tuple[WorkerState, ...] = ()
    clouds: tuple[CloudState, ...] = ()
    budgets: Mapping[str, tuple[BudgetView, ...]] = {}  # by scope
    cloud_enabled: bool = False
    wall_s: float = 0.0  # wall clock of the moment, for the pace of budgets
    line: Line = Line()
    alerts: tuple[str, ...] = ()  # what an operator should hear of, in words


class CloudPermit(Value, frozen=True, kw_only=True):
    """Proof that the label of one request lets it leave. Only policies.sensitivity makes one."""

    request_id: str
    level: Sensitivity


class Attempt(Value, frozen=True, kw_only=True):
    """One place to try, with what it may cost and when it should answer."""

    site: Site
    target: str  # worker id or cloud model id
    reason: Reason
    hold_nano: int  # upper bound: the amount that is reserved
    scopes: tuple[str, ...]  # every budget scope that this attempt draws on
    ttft_ms: float  # predicted
    finish_ms: float  # predicted
    queued_ms: float = 0.0  # predicted: the part of ttft_ms spent waiting for a slot
    permit: CloudPermit | None = None
    slots: int = 1  # of the worker, which share the cost of its server
    slo: SloClass | None = None  # the class it waits in, where that is not the caller's own
    output_tokens_max: int = 0  # what is sent upstream; 0: as the facts say
    hold_max_nano: int = 0  # up to which the hold may grow during a stream; 0: it does not
    tight_nano: int = (
        0  # a smaller hold for `tight_tokens`, when there is no room; 0: there is none
    )
    tight_tokens: int = 0
    image_tokens: int = 0  # expected for the pictures; 0: there are none, or no rule is known


class Considered(Value, frozen=True, kw_only=True):
    """One target that the plan looked at, and what it found: part of the `why`."""

    site: Site
    target: str
    verdict: (
        str  # chosen | next | breaker_open | full | unfit | too_long | over_budget | label | ...
    )
    ttft_ms: float | None = None
    finish_ms: float | None = None
    hold_nano: int | None = None


class Why(Value, frozen=True, kw_only=True):
    """Everything the decision used, as data. It goes to the caller, the log and the ledger."""

    reason: Reason
    label: Label
    considered: tuple[Considered, ...] = ()
    deadline_ms: int | None = None
    budgets: tuple[str, ...] = ()  # which budgets steered, and how


class Plan(Value, frozen=True, kw_only=True):
    """Attempts in the order in which they are tried. Never empty."""

    attempts: tuple[Attempt, ...]
    why: Why


class Refusal(Value, frozen=True, kw_only=True):
    """No attempt is possible now. `retry_after_s` None: repeating will not help. `param`: the field
    of the request that stands in the way."""

    reason: Reason
    message: str
    why: Why
    retry_after_s: int | None = None
    param: str | None = None


class Usage(Value, frozen=True, kw_only=True):
    """Tokens by kind as the engine reported them, how long a local slot was occupied, and what
    the engine said of who answered and how (empty: nothing)."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # part of prompt_tokens
    image_tokens: int = 0  # part of prompt_tokens
    reasoning_tokens: int = 0  # part of completion_tokens
    slot_ms: int = 0  # local only
    served_model: str = ""
    service_tier: str = ""  # cloud only: default | fast | scale
