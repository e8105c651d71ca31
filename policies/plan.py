"""The decision: where one request goes, for which reason, and what is tried next.

`plan()` filters, then prices. Filter: sites that the label permits, models that can do what is
asked, breakers, room, budgets. Price: predicted time to the first token against the deadline, and
the upper bound of the cost. Local wins when it answers in time; what it cannot answer in time
overflows to the cloud when its label, and the money, allow it.

Everything the decision used is in its `why`. Clock and randomness are arguments; ties are broken by
name, so the same arguments always give the same plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random

from policies import balance, latency, sensitivity, tokens
from policies.price import LocalRate, PriceCard, Unpriced, local_cost, quote
from policies.types import (
    Attempt,
    BreakerState,
    BudgetView,
    Capability,
    CloudPermit,
    CloudState,
    Considered,
    Facts,
    Health,
    ModelTraits,
    Plan,
    Reason,
    Refusal,
    Site,
    SloClass,
    Snapshot,
    Value,
    Why,
    WorkerState,
)

# A local answer may take longer than predicted; the hold must still cover it. What it takes beyond
# three times the prediction is booked as far as the hold reaches and flagged.
LOCAL_HOLD_FACTOR = 3.0
RETRY_AFTER_MIN_S = 1
RETRY_AFTER_MAX_S = 60


class Route(Value, frozen=True, kw_only=True):
    """A public model name and what may answer for it.

    local: names that workers serve; ("*",) any worker.   cloud: model ids at Ark, preferred first.
    """

    name: str
    local: tuple[str, ...] = ("*",)
    cloud: tuple[str, ...] = ()


class Rules(Value, frozen=True, kw_only=True):
    """What the operator decided: routes by public name and alias, prices, targets."""

    routes: Mapping[str, Route]
    prices: PriceCard
    local_rate: LocalRate
    ttft_target_ms: Mapping[SloClass, float]
    attempts_max: int = 3
    local_total_s: float = 300.0


class _Weighed(Value, frozen=True, kw_only=True):
    """One target after filtering and pricing; `verdict` is "" when it may be asked."""

    site: Site
    target: str
    verdict: str
    forecast: latency.Forecast | None = None
    hold_nano: int = 0


def plan(
    facts: Facts, snapshot: Snapshot, rules: Rules, now_s: float, rng: Random
) -> Plan | Refusal:
    """Decides one request. now_s: monotonic clock; rng: draws the two choices among workers."""
    route = rules.routes.get(facts.model)
    if route is None:
        known = ", ".join(sorted(rules.routes))
        return _refuse(
            facts, (), Reason.MODEL_UNKNOWN, f"no model {facts.model!r}; known: {known}", None
        )
    permit = sensitivity.permit(facts)
    pool = [_weigh_worker(facts, worker, route, snapshot, rules) for worker in snapshot.workers]
    clouds = _weigh_clouds(facts, route, permit, snapshot, rules, now_s)

    local = balance.order(
        [(w.forecast.finish_ms, w.target, w) for w in pool if not w.verdict and w.forecast], rng
    )
    cloud = sorted(
        (w for w in clouds if not w.verdict and w.forecast),
        key=lambda w: (w.forecast.ttft_ms if w.forecast else 0.0, w.hold_nano, w.target),
    )
    if not local and not cloud:
        return _no_target(facts, permit, pool, clouds)

    local_first = _local_first(facts, local, cloud, rules)
    ordered = [*local, *cloud] if local_first else [*cloud, *local]
    reason = (
        _why_local(facts, permit, local[0], clouds, snapshot, rules)
        if local_first
        else _why_cloud(facts, pool, local)
    )
    reference = _reference_nano(facts, route, rules)
    attempts = tuple(
        _attempt(facts, w, reason if i == 0 else Reason.FALLBACK, permit, reference)
        for i, w in enumerate(ordered[: rules.attempts_max])
    )
    return Plan(attempts=attempts, why=_why(facts, reason, [*pool, *clouds], attempts))


# ---------------------------------------------------------------- filter and price


def _weigh_worker(
    facts: Facts, worker: WorkerState, route: Route, snapshot: Snapshot, rules: Rules
) -> _Weighed:
    images = sum(tokens.image_tokens(worker.traits, size) for size in facts.images)
    verdict = _worker_verdict(facts, worker, route, images)
    if verdict:
        return _Weighed(site=Site.LOCAL, target=worker.id, verdict=verdict)
    forecast = latency.of_worker(worker, facts, tokens.likely(facts.prompt_tokens_max) + images)
    hold_nano = _local_hold(facts, worker, images, rules)
    scopes = attempt_scopes(facts, Site.LOCAL)
    return _Weighed(
        site=Site.LOCAL,
        target=worker.id,
        verdict="over_budget" if _over_budget(scopes, hold_nano, snapshot.budgets) else "",
        forecast=forecast,
        hold_nano=hold_nano,
    )


def _worker_verdict(facts: Facts, worker: WorkerState, route: Route, images: int) -> str:
    if facts.side is Site.CLOUD:
        return "side"
    if route.local != ("*",) and worker.model not in route.local:
        return "other_model"
    if worker.health is not Health.UP:
        return worker.health.value
    if worker.breaker is BreakerState.OPEN:
        return "breaker_open"
    if facts.remote_images:
        return "remote_image"  # nothing on the premises fetches a picture from outside
    if not _fits(facts, worker.traits, images):
        return "unfit"
    if not latency.has_room(worker):
        return "full"
    return ""


def _weigh_clouds(
    facts: Facts,
    route: Route,
    permit: CloudPermit | None,
    snapshot: Snapshot,
    rules: Rules,
    now_s: float,
) -> list[_Weighed]:
    if not snapshot.cloud_enabled:
        return []
    known = {cloud.model: cloud for cloud in snapshot.clouds}
    return [
        _weigh_cloud(facts, known[model], permit, snapshot, rules, now_s)
        for model in route.cloud
        if model in known
    ]


def _weigh_cloud(
    facts: Facts,
    cloud: CloudState,
    permit: CloudPermit | None,
    snapshot: Snapshot,
    rules: Rules,
    now_s: float,
) -> _Weighed:
    def no(verdict: str) -> _Weighed:
        return _Weighed(site=Site.CLOUD, target=cloud.model, verdict=verdict)

    images = sum(tokens.image_tokens(cloud.traits, size) for size in facts.images)
    if permit is None:
        return no("label")
    if facts.side is Site.LOCAL:
        return no("side")
    if facts.remote_images or not _fits(facts, cloud.traits, images):
        return no("unfit")  # a picture of unknown size has no upper bound of cost
    if cloud.breaker is BreakerState.OPEN:
        return no("breaker_open")
    if now_s < cloud.blocked_until_s or cloud.rpm_left == 0 or cloud.tpm_left == 0:
        return no("rate_limited")
    try:
        bound = quote(
            rules.prices,
            cloud.model,
            prompt_tokens_max=facts.prompt_tokens_max + images,
            output_tokens_max=min(facts.output_tokens_max, cloud.traits.output_tokens_max),
        )
    except Unpriced:
        return no("unpriced")
    scopes = attempt_scopes(facts, Site.CLOUD)
    return _Weighed(
        site=Site.CLOUD,
        target=cloud.model,
        verdict="over_budget" if _over_budget(scopes, bound.nano, snapshot.budgets) else "",
        forecast=latency.of_cloud(cloud, facts),
        hold_nano=bound.nano,
    )


def _fits(facts: Facts, traits: ModelTraits, image_tokens: int) -> bool:
    if facts.images and Capability.VISION not in traits.capabilities:
        return False
    if not facts.needs <= traits.capabilities:
        return False
    likely = tokens.likely(facts.prompt_tokens_max) + image_tokens
    return likely < traits.context_tokens


def _local_hold(facts: Facts, worker: WorkerState, image_tokens: int, rules: Rules) -> int:
    """Upper bound of a local answer's cost in nano-CNY: slot time at a third of the known pace."""
    decode = worker.decode_tokens_per_s or latency.DECODE_TOKENS_PER_S
    prefill = worker.prefill_tokens_per_s or latency.PREFILL_TOKENS_PER_S
    predicted_s = (facts.prompt_tokens_max + image_tokens) / prefill
    predicted_s += facts.output_tokens_max / decode
    bound_s = min(LOCAL_HOLD_FACTOR * predicted_s, rules.local_total_s)
    return local_cost(rules.local_rate, slot_ms=int(1000 * bound_s) + 1)


def attempt_scopes(facts: Facts, site: Site) -> tuple[str, ...]:
    """Budget scopes that an attempt at this site draws on."""
    return (*facts.scopes, f"model:{facts.model}", f"backend:{site.value}")


def _over_budget(
    scopes: Iterable[str], hold_nano: int, budgets: Mapping[str, Sequence[BudgetView]]
) -> bool:
    """Certainly over: what is posted never shrinks within a period. Holds may be freed any moment,
    so whether they leave room is for the ledger to say."""
    if not budgets:
        return False
    return any(
        view.posted_nano + hold_nano > view.limit_nano
        for scope in scopes
        for view in budgets.get(scope, ())
    )


# ---------------------------------------------------------------- choose and explain


def _local_first(
    facts: Facts, local: Sequence[_Weighed], cloud: Sequence[_Weighed], rules: Rules
) -> bool:
    if not local or not cloud:
        return bool(local)
    here, there = local[0].forecast, cloud[0].forecast
    assert here is not None and there is not None
    return here.ttft_ms <= _target_ms(facts, rules) or here.ttft_ms <= there.ttft_ms


def _target_ms(facts: Facts, rules: Rules) -> float:
    if facts.deadline_ms is not None:
        return float(facts.deadline_ms)
    return rules.ttft_target_ms[facts.slo]


def _why_local(
    facts: Facts,
    permit: CloudPermit | None,
    best: _Weighed,
    clouds: Sequence[_Weighed],
    snapshot: Snapshot,
    rules: Rules,
) -> Reason:
    if permit is None:
        return Reason.PINNED
    if facts.side is Site.LOCAL:
        return Reason.LOCAL_ASKED
    assert best.forecast is not None
    if best.forecast.ttft_ms <= _target_ms(facts, rules):
        return Reason.LOCAL_FITS
    if not snapshot.cloud_enabled:
        return Reason.CLOUD_OFF
    verdicts = {w.verdict for w in clouds}
    if "over_budget" in verdicts:
        return Reason.CLOUD_BUDGET
    if verdicts & {"breaker_open", "rate_limited"}:
        return Reason.CLOUD_BREAKER
    return Reason.LOCAL_FITS if "" in verdicts else Reason.CLOUD_UNFIT


def _why_cloud(facts: Facts, pool: Sequence[_Weighed], local: Sequence[_Weighed]) -> Reason:
    if facts.side is Site.CLOUD:
        return Reason.CLOUD_ASKED
    if local:
        return Reason.DEADLINE if facts.deadline_ms is not None else Reason.POOL_FULL
    verdicts = {w.verdict for w in pool}
    if verdicts & {"full", "over_budget"}:
        return Reason.POOL_FULL
    if verdicts & {"unfit", "remote_image"}:
        return Reason.LOCAL_UNFIT
    return Reason.POOL_DOWN


def _attempt(
    facts: Facts,
    weighed: _Weighed,
    reason: Reason,
    permit: CloudPermit | None,
    reference_nano: int | None,
) -> Attempt:
    assert weighed.forecast is not None and not weighed.verdict
    assert permit is not None or weighed.site is Site.LOCAL
    cloud = weighed.site is Site.CLOUD
    return Attempt(
        site=weighed.site,
        target=weighed.target,
        reason=reason,
        hold_nano=weighed.hold_nano,
        scopes=attempt_scopes(facts, weighed.site),
        cloud_nano=None if cloud else reference_nano,
        ttft_ms=weighed.forecast.ttft_ms,
        finish_ms=weighed.forecast.finish_ms,
        permit=permit if cloud else None,
    )


def _reference_nano(facts: Facts, route: Route, rules: Rules) -> int | None:
    """What the likely answer would cost in the cloud; None when no model of the route is priced."""
    for model in route.cloud:
        try:
            return quote(
                rules.prices,
                model,
                prompt_tokens_max=tokens.likely(facts.prompt_tokens_max),
                output_tokens_max=facts.output_tokens_likely,
            ).nano
        except Unpriced:
            continue
    return None


def _why(
    facts: Facts, reason: Reason, weighed: Iterable[_Weighed], attempts: Sequence[Attempt] = ()
) -> Why:
    place = {attempt.target: i for i, attempt in enumerate(attempts)}

    def verdict(w: _Weighed) -> str:
        if w.verdict:
            return w.verdict
        return "chosen" if place.get(w.target) == 0 else "next"

    return Why(
        reason=reason,
        label=facts.label,
        deadline_ms=facts.deadline_ms,
        considered=tuple(
            Considered(
                site=w.site,
                target=w.target,
                verdict=verdict(w),
                ttft_ms=w.forecast.ttft_ms if w.forecast else None,
                finish_ms=w.forecast.finish_ms if w.forecast else None,
                hold_nano=w.hold_nano or None,
            )
            for w in weighed
        ),
    )


# ---------------------------------------------------------------- refuse


def _no_target(
    facts: Facts,
    permit: CloudPermit | None,
    pool: Sequence[_Weighed],
    clouds: Sequence[_Weighed],
) -> Refusal:
    weighed = [*pool, *clouds]
    verdicts = {w.verdict for w in weighed}
    if permit is None and facts.side is Site.CLOUD:
        text = f"the request is {facts.label.level.name.lower()}: it may not go to the cloud"
        return _refuse(facts, weighed, Reason.SIDE_FORBIDDEN, text, None)
    if facts.remote_images and "remote_image" in verdicts | {w.verdict for w in clouds}:
        text = "pictures must be data: URLs; a picture named by a web address is not fetched"
        return _refuse(facts, weighed, Reason.UNFIT, text, None)
    if "over_budget" in verdicts:
        text = "the budget that this request draws on is exhausted"
        return _refuse(facts, weighed, Reason.BUDGET_EXHAUSTED, text, None)
    if (
        verdicts
        and verdicts <= {"unfit", "label", "side", "other_model", "unpriced"}
        and ("unfit" in verdicts)
    ):
        text = "no model behind this name can do what the request asks, or its context is too short"
        return _refuse(facts, weighed, Reason.UNFIT, text, None)
    if permit is None:
        text = "the request must stay on the premises and no local worker can take it now"
        return _refuse(facts, weighed, Reason.SENSITIVE_LOCAL_UNAVAILABLE, text, RETRY_AFTER_MIN_S)
    text = "no worker and no cloud model can take the request now"
    return _refuse(facts, weighed, Reason.NO_CAPACITY, text, RETRY_AFTER_MIN_S)


def _refuse(
    facts: Facts,
    weighed: Iterable[_Weighed],
    reason: Reason,
    message: str,
    retry_after_s: int | None,
) -> Refusal:
    return Refusal(
        reason=reason,
        message=message,
        why=_why(facts, reason, weighed),
        retry_after_s=retry_after_s,
    )
