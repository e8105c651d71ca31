from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.prices import PriceCardError, load_card, nano_per_token
from policies.price import (
    TOKENS_MAX,
    LocalRate,
    ModelPrice,
    PriceCard,
    Tier,
    Unpriced,
    cost,
    flaws,
    local_cost,
    local_rate,
    quote,
    sane,
)
from policies.types import Usage

CARD = load_card()
MODELS = sorted(CARD.models)

# near the thresholds of the card as often as anywhere else
EDGES = [0, 1, 199, 200, 201, 31_999, 32_000, 32_001, 127_999, 128_000, 128_001, 256_000, 262_144]
token_counts = st.sampled_from(EDGES) | st.integers(0, 300_000)


def usage(prompt: Any, completion: Any, cached: Any = 0) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached)


@st.composite
def prices(draw: st.DrawFn) -> ModelPrice:
    """Any valid list of tiers, also with shapes that Ark does not have (dearer when cached)."""
    bands = sorted(draw(st.sets(st.integers(1, 20), max_size=3)))
    tiers = []
    for to in [*bands, None]:
        for out in [*sorted(draw(st.sets(st.integers(1, 20), max_size=2))), None]:
            nano = st.integers(0, 50)
            tiers.append(
                Tier(
                    name=f"{to}/{out}",
                    prompt_tokens_to=to,
                    output_tokens_to=out,
                    input_nano=draw(nano),
                    cached_nano=draw(st.none() | nano),
                    output_nano=draw(nano),
                )
            )
    return ModelPrice(tiers=tuple(tiers))


# ---- the upper bound


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_no_usage_within_the_bounds_costs_more_than_the_quote(data: st.DataObject) -> None:
    model = data.draw(st.sampled_from(MODELS))
    bounds = (data.draw(token_counts), data.draw(token_counts))
    bound = quote(CARD, model, prompt_tokens_max=bounds[0], output_tokens_max=bounds[1])
    prompt = data.draw(token_counts.map(lambda n: min(n, bounds[0])))
    completion = data.draw(token_counts.map(lambda n: min(n, bounds[1])))
    cached = data.draw(st.integers(0, prompt))
    assert cost(CARD, model, usage(prompt, completion, cached)).nano <= bound.nano


@settings(max_examples=150, deadline=None)
@given(prices(), st.integers(0, 24), st.integers(0, 24))
def test_the_quote_is_the_dearest_of_all_usages(price: ModelPrice, prompt: int, out: int) -> None:
    """Not only an upper bound but the least one: every usage is tried."""
    assert flaws(price) == ()
    card = PriceCard(version="t", models={"m": price})
    dearest = max(
        cost(card, "m", usage(p, c, cached)).nano
        for p in range(prompt + 1)
        for c in range(out + 1)
        for cached in {0, p}
    )
    assert quote(card, "m", prompt_tokens_max=prompt, output_tokens_max=out).nano == dearest


def test_a_shorter_output_may_be_dearer_in_a_lower_band_and_the_quote_knows() -> None:
    # 32,000 tokens in are dearer with 201 out than with 200: the input price moves too
    short = cost(CARD, "glm-4-7", usage(32_000, 200))
    long = cost(CARD, "glm-4-7", usage(32_000, 201))
    assert (short.nano, short.tier) == (32_000 * 2_000 + 200 * 8_000, "<=32k, out<=0.2k")
    assert (long.nano, long.tier) == (32_000 * 3_000 + 201 * 14_000, "<=32k")


# ---- the card


def test_a_dated_id_has_the_price_of_its_model_and_an_unknown_one_has_none() -> None:
    dated = cost(CARD, "doubao-seed-1-6-vision-250815", usage(1000, 100))
    assert dated.nano == 1000 * 800 + 100 * 8_000
    for model in ("doubao-seed-9", "ep-20260101000000-abcde", "", "doubao-seed-1-6-vision-25081"):
        with pytest.raises(Unpriced):
            quote(CARD, model, prompt_tokens_max=1, output_tokens_max=1)
        with pytest.raises(Unpriced):
            cost(CARD, model, usage(1, 1))


def test_all_tokens_use_the_tier_of_the_whole_request() -> None:
    at = cost(CARD, "doubao-seed-2-0-pro", usage(32_000, 100, 12_000))
    above = cost(CARD, "doubao-seed-2-0-pro", usage(32_001, 100, 12_000))
    assert at.nano == 20_000 * 3_200 + 12_000 * 640 + 100 * 16_000
    assert above.nano == 20_001 * 4_800 + 12_000 * 960 + 100 * 24_000


def test_without_a_cached_price_cached_tokens_cost_as_much_as_others() -> None:
    model = "doubao-1-5-vision-pro-32k"
    assert cost(CARD, model, usage(100, 0, 60)).nano == cost(CARD, model, usage(100, 0)).nano


def test_every_shipped_price_is_exact_and_sourced() -> None:
    assert CARD.version == "ark-2026-10"
    for name, price in CARD.models.items():
        assert flaws(price) == (), name
        assert price.sources, name
        for tier in price.tiers:
            assert tier.input_nano > 0, name
            assert tier.output_nano > 0, name
            assert tier.cache_nano <= tier.input_nano, name


GOOD = '{name: flat, in: "0.80", cached: "0.16", out: "2.80"}'


@pytest.mark.parametrize(
    ("tiers", "says"),
    [
        ('{name: a, in: "0.8001", out: "1"}', "whole number of nano-CNY"),
        ('{name: a, in: "-1", out: "1"}', "whole number of nano-CNY"),
        ('{name: a, in: "NaN", out: "1"}', "whole number of nano-CNY"),
        ('{name: a, in: "cheap", out: "1"}', "not a price"),
        ('{name: a, in: 0.8, out: "1"}', "Expected `str`, got `float`"),
        ('{name: a, out: "1"}', "missing required field `in`"),
        ('{name: a, in: "1", out: "1", discount: "1"}', "discount"),
        ('{name: a, in: "1", in: "2", out: "1"}', "stands here twice"),
        ('{name: a, in: "99999", out: "1"}', "nano-CNY per token"),
        ('{name: a, prompt_to: 5, in: "1", out: "1"}', "the last tier has an end"),
        (f'{{name: a, prompt_to: 5, output_to: 5, in: "1", out: "1"}}, {GOOD}', "long outputs"),
        (f'{GOOD}, {{name: a, prompt_to: 5, in: "1", out: "1"}}', "ends before the one above"),
        ("", "there is no tier"),
    ],
)
def test_a_card_that_cannot_be_read_exactly_is_refused(
    tmp_path: Path, tiers: str, says: str
) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(f"version: v\nmodels:\n  m:\n    tiers: [{tiers}]\n")
    with pytest.raises(PriceCardError, match=says) as caught:
        load_card(path)
    assert str(path) in str(caught.value)


def test_a_card_in_another_currency_or_absent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    with pytest.raises(PriceCardError, match="No such file"):
        load_card(path)
    path.write_text("version: v\ncurrency: USD\nmodels: {}\n")
    with pytest.raises(PriceCardError, match="USD"):
        load_card(path)


@given(st.decimals(0, 10_000, places=3))
def test_three_decimals_are_always_exact(price: Decimal) -> None:
    assert nano_per_token(str(price)) == price * 1000


# ---- hostile usage

hostile = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([None, float("nan"), float("inf"), 1.5, "7", True, -1, 2**63]),
)


@settings(max_examples=200, deadline=None)
@given(hostile, hostile, hostile, hostile, hostile)
def test_hostile_usage_is_clamped_and_never_raises(
    prompt: Any, completion: Any, cached: Any, image: Any, reasoning: Any
) -> None:
    reported = Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=cached,
        image_tokens=image,
        reasoning_tokens=reasoning,
    )
    found = cost(CARD, "doubao-seed-1-8", reported)
    clean = found.usage
    assert 0 <= found.nano
    assert 0 <= clean.cached_tokens <= clean.prompt_tokens <= TOKENS_MAX
    assert 0 <= clean.reasoning_tokens <= clean.completion_tokens <= TOKENS_MAX
    assert sane(clean) == (clean, ())
    assert bool(found.flags) == (clean != reported or any(v is True for v in (prompt, completion)))


def test_flags_name_the_figure() -> None:
    flags = cost(CARD, "glm-5-2", usage(-5, 2**40, 3)).flags
    assert flags == (
        "prompt_tokens_negative", "completion_tokens_huge", "cached_tokens_above_whole",
    )  # fmt: skip


# ---- local


def test_local_cost_rounds_up() -> None:
    rate = LocalRate(nano_per_slot_s=1001)
    assert [local_cost(rate, ms) for ms in (-5, 0, 1, 999, 1000, 1001)] == [
        0,
        0,
        2,
        1000,
        1001,
        1003,
    ]


def test_local_rate_follows_its_formula() -> None:
    # 30,000 CNY over 3 years, 400 W at 0.80 CNY per kWh, 1,000 CNY a year; 8 slots, busy a quarter
    parts = {
        "hardware_cny": Decimal(36_000),
        "residual_cny": Decimal(6_000),
        "years": Decimal(3),
        "watts": Decimal(400),
        "cny_per_kwh": Decimal("0.80"),
        "upkeep_cny_per_year": Decimal(1_000),
    }
    per_s = 30_000 / (3 * 365 * 86_400) + 0.4 * 0.8 / 3600 + 1_000 / (365 * 86_400)
    one = local_rate(**parts, slots=1).nano_per_slot_s
    assert one == pytest.approx(per_s * 1e9, abs=1)
    busy_nano = local_rate(**parts, slots=8, busy_share=Decimal("0.25")).nano_per_slot_s
    assert busy_nano == pytest.approx(one / 2, abs=1)
    for wrong in ({"years": Decimal(0)}, {"residual_cny": Decimal(40_000)}, {"watts": Decimal(-1)}):
        with pytest.raises(ValueError, match=r"must be|cannot be"):
            local_rate(**{**parts, **wrong}, slots=1)
    with pytest.raises(ValueError, match="must be"):
        local_rate(**parts, slots=0)
