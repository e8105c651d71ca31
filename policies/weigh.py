"""One target at a time: may it be asked, when would it answer, what may it cost?"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from policies import affinity, balance, latency, tokens
from policies.pictures import (
    cloud_image_tokens_likely,
    cloud_image_tokens_max,
    local_image_tokens,
)
from policies.price import PriceCard, Unpriced, quote
from policies.server_cost import ServerRate, slot_nano
from policies.types import (
    MONEY_NANO_MAX,
    BreakerState,
    BudgetView,
    Capability,
    CloudPermit,
    CloudState,
    Facts,
    Health,
    Line,
    ModelTraits,
    Site,
    SloClass,
    Snapshot,
    Value,
    WorkerState,
)

# A local answer may take longer than predicted; the hold must still cover it. What it takes beyond
# three times the prediction is booked as far as the hold reaches and flagged.
LOCAL_HOLD_FACTOR = 3.0


class Route(Value, frozen=True, kw_only=True):
    """A public model name and what may answer for it.

    local: names that workers serve; ("*",) any worker.   cloud: model ids at Ark, preferred first.
    """

    name: str
    local: tuple[str, ...] = ("*",)
    cloud: tuple[str, ...] = ()


class Rules(Value, frozen=True, kw_only=True):
    """What the operator decided: routes by public name and alias, prices, targets.

    prices:       the card that is valid for the request
    server_rate:  what a worker's whole server costs per second; its slots share that
    patience_ms:  how long a request that has no other place waits for a local slot
    """

    routes: Mapping[str, Route]
    prices: PriceCard
    server_rate: ServerRate
    ttft_target_ms: Mapping[SloClass, float]
    attempts_max: int = 3
    local_total_s: float = 300.0
    patience_ms: Mapping[SloClass, float] = {}


# A worker that cannot be asked now, but soon: it was well a moment ago, or the next probe of its
# breaker is seconds away. With no other place a request waits for it.
AWAITED = frozenset({"returning", "breaker_open"})

NO_FORECAST = latency.Forecast(ttft_ms=0.0, finish_ms=0.0)  # of a target that is not asked
_BACKEND_SCOPE = {site: f"backend:{site.value}" for site in Site}


class Weighed(Value, frozen=True, kw_only=True):
    """One target after filtering and pricing; `verdict` is "" when it may be asked, and only then
    (or when it is `awaited`) the rest has a meaning.

    load: to compare workers.   free: a request would begin there at once.   awaited: it cannot be
    asked now, but a request without another place may wait for it.   holds: tokens of the prompt
    that it need not read.   image_tokens: as the engine should count the pictures.
    """

    site: Site
    target: str
    verdict: str
    forecast: latency.Forecast = NO_FORECAST
    hold_nano: int = 0
    load: float = 0.0
    slots: int = 1
    hold_max_nano: int = 0  # this and the next two as in types.Attempt
    tight_nano: int = 0
    tight_tokens: int = 0
    free: bool = True
    awaited: bool = False
    holds: float = 0.0
    image_tokens: int = 0


class Funds(Value, frozen=True, kw_only=True):
    """Every budget scope that an attempt at one site draws on, and the least that is left of them.

    tightest:  the budget that has the least left; None: no budget applies
    left_nano: what is posted is taken off; it never shrinks within a period, so an attempt that
               does not fit in here certainly cannot be paid. What is held is not: it may be freed
               any moment, so whether it leaves room is for the ledger to say.
    """

    scopes: tuple[str, ...]
    left_nano: int
    tightest: BudgetView | None = None


def funds_of(facts: Facts, site: Site, snapshot: Snapshot) -> Funds:
    scopes = (*facts.scopes, f"model:{facts.model}", _BACKEND_SCOPE[site])
    left_nano, tightest = MONEY_NANO_MAX, None
    if snapshot.budgets:
        for scope in scopes:
            for view in snapshot.budgets.get(scope, ()):
                if view.hard or view.frozen:
                    left = -1 if view.frozen else view.limit_nano - view.posted_nano
                    if left < left_nano:
                        left_nano, tightest = left, view
    return Funds(scopes=scopes, left_nano=left_nano, tightest=tightest)


def weigh_workers(
    facts: Facts, route: Route, snapshot: Snapshot, funds: Funds, rules: Rules
) -> list[Weighed]:
    """The workers of the pool, in its order."""
    found = []
    counted: ModelTraits | None = None
    images: int | None = None
    each_slot = _line_per_slot(facts, snapshot)
    for worker in snapshot.workers:
        if worker.traits != counted:  # a pool of equal workers counts its pictures once
            counted, images = worker.traits, local_image_tokens(worker.traits, facts)
        verdict = "unfit" if images is None else _misfit(facts, worker, route, images)
        verdict = verdict or _state_verdict(facts, worker, snapshot.line)
        awaited = verdict in AWAITED and snapshot.line.has_place(facts.slo)
        if images is None or (verdict and not awaited):
            found.append(Weighed(site=Site.LOCAL, target=worker.id, verdict=verdict))
            continue
        ahead = each_slot * worker.slots
        prompt = facts.prompt_tokens_likely + images
        saved = affinity.saved_tokens(
            worker.held_tokens, worker.held_pictures, len(facts.pictures), images
        )
        unread = max(1, prompt - int(saved))
        forecast = latency.of_worker(worker, facts, unread, line_ahead=ahead)
        weighed = _weigh_worker(facts, worker, forecast, images, funds, rules)
        if saved:
            weighed = replace(weighed, holds=saved)
        if verdict and not weighed.verdict:
            weighed = replace(weighed, verdict=verdict, awaited=True)
        found.append(weighed)
    return found


def _line_per_slot(facts: Facts, snapshot: Snapshot) -> float:
    """How many of those before us in the line there are for each slot of the pool."""
    ahead = snapshot.line.ahead(facts.slo)
    if not ahead:
        return 0.0
    slots = sum(worker.slots for worker in snapshot.workers if worker.health is Health.UP)
    return ahead / max(1, slots)


def _weigh_worker(
    facts: Facts,
    worker: WorkerState,
    forecast: latency.Forecast,
    images: int,
    funds: Funds,
    rules: Rules,
) -> Weighed:
    full_nano = _local_hold(facts, worker, images, rules, facts.output_tokens_max)
    hold_nano, tight_nano, tight_tokens = full_nano, 0, 0
    if facts.stream and facts.output_tokens_first:
        hold_nano = _local_hold(facts, worker, images, rules, facts.output_tokens_first)
    elif facts.output_tokens_tight:
        tight_nano = _local_hold(facts, worker, images, rules, facts.output_tokens_tight)
        tight_tokens = facts.output_tokens_tight
    least_nano = tight_nano or hold_nano
    return Weighed(
        site=Site.LOCAL,
        target=worker.id,
        verdict="" if least_nano <= funds.left_nano else "over_budget",
        forecast=forecast,
        hold_nano=hold_nano,
        load=balance.load(worker, forecast),
        slots=worker.slots,
        hold_max_nano=full_nano if hold_nano < full_nano else 0,
        tight_nano=tight_nano,
        tight_tokens=tight_tokens,
        free=latency.is_free(worker, facts.choices),
        # an engine reports what stands for a picture, without its begin and end
        image_tokens=max(0, images - len(facts.images) * tokens.IMAGE_FRAME_TOKENS),
    )


def fitting(facts: Facts, snapshot: Snapshot, rules: Rules) -> frozenset[str]:
    """Ids of the workers that could answer a request, whatever their state is now."""
    route = rules.routes[facts.model]
    found = set()
    for worker in snapshot.workers:
        images = local_image_tokens(worker.traits, facts)
        if images is not None and not _misfit(facts, worker, route, images):
            found.add(worker.id)
    return frozenset(found)


def _misfit(facts: Facts, worker: WorkerState, route: Route, images: int) -> str:
    """Why a worker can never answer this request; empty: it can. One that is away and was never
    heard of has told neither its model nor its context."""
    if facts.side is Site.CLOUD:
        return "side"
    if route.local != ("*",) and worker.model not in route.local:
        return "other_model"
    if facts.adapter and facts.adapter not in worker.adapters:
        return "no_adapter"
    if worker.levels and facts.label.level not in worker.levels:
        return "other_label"
    if worker.tenants and facts.tenant not in worker.tenants:
        return "other_tenant"
    if not worker.model and worker.health is not Health.UP:
        return worker.health.value
    if facts.remote_images:
        return "remote_image"  # nothing on the premises fetches a picture from outside
    if lacks := _lacks(facts, worker.traits, images):
        return lacks if worker.health is Health.UP else worker.health.value
    return ""


def _state_verdict(facts: Facts, worker: WorkerState, line: Line) -> str:
    """Why a worker that fits cannot be asked now; empty: it can, perhaps after waiting."""
    if worker.health is not Health.UP:
        return "returning" if worker.returning else worker.health.value
    if worker.breaker is BreakerState.OPEN:
        return "breaker_open"
    if line.places:  # who finds no free slot waits at the pool
        free = latency.is_free(worker, facts.choices)
        return "" if free or line.has_place(facts.slo) else "full"
    return "" if latency.has_room(worker, facts.choices) else "full"


def weigh_clouds(
    facts: Facts,
    route: Route,
    permit: CloudPermit | None,
    snapshot: Snapshot,
    funds: Funds,
    rules: Rules,
    now_s: float,
) -> list[Weighed]:
    """The cloud models of a route, in its order."""
    if not snapshot.cloud_enabled:
        return []
    known = {cloud.model: cloud for cloud in snapshot.clouds}
    return [
        _weigh_cloud(facts, known[model], permit, funds, rules, now_s)
        for model in route.cloud
        if model in known
    ]


def _weigh_cloud(
    facts: Facts,
    cloud: CloudState,
    permit: CloudPermit | None,
    funds: Funds,
    rules: Rules,
    now_s: float,
) -> Weighed:
    def no(verdict: str) -> Weighed:
        return Weighed(site=Site.CLOUD, target=cloud.model, verdict=verdict)

    if permit is None:
        return no("label")
    if facts.side is Site.LOCAL:
        return no("side")
    if facts.adapter:
        return no("no_adapter")
    images = cloud_image_tokens_max(rules.prices, cloud.model, facts)
    if lacks := _lacks(facts, cloud.traits, images):
        return no(lacks)
    if cloud.breaker is BreakerState.OPEN:
        return no("breaker_open")
    if now_s < cloud.blocked_until_s:
        return no("rate_limited")

    def bound_nano(output_tokens: int) -> int:
        return quote(
            rules.prices,
            cloud.model,
            prompt_tokens_max=facts.prompt_tokens_max + images,
            output_tokens_max=facts.choices * min(output_tokens, cloud.traits.output_tokens_max),
        ).nano

    try:
        hold_nano = bound_nano(facts.output_tokens_max)
        tight = facts.output_tokens_tight
        tight_nano = bound_nano(tight) if tight else 0
    except Unpriced:
        return no("unpriced")
    return Weighed(
        site=Site.CLOUD,
        target=cloud.model,
        verdict="" if (tight_nano or hold_nano) <= funds.left_nano else "over_budget",
        forecast=latency.of_cloud(cloud, facts),
        hold_nano=hold_nano,
        tight_nano=tight_nano,
        tight_tokens=tight,
        image_tokens=cloud_image_tokens_likely(rules.prices, cloud.model, facts),
    )


def _lacks(facts: Facts, traits: ModelTraits, image_tokens: int) -> str:
    """The verdict on a model that cannot do it (`unfit`), or whose context is too short."""
    if facts.images and Capability.VISION not in traits.capabilities:
        return "unfit"
    if not facts.needs <= traits.capabilities:
        return "unfit"
    likely = facts.prompt_tokens_likely + image_tokens
    return "" if likely < traits.context_tokens else "too_long"


def _local_hold(
    facts: Facts, worker: WorkerState, image_tokens: int, rules: Rules, output_tokens: int
) -> int:
    """Upper bound of a local answer's cost in nano-CNY: slot time at a third of the known pace, for
    each of the answers that are wanted."""
    decode = worker.decode_tokens_per_s or latency.DECODE_TOKENS_PER_S
    prefill = worker.prefill_tokens_per_s or latency.PREFILL_TOKENS_PER_S
    predicted_s = (facts.prompt_tokens_max + image_tokens) / prefill
    predicted_s += output_tokens / decode
    bound_s = min(LOCAL_HOLD_FACTOR * predicted_s, rules.local_total_s)
    return slot_nano(
        rules.server_rate.full_nano_per_s,
        slots=worker.slots,
        slot_ms=facts.choices * int(1000 * bound_s) + 1,
    )


def slot_ms_of(rules: Rules, slots: int, nano: int) -> float:
    """How many milliseconds of a slot that much money pays for."""
    rate = rules.server_rate.full_nano_per_s
    return float("inf") if rate == 0 else 1000.0 * nano * max(1, slots) / rate
