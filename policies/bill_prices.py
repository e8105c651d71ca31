"""Price cards as a bill knows them: model without date, service, and thresholds of a band."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from policies.bill import Open, Three
from policies.price import TOKENS_MAX, PriceBook, PriceCard, Rate, Tier, Unpriced


class Band(NamedTuple):
    """A tier, and what it begins above, in tokens."""

    rate: Rate
    input_over: int
    output_over: int
    tier: Tier

    @property
    def where(self) -> tuple[Rate, int, int]:
        return self.rate, self.input_over, self.output_over

    @property
    def row_name(self) -> str:
        """As rows of the ledger name it."""
        name = self.tier.name
        return name if self.rate is Rate.ONLINE else f"{self.rate.value} {name}"


def bands(card: PriceCard, model: str) -> Iterator[Band]:
    """Every tier of a model at every rate; the usual one before those of other hours. None when
    the card does not price it."""
    try:
        lists = card.price_of(model).all_lists()
    except Unpriced:
        return
    for each in lists:
        input_over = output_over = 0
        for i, tier in enumerate(each.tiers):
            if i and each.tiers[i - 1].prompt_tokens_to != tier.prompt_tokens_to:
                input_over, output_over = _end(each.tiers[i - 1].prompt_tokens_to), 0
            yield Band(each.rate, input_over, output_over, tier)
            output_over = _end(tier.output_tokens_to)


def band_named(card: PriceCard, model: str, name: str) -> Band | None:
    """The band that a row names."""
    return next((band for band in bands(card, model) if band.row_name == name), None)


def place_name(card: PriceCard, model: str, where: tuple[str, int, int]) -> str:
    """One name for a band on both sides. Prices of other hours share it: then the money tells them
    apart. A band that the card does not have gets a name that says what it is."""
    for band in bands(card, model):
        if band.where == where:
            return band.row_name
    service, input_over, output_over = where
    return f"{service} >{input_over}, out>{output_over}"


def cost_of(tier: Tier, tokens: Three) -> Three:
    """Nano-CNY of each kind."""
    fresh, cached, completion = tokens
    return fresh * tier.input_nano, cached * tier.cache_nano, completion * tier.output_nano


class Cards:
    """Price cards as `policies.bill.Prices`: an open hold was asked at the online rate."""

    def __init__(self, book: PriceBook) -> None:
        self._book = book

    def tier_of(self, hold: Open, tokens: Three) -> str | None:
        prompt, completion = tokens[0] + tokens[1], tokens[2]
        for band in self._bands(hold):
            tier = band.tier
            in_band = prompt <= _end(tier.prompt_tokens_to)
            if in_band and completion <= _end(tier.output_tokens_to):
                return tier.name
        return None

    def nano(self, hold: Open, tier: str, tokens: Three) -> Three | None:
        for band in self._bands(hold):
            if band.tier.name == tier:
                return cost_of(band.tier, tokens)
        return None

    def _bands(self, hold: Open) -> Iterator[Band]:
        card = self._book.version(hold.card)
        if card is not None:
            yield from (b for b in bands(card, hold.lane.model) if b.rate is Rate.ONLINE)


def undated(model: str) -> str:
    """A bill names a model without its date."""
    head, _, tail = model.rpartition("-")
    return head if head and len(tail) == 6 and tail.isdigit() else model


def endpoint_models(endpoints: Mapping[str, str], target: str, served: str) -> str:
    """Which model a target stands for: itself, or what is known of an endpoint (ep-...)."""
    if not target.startswith("ep-"):
        return target
    return endpoints.get(target) or served or target


def _end(tokens: int | None) -> int:
    return TOKENS_MAX if tokens is None else tokens
