"""The emulator's reckoning, and against it the gateway's: two readings of the same prices."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.ark.emulator import pricing
from backends.ark.emulator.pricing import Line, bands, lines
from backends.ark.models import CATALOGUE, base_name
from gateway.prices.cards import load_book, load_card
from policies.price import Rate, Unpriced, cost
from policies.types import Usage

EDGES = [0, 1, 199, 200, 201, 31_999, 32_000, 32_001, 127_999, 128_000, 128_001, 200_000]
counts = st.sampled_from(EDGES) | st.integers(0, 300_000)
CARD = load_card()
PRICED = sorted({(band.model, band.service) for band in bands()})
FLASH = "deepseek-v4-1-flash"


def billed(model: str, service: str, hours: str, usage: Usage) -> list[Line]:
    return lines(
        model,
        service,
        hours,
        prompt=usage.prompt_tokens,
        cached=usage.cached_tokens,
        completion=usage.completion_tokens,
    )


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(PRICED), counts, counts, st.data())
def test_both_reckonings_come_to_the_same(
    what: tuple[str, str], prompt: int, completion: int, data: st.DataObject
) -> None:
    """Decimals of a thousand tokens here, whole nano-CNY per token there; to the last digit."""
    model, service = what
    cached = data.draw(st.integers(0, prompt))
    usage = Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
    here = sum(line.amount_cny for line in billed(model, service, "peak", usage))
    there = cost(CARD, model, usage, rate=Rate(service))
    assert here * 10**9 == there.nano


def test_both_price_the_same_models_at_the_same_rates() -> None:
    """What only one of them knows would never be compared."""
    theirs = {
        (model, each.rate.value)
        for model, price in CARD.models.items()
        for each in price.all_lists()
        if each.rate in (Rate.ONLINE, Rate.FAST)  # a chat request cannot ask for the others
    }
    assert set(PRICED) == theirs


def test_september_had_the_same_prices_for_what_was_sold_then() -> None:
    september, october = load_book().cards
    for model in september.models:
        if model != "deepseek-v3-2":  # shut down since
            usage = Usage(prompt_tokens=40_000, completion_tokens=300, cached_tokens=7)
            assert cost(september, model, usage).nano == cost(october, model, usage).nano


def test_a_mistake_in_one_of_them_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: a digit wrong in the emulator's table is a difference."""
    usage = Usage(prompt_tokens=1_000, completion_tokens=10)
    wrong = pricing._TABLE.replace("0.0008   0.00016  0.0027", "0.0008   0.00016  0.0028")
    assert wrong != pricing._TABLE
    monkeypatch.setattr(pricing, "_TABLE", wrong)
    monkeypatch.setattr(pricing, "_BANDS", pricing._read())
    here = sum(x.amount_cny for x in billed("doubao-seed-2-1-lite", "online", "peak", usage))
    assert here * 10**9 != cost(CARD, "doubao-seed-2-1-lite", usage).nano


@pytest.mark.parametrize(
    ("model", "service", "prompt", "cached", "completion", "items"),
    [
        ("doubao-seed-1-8", "online", 32_000, 0, 200, {"input": "0.0256", "output": "0.0004"}),
        ("doubao-seed-1-8", "online", 32_000, 0, 201, {"input": "0.0256", "output": "0.001608"}),
        ("doubao-seed-1-8", "online", 32_001, 0, 1, {"input": "0.0384012", "output": "0.000016"}),
        ("glm-4-7", "online", 10, 0, 200, {"input": "0.00002", "output": "0.0016"}),
        ("glm-4-7", "online", 10, 0, 201, {"input": "0.00003", "output": "0.002814"}),
        ("doubao-seed-2-1-turbo", "fast", 10, 4, 0, {"input": "0.00006"}),
        ("doubao-seed-2-1-pro", "online", 10, 10, 0, {"cached_input": "0.000012"}),
    ],
)  # fmt: skip
def test_examples_worked_out_by_hand(
    model: str, service: str, prompt: int, cached: int, completion: int, items: dict[str, str]
) -> None:
    usage = Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)
    found = {x.element: x.amount_cny for x in billed(model, service, "peak", usage)}
    assert found == {element: Decimal(amount) for element, amount in items.items()}


def test_one_model_is_cheaper_at_night() -> None:
    usage = Usage(prompt_tokens=1_000, completion_tokens=1_000)
    peak, off = (
        sum(line.amount_cny for line in billed(FLASH, "online", hours, usage))
        for hours in ("peak", "off")
    )
    assert (peak, off) == (Decimal("0.010"), Decimal("0.005"))
    other = {h: billed("glm-5-2", "online", h, usage) for h in ("peak", "off")}
    assert other["peak"] == other["off"]


def test_a_model_without_a_price_is_billed_at_nothing_and_refused_by_the_gateway() -> None:
    usage = Usage(prompt_tokens=5, completion_tokens=5)
    found = billed("doubao-seed-9", "online", "peak", usage)
    assert sum(line.amount_cny for line in found) == 0
    assert [line.tokens for line in found] == [5, 5]
    with pytest.raises(Unpriced):
        cost(CARD, "doubao-seed-9", usage)


def test_every_model_of_the_catalogue_has_a_price_or_is_known_not_to() -> None:
    unpriced = {base_name(model) for model in CATALOGUE} - {model for model, _ in PRICED}
    assert unpriced == {"deepseek-v4-flash-ga"}  # none is published
