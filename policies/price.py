"""What a request may cost at most, and what it did cost. Everything in whole nano-CNY.

A cloud model's price depends on the size of the single request: its prompt tokens choose a band,
within some bands its completion tokens choose a sub-band, and ALL its tokens are then charged at
the prices of that tier (not only those beyond the threshold). Prompt tokens found in the
provider's cache have a price of their own.

A local answer costs the time that it occupied one slot of a worker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction

from policies.types import MONEY_NANO_MAX, NANO_PER_CNY, Usage, Value

# No request has more tokens than this; a larger figure is not a measurement. It also keeps every
# product of tokens and price far below 2**63.
TOKENS_MAX = 2**27
PRICE_NANO_MAX = 10_000_000  # a token at 10,000 CNY per million: 100 times the dearest model known

SECONDS_PER_YEAR = 365 * 86_400
JOULES_PER_KWH = 3_600_000

_DATED = re.compile(r"-\d{6}$")  # doubao-seed-1-6-vision-250815


class Unpriced(LookupError):
    """The card has no price for this model. Such a model is refused, never free."""

    def __init__(self, model: str) -> None:
        super().__init__(f"no price is known for the model {model!r}")
        self.model = model


class Tier(Value, frozen=True, kw_only=True):
    """Prices of one band in nano-CNY per token. The upper ends are inclusive; None: no end."""

    name: str
    prompt_tokens_to: int | None = None
    output_tokens_to: int | None = None
    input_nano: int
    cached_nano: int | None = None  # None: cached tokens cost as much as others
    output_nano: int

    @property
    def cache_nano(self) -> int:
        return self.input_nano if self.cached_nano is None else self.cached_nano


class ModelPrice(Value, frozen=True, kw_only=True):
    """Tiers ordered by prompt band, within a band by output band; each band ends with an open
    output band and the last band is open. `image_family` names the rule that counts pictures."""

    tiers: tuple[Tier, ...]
    image_family: str = "unknown"
    sources: tuple[str, ...] = ()
    note: str = ""


class PriceCard(Value, frozen=True, kw_only=True):
    """A dated list of prices. Models by id without its date, or by full id where dates differ."""

    version: str
    models: Mapping[str, ModelPrice]

    def price_of(self, model: str) -> ModelPrice:
        """By full id, else by the id without its date. Raises Unpriced."""
        found = self.models.get(model) or self.models.get(_DATED.sub("", model))
        if found is None:
            raise Unpriced(model)
        return found


class Quote(Value, frozen=True, kw_only=True):
    """An upper bound and the tier that it was found in."""

    nano: int
    tier: str


class Cost(Value, frozen=True, kw_only=True):
    """What a usage costs. `flags` name every figure that could not be true and was clamped;
    `usage` is what was left after clamping."""

    nano: int
    tier: str
    flags: tuple[str, ...]
    usage: Usage


class LocalRate(Value, frozen=True, kw_only=True):
    """What one slot of a worker costs per second in nano-CNY."""

    nano_per_slot_s: int


def flaws(price: ModelPrice) -> tuple[str, ...]:
    """What is wrong with the tiers of one model; empty when nothing is."""
    found = []
    if not price.tiers:
        found.append("there is no tier")
    above: tuple[float, float] = (0.0, 0.0)
    open_before = True
    for tier in price.tiers:
        here = (_end(tier.prompt_tokens_to), _end(tier.output_tokens_to))
        if here <= above:
            found.append(f"tier {tier.name} ends before the one above it")
        if here[0] != above[0] and not open_before:
            found.append(f"tier {tier.name}: the band above has no tier for long outputs")
        above, open_before = here, tier.output_tokens_to is None
        for nano in (tier.input_nano, tier.cache_nano, tier.output_nano):
            if not 0 <= nano <= PRICE_NANO_MAX:
                found.append(f"tier {tier.name} has a price of {nano} nano-CNY per token")
    if price.tiers and above != (float("inf"), float("inf")):
        found.append("the last tier has an end")
    return tuple(found)


def quote(card: PriceCard, model: str, *, prompt_tokens_max: int, output_tokens_max: int) -> Quote:
    """The most that any request with no more tokens than these can cost.

    A smaller request may fall into a dearer tier (an output sub-tier that raises the input price),
    so every tier that can be reached is looked at with the most tokens that stay in it. Raises
    Unpriced; ValueError for a negative bound.
    """
    if prompt_tokens_max < 0 or output_tokens_max < 0:
        raise ValueError("a bound on tokens cannot be negative")
    price = card.price_of(model)
    best: Quote | None = None
    band_from, output_from, band_to = 0, 0, -1
    for tier in price.tiers:
        prompt_end = min(prompt_tokens_max, TOKENS_MAX, _last(tier.prompt_tokens_to))
        output_end = min(output_tokens_max, TOKENS_MAX, _last(tier.output_tokens_to))
        if _last(tier.prompt_tokens_to) != band_to:
            band_from, band_to, output_from = band_to + 1, _last(tier.prompt_tokens_to), 0
        if band_from <= prompt_end and output_from <= output_end:
            dearest_nano = max(tier.input_nano, tier.cache_nano)
            nano = prompt_end * dearest_nano + output_end * tier.output_nano
            if best is None or nano > best.nano:
                best = Quote(nano=nano, tier=tier.name)
        output_from = _last(tier.output_tokens_to) + 1
    assert best is not None, "the first tier begins at no tokens, so it can always be reached"
    return Quote(nano=min(best.nano, MONEY_NANO_MAX), tier=best.tier)


def cost(card: PriceCard, model: str, usage: Usage) -> Cost:
    """What this usage costs by the card. Never raises for what an engine may have reported:
    figures that cannot be true are clamped and flagged. Raises Unpriced."""
    price = card.price_of(model)
    clean, flags = sane(usage)
    tier = _tier_of(price, clean)
    fresh_tokens = clean.prompt_tokens - clean.cached_tokens
    nano = (
        fresh_tokens * tier.input_nano
        + clean.cached_tokens * tier.cache_nano
        + clean.completion_tokens * tier.output_nano
    )
    assert nano >= 0
    return Cost(nano=min(nano, MONEY_NANO_MAX), tier=tier.name, flags=flags, usage=clean)


def sane(usage: Usage) -> tuple[Usage, tuple[str, ...]]:
    """A usage in which every figure can be true, and flags that name those that could not:
    `<field>_missing` (not a whole number), `_negative`, `_huge`, `_above_whole` (a part that is
    larger than what it is part of)."""
    flags: list[str] = []

    def clean(name: str, most: int, too_much: str) -> int:
        value: object = getattr(usage, name)
        # an engine's JSON is checked where it is read, but money does not rest on that
        if not isinstance(value, int) or isinstance(value, bool):
            flags.append(f"{name}_missing")
            return 0
        if value < 0:
            flags.append(f"{name}_negative")
            return 0
        if value > most:
            flags.append(f"{name}_{too_much}")
            return most
        return value

    prompt = clean("prompt_tokens", TOKENS_MAX, "huge")
    completion = clean("completion_tokens", TOKENS_MAX, "huge")
    out = Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=clean("cached_tokens", prompt, "above_whole"),
        image_tokens=clean("image_tokens", prompt, "above_whole"),
        reasoning_tokens=clean("reasoning_tokens", completion, "above_whole"),
        slot_ms=clean("slot_ms", SECONDS_PER_YEAR * 1000, "huge"),
    )
    return out, tuple(flags)


def local_cost(rate: LocalRate, slot_ms: int) -> int:
    """What occupying a slot for `slot_ms` costs, rounded up; a negative time costs nothing."""
    return -(-rate.nano_per_slot_s * max(slot_ms, 0) // 1000)


def local_rate(
    *,
    hardware_cny: Decimal,
    residual_cny: Decimal,
    years: Decimal,
    watts: Decimal,
    cny_per_kwh: Decimal,
    upkeep_cny_per_year: Decimal,
    slots: int,
    busy_share: Decimal = Decimal(1),
) -> LocalRate:
    """What one slot costs per second, rounded up to a whole nano-CNY.

        amortisation = (hardware - residual) / (years * 365 days)
        power        = watts * price per kWh / 3,600,000
        rate         = (amortisation + power + upkeep per second) / (slots * busy_share)

    busy_share: the share of its life in which a slot is expected to work. At 1 idle time is
    nobody's; below 1 the requests carry it. Raises ValueError for figures that make no sense.
    """
    if years <= 0 or slots < 1 or not 0 < busy_share <= 1:
        raise ValueError("years, slots and the busy share must be above 0, the share at most 1")
    if not 0 <= residual_cny <= hardware_cny or min(watts, cny_per_kwh, upkeep_cny_per_year) < 0:
        raise ValueError("prices and watts cannot be negative, nor the residual above the price")
    cny_per_s = (
        Fraction(hardware_cny - residual_cny) / (Fraction(years) * SECONDS_PER_YEAR)
        + Fraction(watts) * Fraction(cny_per_kwh) / JOULES_PER_KWH
        + Fraction(upkeep_cny_per_year) / SECONDS_PER_YEAR
    )
    nano = cny_per_s * NANO_PER_CNY / (slots * Fraction(busy_share))
    return LocalRate(nano_per_slot_s=-(-nano.numerator // nano.denominator))


def _tier_of(price: ModelPrice, usage: Usage) -> Tier:
    for tier in price.tiers:
        in_band = usage.prompt_tokens <= _last(tier.prompt_tokens_to)
        if in_band and usage.completion_tokens <= _last(tier.output_tokens_to):
            return tier
    return price.tiers[-1]


def _end(tokens: int | None) -> float:
    return float("inf") if tokens is None else float(tokens)


def _last(tokens: int | None) -> int:
    """The last number of tokens in a band."""
    return TOKENS_MAX if tokens is None else tokens
