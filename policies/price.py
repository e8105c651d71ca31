"""What a request may cost at most, and what it did cost. Everything in whole nano-CNY.

A cloud model's price depends on the size of the single request: its prompt tokens choose a band,
within some bands its completion tokens choose a sub-band, and ALL its tokens are then charged at
the prices of that tier (not only those beyond the threshold). Prompt tokens found in the
provider's cache have a price of their own. Beside the normal rate there may be a fast one, one of
low priority and one for batches, and the normal rate may differ by the hour of the day. A request
may have a fee of its own, whatever its size.

Prices change: a card is valid from a day on, several stand in a book, and a request is priced by
the card that was valid when it arrived.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum

from policies.types import MONEY_NANO_MAX, Usage, Value

# No request has more tokens than this; a larger figure is not a measurement. It also keeps every
# product of tokens and price far below 2**63.
TOKENS_MAX = 2**27
PRICE_NANO_MAX = 10_000_000  # a token at 10,000 CNY per million: 100 times the dearest model known
REQUEST_NANO_MAX = 1_000_000_000_000  # 1,000 CNY for one call
SLOT_MS_MAX = 365 * 86_400_000

BEIJING_MS = 8 * 3_600_000  # Ark's days and hours are those of UTC+8, which knows no summer time
DAY_MIN = 24 * 60

_DATED = re.compile(r"-\d{6}$")  # doubao-seed-1-6-vision-250815


class Unpriced(LookupError):
    """The card has no price for this model at this rate. Such a model is refused, never free."""

    def __init__(self, model: str, rate: Rate | None = None) -> None:
        at = "" if rate is None else f" at the {rate.value} rate"
        super().__init__(f"no price is known for the model {model!r}{at}")
        self.model = model


class Rate(StrEnum):
    """How a request is served; each way has prices of its own."""

    ONLINE = "online"
    FAST = "fast"  # low latency: service_tier fast
    LOW = "low"  # low priority
    BATCH = "batch"


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


class Hours(Value, frozen=True, kw_only=True):
    """A time of every day, in minutes after midnight in UTC+8. An end at or before the start lies
    on the next day."""

    from_min: int
    to_min: int  # exclusive

    def hold(self, minute: int) -> bool:
        if self.from_min < self.to_min:
            return self.from_min <= minute < self.to_min
        return minute >= self.from_min or minute < self.to_min


class PriceList(Value, frozen=True, kw_only=True):
    """Tiers that apply at one rate, or at some hours of the online rate.

    hours: when they apply; empty: at all hours; None: at hours that are not known, so that nobody
           can say whether this list or the usual one applies, and the dearer is charged
    """

    rate: Rate = Rate.ONLINE
    tiers: tuple[Tier, ...]
    hours: tuple[Hours, ...] | None = ()


class ModelPrice(Value, frozen=True, kw_only=True):
    """Tiers ordered by prompt band, within a band by output band; each band ends with an open
    output band and the last band is open.

    tiers:        the usual ones: online, at every hour for which no other list is given
    lists:        further ones
    request_nano: fee of every single request
    image_family: names the rule that counts pictures
    """

    tiers: tuple[Tier, ...]
    lists: tuple[PriceList, ...] = ()
    request_nano: int = 0
    image_family: str = "unknown"
    sources: tuple[str, ...] = ()
    note: str = ""

    def all_lists(self) -> tuple[PriceList, ...]:
        return (PriceList(tiers=self.tiers), *self.lists)

    def may_apply(self, rate: Rate, at_ms: int | None) -> list[tuple[Tier, ...]]:
        """Every list of tiers that can be the right one at this rate and moment (None: any);
        empty when the rate has no price."""
        minute = None if at_ms is None else (at_ms + BEIJING_MS) // 60_000 % DAY_MIN
        usual, special = [], []
        for each in self.all_lists():
            if each.rate is not rate:
                continue
            if each.hours == ():
                usual.append(each.tiers)
            elif each.hours is None or minute is None:
                usual.append(each.tiers)
            elif any(hours.hold(minute) for hours in each.hours):
                special.append(each.tiers)
        return special or usual


class PriceCard(Value, frozen=True, kw_only=True):
    """A dated list of prices. Models by id without its date, or by full id where dates differ.

    from_ms, to_ms: when it is valid, to exclusive; None: until another card begins
    """

    version: str
    models: Mapping[str, ModelPrice]
    from_ms: int = 0
    to_ms: int | None = None

    def price_of(self, model: str) -> ModelPrice:
        """By full id, else by the id without its date. Raises Unpriced."""
        found = self.models.get(model) or self.models.get(_DATED.sub("", model))
        if found is None:
            raise Unpriced(model)
        return found


NO_CARD = PriceCard(version="none", models={})
"""What is valid when no card is: every model is unpriced then."""


class PriceBook(Value, frozen=True, kw_only=True):
    """Cards of one provider in the order of their first day; no two begin at once."""

    cards: tuple[PriceCard, ...]

    def at(self, at_ms: int) -> PriceCard:
        """The card that is valid at a moment: of those that are, the one that began last."""
        for card in reversed(self.cards):
            if card.from_ms <= at_ms and (card.to_ms is None or at_ms < card.to_ms):
                return card
        return NO_CARD

    def until_ms(self, at_ms: int) -> int | None:
        """Until when `at` answers the same, at least; None: for good."""
        turns = [card.from_ms for card in self.cards]
        turns += [card.to_ms for card in self.cards if card.to_ms is not None]
        return min((turn for turn in turns if turn > at_ms), default=None)

    def version(self, name: str) -> PriceCard | None:
        """The card of this version."""
        return next((card for card in self.cards if card.version == name), None)


class Quote(Value, frozen=True, kw_only=True):
    """An upper bound and the tier that it was found in."""

    nano: int
    tier: str


class Cost(Value, frozen=True, kw_only=True):
    """What a usage costs. `flags` name every figure that could not be true and was clamped, and
    `price_hour_unknown` when the hour decides and is not known; `usage` is what was left after
    clamping."""

    nano: int
    tier: str
    flags: tuple[str, ...]
    usage: Usage


def flaws(price: ModelPrice) -> tuple[str, ...]:
    """What is wrong with the prices of one model; empty when nothing is."""
    found = []
    named: set[tuple[Rate, str]] = set()
    for each in price.all_lists():
        found += _flaws_of_tiers(each.tiers)
        for tier in each.tiers:
            if (each.rate, tier.name) in named:
                found.append(f"tier {tier.name} stands twice at the {each.rate.value} rate")
            named.add((each.rate, tier.name))
        for hours in each.hours or ():
            if not (0 <= hours.from_min < DAY_MIN and 0 <= hours.to_min <= DAY_MIN):
                found.append("an hour of the day is out of range")
    if not 0 <= price.request_nano <= REQUEST_NANO_MAX:
        found.append(f"a request has a fee of {price.request_nano} nano-CNY")
    return tuple(found)


def _flaws_of_tiers(tiers: tuple[Tier, ...]) -> list[str]:
    found = []
    if not tiers:
        found.append("there is no tier")
    above: tuple[float, float] = (0.0, 0.0)
    open_before = True
    for tier in tiers:
        here = (_end(tier.prompt_tokens_to), _end(tier.output_tokens_to))
        if here <= above:
            found.append(f"tier {tier.name} ends before the one above it")
        if here[0] != above[0] and not open_before:
            found.append(f"tier {tier.name}: the band above has no tier for long outputs")
        above, open_before = here, tier.output_tokens_to is None
        for nano in (tier.input_nano, tier.cache_nano, tier.output_nano):
            if not 0 <= nano <= PRICE_NANO_MAX:
                found.append(f"tier {tier.name} has a price of {nano} nano-CNY per token")
    if tiers and above != (float("inf"), float("inf")):
        found.append("the last tier has an end")
    return found


def quote(
    card: PriceCard,
    model: str,
    *,
    prompt_tokens_max: int,
    output_tokens_max: int,
    rate: Rate = Rate.ONLINE,
) -> Quote:
    """The most that any request with no more tokens than these can cost, at any hour.

    A smaller request may fall into a dearer tier (an output sub-tier that raises the input price),
    so every tier that can be reached is looked at with the most tokens that stay in it. The hour
    is not looked at: a request that is held before a peak may be charged in it. Raises Unpriced;
    ValueError for a negative bound.
    """
    if prompt_tokens_max < 0 or output_tokens_max < 0:
        raise ValueError("a bound on tokens cannot be negative")
    price = card.price_of(model)
    best: Quote | None = None
    for each in price.all_lists():
        if each.rate is rate:
            for tier, prompt_end, output_end in _reached(
                each.tiers, prompt_tokens_max, output_tokens_max
            ):
                dearest_nano = max(tier.input_nano, tier.cache_nano)
                nano = prompt_end * dearest_nano + output_end * tier.output_nano
                if best is None or nano > best.nano:
                    best = Quote(nano=nano, tier=_tier_name(rate, tier))
    if best is None:
        raise Unpriced(model, rate)
    return Quote(nano=min(best.nano + price.request_nano, MONEY_NANO_MAX), tier=best.tier)


def _reached(
    tiers: tuple[Tier, ...], prompt_tokens_max: int, output_tokens_max: int
) -> Iterator[tuple[Tier, int, int]]:
    """Every tier that a request within the bounds can fall into, with the most tokens there."""
    band_from, output_from, band_to = 0, 0, -1
    for tier in tiers:
        prompt_end = min(prompt_tokens_max, TOKENS_MAX, _last(tier.prompt_tokens_to))
        output_end = min(output_tokens_max, TOKENS_MAX, _last(tier.output_tokens_to))
        if _last(tier.prompt_tokens_to) != band_to:
            band_from, band_to, output_from = band_to + 1, _last(tier.prompt_tokens_to), 0
        if band_from <= prompt_end and output_from <= output_end:
            yield tier, prompt_end, output_end
        output_from = _last(tier.output_tokens_to) + 1


def cost(
    card: PriceCard,
    model: str,
    usage: Usage,
    *,
    at_ms: int | None = None,
    rate: Rate = Rate.ONLINE,
) -> Cost:
    """What this usage costs by the card. Never raises for what an engine may have reported:
    figures that cannot be true are clamped and flagged. Raises Unpriced.

    at_ms: when the request arrived (since 1970, UTC), for prices that go by the hour; None: not
           known. Where that leaves several prices open, the dearest is charged and flagged.
    """
    price = card.price_of(model)
    clean, flags = sane(usage)
    best: tuple[int, str] | None = None
    seen: set[int] = set()
    for tiers in price.may_apply(rate, at_ms):
        tier = _tier_of(tiers, clean)
        nano = (
            (clean.prompt_tokens - clean.cached_tokens) * tier.input_nano
            + clean.cached_tokens * tier.cache_nano
            + clean.completion_tokens * tier.output_nano
        )
        seen.add(nano)
        if best is None or nano > best[0]:
            best = (nano, _tier_name(rate, tier))
    if best is None:
        raise Unpriced(model, rate)
    if len(seen) > 1:
        flags = (*flags, "price_hour_unknown")
    nano = best[0] + price.request_nano
    assert nano >= 0
    return Cost(nano=min(nano, MONEY_NANO_MAX), tier=best[1], flags=flags, usage=clean)


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
        slot_ms=clean("slot_ms", SLOT_MS_MAX, "huge"),
    )
    return out, tuple(flags)


def _tier_name(rate: Rate, tier: Tier) -> str:
    """As it stands in a row: the rate is part of it unless it is the usual one."""
    return tier.name if rate is Rate.ONLINE else f"{rate.value} {tier.name}"


def _tier_of(tiers: tuple[Tier, ...], usage: Usage) -> Tier:
    for tier in tiers:
        in_band = usage.prompt_tokens <= _last(tier.prompt_tokens_to)
        if in_band and usage.completion_tokens <= _last(tier.output_tokens_to):
            return tier
    return tiers[-1]


def _end(tokens: int | None) -> float:
    return float("inf") if tokens is None else float(tokens)


def _last(tokens: int | None) -> int:
    """The last number of tokens in a band."""
    return TOKENS_MAX if tokens is None else tokens
