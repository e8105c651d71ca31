"""The decision: where one request goes, for which reason, and what is tried next.

`plan()` filters, then prices. Filter: sites that the label permits, models that can do what is
asked, breakers, room, budgets. Price: predicted time to the first token against the deadline, and
the upper bound of the cost. Local wins when it answers in time; what it cannot answer in time
overflows to the cloud when its label, and the money, allow it.

Everything the decision used is in its `why`. Clock and randomness are arguments; ties are broken by
name, so the same arguments always give the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from msgspec.structs import replace

from policies import balance, sensitivity
from policies.budget import refusal_text
from policies.steer import NONE, steering
from policies.types import (
    Attempt,
    CloudPermit,
    Considered,
    Facts,
    Plan,
    Reason,
    Refusal,
    Site,
    SloClass,
    Snapshot,
    Why,
)
from policies.weigh import (
    NO_FORECAST,
    Funds,
    Rules,
    Weighed,
    funds_of,
    weigh_clouds,
    weigh_workers,
)

RETRY_AFTER_S = 1  # a slot falls free within seconds

# What may be otherwise in a moment, and what will not.
PASSING = frozenset({"full", "draining", "down", "returning", "breaker_open", "rate_limited"})
_LASTING = frozenset(
    {"unfit", "too_long", "remote_image", "unpriced", "other_label", "other_tenant", "no_adapter"}
)


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
    if facts.adapter and not any(facts.adapter in w.adapters for w in snapshot.workers):
        text = f"no worker has the adapter {facts.adapter!r} of {facts.model!r}"
        return _refuse(facts, (), Reason.MODEL_UNKNOWN, text, None)
    permit = sensitivity.permit(facts)
    here, there = (funds_of(facts, site, snapshot) for site in (Site.LOCAL, Site.CLOUD))
    pool = weigh_workers(facts, route, snapshot, here, rules)
    clouds = weigh_clouds(facts, route, permit, snapshot, there, rules, now_s)

    steered = NONE
    if snapshot.budgets:
        steered = steering(there.scopes, snapshot.budgets, snapshot.wall_s)
        if steered.lower_priority:
            facts = replace(facts, slo=SloClass.BATCH)
    wanted_ms = target_ms(facts, rules)
    local = _order_workers(pool, facts, wanted_ms, rng)
    # in the order of the route, but a model that would be late gives way to those that are not
    cloud = [w for w in clouds if not w.verdict]
    cloud.sort(
        key=lambda w: (w.forecast.ttft_ms > wanted_ms, w.hold_nano if steered.cheaper else 0)
    )
    if not local and not cloud:
        local = [w for w in pool if w.awaited]
    if not local and not cloud:
        return _no_target(facts, permit, pool, clouds, (here, there), snapshot)

    in_turn = _local_first(local, cloud, facts, wanted_ms)
    if in_turn or (local and steered.prefer_local and facts.deadline_ms is None):
        reason = _why_local(facts, permit, local[0], clouds, snapshot, wanted_ms)
        reason = reason if in_turn else Reason.BUDGET_SOFT
        ordered = _alternated(local, cloud, rules.attempts_max)
    else:
        reason = _why_cloud(facts, pool, local)
        ordered = _alternated(cloud, local, rules.attempts_max)
    if snapshot.line.places and ordered and not cloud:
        # A worker that dies under a request leaves it to the others or, once it is back, to itself.
        ordered = [ordered[i % len(ordered)] for i in range(rules.attempts_max)]
    attempts = tuple(
        [
            _attempt(w, Reason.FALLBACK if i else reason, permit, here, there)
            for i, w in enumerate(ordered)
        ]
    )
    if steered.lower_priority:
        attempts = tuple(replace(attempt, slo=SloClass.BATCH) for attempt in attempts)
    why = _why(facts, reason, [*pool, *clouds], ordered[0])
    return Plan(attempts=attempts, why=replace(why, budgets=steered.notes))


def place(
    facts: Facts,
    snapshot: Snapshot,
    rules: Rules,
    rng: Random,
    attempt: Attempt,
    avoid: frozenset[str] = frozenset(),
) -> Attempt | None:
    """The local attempt of a plan with the worker that should take it now; None: none is free.

    avoid: workers on which this request has failed already; they get it when no other fits.
    """
    route = rules.routes[facts.model]
    funds = funds_of(facts, Site.LOCAL, snapshot)
    fit = [w for w in weigh_workers(facts, route, snapshot, funds, rules) if not w.verdict]
    others = [w for w in fit if w.target not in avoid]
    free = [w for w in others or fit if w.free]
    if not free:
        return None
    chosen = balance.order([(w.load, w.target, w) for w in free], rng, _holder(free))[0]
    return replace(
        attempt,
        target=chosen.target,
        hold_nano=chosen.hold_nano,
        ttft_ms=chosen.forecast.ttft_ms,
        finish_ms=chosen.forecast.finish_ms,
        queued_ms=0.0,
        slots=chosen.slots,
        hold_max_nano=chosen.hold_max_nano,
        tight_nano=chosen.tight_nano,
        tight_tokens=chosen.tight_tokens,
    )


def target_ms(facts: Facts, rules: Rules) -> float:
    """Until when the first token is wanted: the caller's deadline, or what its class is given."""
    if facts.deadline_ms is not None:
        return float(facts.deadline_ms)
    return rules.ttft_target_ms[facts.slo]


def _in_time(worker: Weighed, facts: Facts, target_ms: float) -> bool:
    """Whether a worker answers soon enough. Without a deadline of the caller's, only a queue makes
    it late: a free slot that looks slow (it was measured in a bad moment) is still the better
    place, and asking it is the only way to learn better."""
    if facts.deadline_ms is None and worker.forecast.queued_ms == 0.0:
        return True
    return worker.forecast.ttft_ms <= target_ms


def _order_workers(
    pool: Sequence[Weighed], facts: Facts, target_ms: float, rng: Random
) -> list[Weighed]:
    """Those that answer in time stand before those that do not; within each, two choices."""
    in_time: list[tuple[float, str, Weighed]] = []
    late: list[tuple[float, str, Weighed]] = []
    for w in pool:
        if not w.verdict:
            scored = (w.load, w.target, w)
            (in_time if _in_time(w, facts, target_ms) else late).append(scored)
    holder = _holder(pool)
    return balance.order(in_time, rng, holder) + balance.order(late, rng, holder)


def _holder(weighed: Sequence[Weighed]) -> str | None:
    """The worker that holds most of the prompt, if one does."""
    best = max(weighed, key=lambda w: (w.holds, w.target), default=None)
    return best.target if best is not None and best.holds else None


def _local_first(
    local: Sequence[Weighed], cloud: Sequence[Weighed], facts: Facts, target_ms: float
) -> bool:
    if not local or not cloud:
        return bool(local)
    sooner = local[0].forecast.ttft_ms <= cloud[0].forecast.ttft_ms
    return sooner or _in_time(local[0], facts, target_ms)


def _alternated(first: list[Weighed], other: list[Weighed], attempts_max: int) -> list[Weighed]:
    """The last attempt is for the other side, as far as it has one: what makes all of a side fail
    (a cable, an account) shall not make the request fail."""
    keep = max(1, attempts_max - 1)
    return [*first[:keep], *other, *first[keep:]][:attempts_max]


def _why_local(
    facts: Facts,
    permit: CloudPermit | None,
    best: Weighed,
    clouds: Sequence[Weighed],
    snapshot: Snapshot,
    target_ms: float,
) -> Reason:
    if permit is None:
        return Reason.PINNED
    if facts.side is Site.LOCAL:
        return Reason.LOCAL_ASKED
    if _in_time(best, facts, target_ms):
        return Reason.LOCAL_FITS
    if not snapshot.cloud_enabled:
        return Reason.CLOUD_OFF
    verdicts = {w.verdict for w in clouds}
    if "" in verdicts:
        return Reason.LOCAL_FITS  # late, and still sooner than the cloud
    if "over_budget" in verdicts:
        return Reason.CLOUD_BUDGET
    if verdicts & PASSING:
        return Reason.CLOUD_BREAKER
    return Reason.CLOUD_UNFIT


def _why_cloud(facts: Facts, pool: Sequence[Weighed], local: Sequence[Weighed]) -> Reason:
    if facts.side is Site.CLOUD:
        return Reason.CLOUD_ASKED
    if local:
        return Reason.DEADLINE if facts.deadline_ms is not None else Reason.POOL_FULL
    verdicts = {w.verdict for w in pool}
    if "full" in verdicts:
        return Reason.POOL_FULL
    if "over_budget" in verdicts:
        return Reason.LOCAL_BUDGET
    if verdicts & _LASTING or verdicts == {"other_model"}:
        return Reason.LOCAL_UNFIT
    return Reason.POOL_DOWN


def _attempt(
    weighed: Weighed, reason: Reason, permit: CloudPermit | None, here: Funds, there: Funds
) -> Attempt:
    cloud = weighed.site is Site.CLOUD
    assert permit is not None or not cloud
    return Attempt(
        site=weighed.site,
        target=weighed.target,
        reason=reason,
        hold_nano=weighed.hold_nano,
        scopes=there.scopes if cloud else here.scopes,
        ttft_ms=weighed.forecast.ttft_ms,
        finish_ms=weighed.forecast.finish_ms,
        queued_ms=weighed.forecast.queued_ms,
        permit=permit if cloud else None,
        slots=weighed.slots,
        hold_max_nano=weighed.hold_max_nano,
        tight_nano=weighed.tight_nano,
        tight_tokens=weighed.tight_tokens,
        image_tokens=weighed.image_tokens,
    )


def _why(
    facts: Facts, reason: Reason, weighed: Sequence[Weighed], chosen: Weighed | None = None
) -> Why:
    considered = []
    for w in weighed:
        known = w.forecast is not NO_FORECAST
        considered.append(
            Considered(
                site=w.site,
                target=w.target,
                verdict=w.verdict or ("chosen" if w is chosen else "next"),
                ttft_ms=w.forecast.ttft_ms if known else None,
                finish_ms=w.forecast.finish_ms if known else None,
                hold_nano=w.hold_nano if known else None,
            )
        )
    return Why(
        reason=reason,
        label=facts.label,
        deadline_ms=facts.deadline_ms,
        considered=tuple(considered),
    )


def _no_target(
    facts: Facts,
    permit: CloudPermit | None,
    pool: Sequence[Weighed],
    clouds: Sequence[Weighed],
    funds: tuple[Funds, Funds],
    snapshot: Snapshot,
) -> Refusal:
    weighed = [*pool, *clouds]
    verdicts = {w.verdict for w in weighed}
    if permit is None and facts.side is Site.CLOUD:
        text = f"the request is {facts.label.level.name.lower()}: it may not go to the cloud"
        return _refuse(facts, weighed, Reason.SIDE_FORBIDDEN, text, None)
    if facts.side is Site.CLOUD and not clouds:
        text = "no cloud model stands behind this name here"
        return _refuse(facts, weighed, Reason.UNFIT, text, None)
    passing = bool(verdicts & PASSING)
    if "over_budget" in verdicts and not passing:
        text = _which_budget(weighed, *funds)
        return _refuse(facts, weighed, Reason.BUDGET_EXHAUSTED, text, None)
    if verdicts & _LASTING and not passing:
        return _unfit(facts, weighed, verdicts, snapshot)
    if permit is None:
        text = "the request must stay on the premises and no local worker can take it now"
        return _refuse(facts, weighed, Reason.SENSITIVE_LOCAL_UNAVAILABLE, text, RETRY_AFTER_S)
    text = "no worker and no cloud model can take the request now"
    if "over_budget" in verdicts:
        text += f"; {_which_budget(weighed, *funds)}"
    return _refuse(facts, weighed, Reason.NO_CAPACITY, text, RETRY_AFTER_S)


def _unfit(
    facts: Facts, weighed: Sequence[Weighed], verdicts: set[str], snapshot: Snapshot
) -> Refusal:
    """Nothing here can answer the request, now or later."""
    if "remote_image" in verdicts:
        text = "pictures must be data: URLs: nothing here fetches one from a web address"
        return _refuse(facts, weighed, Reason.UNFIT, text, None, param="messages")
    if "too_long" in verdicts:
        longest = _longest_context(weighed, snapshot)
        text = (
            f"the request is longer than the maximum context length behind this name, which is "
            f"{longest} tokens: its text has about {facts.prompt_tokens_likely}"
            f"{', and there are pictures' if facts.images else ''}; shorten the messages"
        )
        return _refuse(facts, weighed, Reason.TOO_LONG, text, None, param="messages")
    if verdicts & {"other_label", "other_tenant"}:
        text = "no worker here may see requests of this label or tenant, and nothing else fits"
        return _refuse(facts, weighed, Reason.UNFIT, text, None)
    wanted = f" ({', '.join(sorted(facts.needs))})" if facts.needs else ""
    text = f"no model behind this name can do what the request asks{wanted}"
    return _refuse(facts, weighed, Reason.UNFIT, text, None)


def _longest_context(weighed: Sequence[Weighed], snapshot: Snapshot) -> int:
    """Tokens, among the targets that lack nothing but length."""
    short = {(w.site, w.target) for w in weighed if w.verdict == "too_long"}
    here = [w.traits.context_tokens for w in snapshot.workers if (Site.LOCAL, w.id) in short]
    there = [c.traits.context_tokens for c in snapshot.clouds if (Site.CLOUD, c.model) in short]
    return max([*here, *there])


def _which_budget(weighed: Sequence[Weighed], here: Funds, there: Funds) -> str:
    """Names the budget that had no room for the cheapest of the targets that lack nothing else."""
    poor = [w for w in weighed if w.verdict == "over_budget"]
    least = min(poor, key=lambda w: w.hold_nano)
    budget = (here if least.site is Site.LOCAL else there).tightest
    assert budget is not None, "without a budget nothing is over it"
    return refusal_text(budget, least.hold_nano)


def _refuse(
    facts: Facts,
    weighed: Sequence[Weighed],
    reason: Reason,
    message: str,
    retry_after_s: int | None,
    *,
    param: str | None = None,
) -> Refusal:
    return Refusal(
        reason=reason,
        message=message,
        why=_why(facts, reason, weighed),
        retry_after_s=retry_after_s,
        param=param,
    )
