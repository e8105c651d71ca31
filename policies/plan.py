"""The decision: where one request goes, for which reason, and what is tried next.

`plan()` filters, then prices. Filter: sites that the label permits, models that can do what is
asked, breakers, room, budgets. Price: predicted time to the first token against the deadline, and
the upper bound of the cost. Local wins when it answers in time; what it cannot answer in time
overflows to the cloud when its label, and the money, allow it.

Everything the decision used is in its `why`. Clock and randomness are arguments; ties are broken by
name, so the same arguments always give the same plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from policies import balance, sensitivity
from policies.price import Unpriced, quote
from policies.types import (
    Attempt,
    CloudPermit,
    Considered,
    Facts,
    Plan,
    Reason,
    Refusal,
    Site,
    Snapshot,
    Why,
)
from policies.weigh import Route, Rules, Weighed, attempt_scopes, weigh_clouds, weigh_worker

RETRY_AFTER_S = 1  # a slot falls free within seconds


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
    pool = [weigh_worker(facts, worker, route, snapshot, rules) for worker in snapshot.workers]
    clouds = weigh_clouds(facts, route, permit, snapshot, rules, now_s)

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


def _local_first(
    facts: Facts, local: Sequence[Weighed], cloud: Sequence[Weighed], rules: Rules
) -> bool:
    if not local or not cloud:
        return bool(local)
    here, there = local[0].forecast, cloud[0].forecast
    assert here is not None
    assert there is not None
    return here.ttft_ms <= _target_ms(facts, rules) or here.ttft_ms <= there.ttft_ms


def _target_ms(facts: Facts, rules: Rules) -> float:
    if facts.deadline_ms is not None:
        return float(facts.deadline_ms)
    return rules.ttft_target_ms[facts.slo]


def _why_local(
    facts: Facts,
    permit: CloudPermit | None,
    best: Weighed,
    clouds: Sequence[Weighed],
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


def _why_cloud(facts: Facts, pool: Sequence[Weighed], local: Sequence[Weighed]) -> Reason:
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
    weighed: Weighed,
    reason: Reason,
    permit: CloudPermit | None,
    reference_nano: int | None,
) -> Attempt:
    assert weighed.forecast is not None
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
        slots=weighed.slots,
    )


def _reference_nano(facts: Facts, route: Route, rules: Rules) -> int | None:
    """What the likely answer would cost in the cloud; None when no model of the route is priced."""
    for model in route.cloud:
        try:
            return quote(
                rules.prices,
                model,
                prompt_tokens_max=facts.prompt_tokens_likely,
                output_tokens_max=facts.output_tokens_likely,
            ).nano
        except Unpriced:
            continue
    return None


def _why(
    facts: Facts, reason: Reason, weighed: Iterable[Weighed], attempts: Sequence[Attempt] = ()
) -> Why:
    place = {attempt.target: i for i, attempt in enumerate(attempts)}

    def verdict(w: Weighed) -> str:
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


def _no_target(
    facts: Facts,
    permit: CloudPermit | None,
    pool: Sequence[Weighed],
    clouds: Sequence[Weighed],
) -> Refusal:
    weighed = [*pool, *clouds]
    verdicts = {w.verdict for w in weighed}
    if permit is None and facts.side is Site.CLOUD:
        text = f"the request is {facts.label.level.name.lower()}: it may not go to the cloud"
        return _refuse(facts, weighed, Reason.SIDE_FORBIDDEN, text, None)
    if "remote_image" in verdicts and verdicts <= {"remote_image", "label", "side"}:
        text = "pictures must be data: URLs: nothing here fetches one from a web address"
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
        return _refuse(facts, weighed, Reason.SENSITIVE_LOCAL_UNAVAILABLE, text, RETRY_AFTER_S)
    text = "no worker and no cloud model can take the request now"
    return _refuse(facts, weighed, Reason.NO_CAPACITY, text, RETRY_AFTER_S)


def _refuse(
    facts: Facts,
    weighed: Iterable[Weighed],
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
