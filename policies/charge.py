"""What one attempt is charged in the books, and what the cloud would have charged for it."""

from __future__ import annotations

from policies.exchange import Resolve
from policies.pictures import cloud_image_tokens_max, image_family
from policies.price import Rate, Unpriced, cost
from policies.server_cost import slot_cost
from policies.tokens import ImageFamily
from policies.types import Attempt, Facts, Site, Usage, Value
from policies.weigh import Rules

FINAL = "final"
UNRECONCILED = "unreconciled"

# What Ark names in its answer (docs 82379/1494384) -> the list of prices. `scale` is a package of
# tokens a minute that was paid before; what it would have cost is the online price.
_RATES = {"": Rate.ONLINE, "default": Rate.ONLINE, "scale": Rate.ONLINE, "fast": Rate.FAST}


class Charge(Value, frozen=True, kw_only=True):
    """posted_nano: what is booked; of a local answer its share of the whole server.
    marginal_nano: local: what it added to the power bill.
    slot_ms:     local: for how long it was charged.
    cloud_nano:  the same work at Ark's list price, if priced.

    state: final, or unreconciled when only the bill can tell what it really was.
    """

    posted_nano: int
    marginal_nano: int = 0
    slot_ms: int = 0
    cloud_nano: int | None = None
    tier: str = ""
    state: str = FINAL
    flags: tuple[str, ...] = ()


def charge(
    resolve: Resolve,
    attempt: Attempt,
    facts: Facts,
    usage: Usage | None,
    *,
    at_ms: int | None = None,
    elapsed_ms: int,
    rules: Rules,
) -> Charge:
    """The charge for an attempt that ended this way.

    usage:      as the engine reported it; None when it reported none
    at_ms:      when the request arrived (since 1970, UTC): some prices go by the hour
    elapsed_ms: since the attempt was sent. A local slot was occupied no longer than that, so a
                local attempt without a report is charged for it, in a slot for each answer; the
                cloud may have worked ahead of what reached us, so there the whole hold is posted
                until the bill is read.
    """
    if resolve is Resolve.NOTHING:
        return Charge(posted_nano=0)
    if attempt.site is Site.LOCAL:
        slot_ms = usage.slot_ms if usage is not None and usage.slot_ms > 0 else 0
        slot_ms = slot_ms or facts.choices * elapsed_ms
        own = slot_cost(rules.server_rate, slots=attempt.slots, slot_ms=slot_ms)
        return Charge(
            posted_nano=own.full_nano,
            marginal_nano=own.marginal_nano,
            slot_ms=slot_ms,
            cloud_nano=_cloud_equivalent(facts, usage, rules, at_ms) if usage is not None else None,
        )
    if resolve is Resolve.BOUND or usage is None:
        return _at_bound(attempt, "bound")
    rate = _RATES.get(usage.service_tier)
    if rate is None:
        return _at_bound(attempt, "service_tier_unknown")
    try:
        real = cost(rules.prices, attempt.target, usage, at_ms=at_ms, rate=rate)
    except Unpriced:  # it was quoted, so it has a price, and not at the rate that was served
        return _at_bound(attempt, "service_tier_unpriced")
    return Charge(
        posted_nano=real.nano,
        cloud_nano=real.nano,
        tier=real.tier,
        flags=real.flags,
    )


def _at_bound(attempt: Attempt, flag: str) -> Charge:
    """Only the bill can tell what it was."""
    return Charge(
        posted_nano=attempt.hold_nano,
        cloud_nano=attempt.hold_nano,
        state=UNRECONCILED,
        flags=(flag,),
    )


def _cloud_equivalent(facts: Facts, usage: Usage, rules: Rules, at_ms: int | None) -> int | None:
    """Ark's list price for the same text, with the pictures counted by the cloud model's rule."""
    route = rules.routes.get(facts.model)
    for model in route.cloud if route is not None else ():
        if facts.images and image_family(rules.prices, model) is ImageFamily.UNKNOWN:
            continue  # the bound that is held for such a picture would make a saving of a guess
        images = cloud_image_tokens_max(rules.prices, model, facts)
        there = Usage(
            prompt_tokens=max(0, usage.prompt_tokens - usage.image_tokens) + images,
            completion_tokens=usage.completion_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            image_tokens=images,
        )
        try:
            return cost(rules.prices, model, there, at_ms=at_ms).nano
        except Unpriced:
            continue
    return None
