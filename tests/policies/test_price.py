from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.prices.cards import FOLDER, PriceCardError, load_book, load_card, nano_per_token
from policies.price import (
    NO_CARD,
    TOKENS_MAX,
    Hours,
    ModelPrice,
    PriceBook,
    PriceCard,
    PriceList,
    Rate,
    Tier,
    Unpriced,
    cost,
    flaws,
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


nanos = st.integers(0, 50)
DAY_MS = 86_400_000
BEIJING_10_00 = 2 * 3_600_000  # 02:00 UTC


@st.composite
def prices(draw: st.DrawFn) -> ModelPrice:
    """Any valid prices, also with shapes that Ark does not have (dearer when cached)."""
    lists = []
    for each in draw(st.lists(st.sampled_from(["known", "unknown", "fast"]), max_size=2)):
        given = {"known": (Hours(from_min=0, to_min=600),), "unknown": None, "fast": ()}[each]
        rate = Rate.FAST if each == "fast" else Rate.ONLINE
        lists.append(PriceList(rate=rate, hours=given, tiers=draw(tiers(f"{len(lists)} "))))
    return ModelPrice(tiers=draw(tiers("")), lists=tuple(lists), request_nano=draw(nanos))


@st.composite
def tiers(draw: st.DrawFn, prefix: str) -> tuple[Tier, ...]:
    bands = sorted(draw(st.sets(st.integers(1, 20), max_size=3)))
    return tuple(
        Tier(
            name=f"{prefix}{to}/{out}",
            prompt_tokens_to=to,
            output_tokens_to=out,
            input_nano=draw(nanos),
            cached_nano=draw(st.none() | nanos),
            output_nano=draw(nanos),
        )
        for to in [*bands, None]
        for out in [*sorted(draw(st.sets(st.integers(1, 20), max_size=2))), None]
    )


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


@settings(max_examples=100, deadline=None)
@given(prices(), st.integers(0, 12), st.integers(0, 12))
def test_the_quote_is_the_dearest_of_all_usages(price: ModelPrice, prompt: int, out: int) -> None:
    """Not only an upper bound but the least one: every usage is tried."""
    assert flaws(price) == ()
    card = PriceCard(version="t", models={"m": price})
    dearest = max(
        cost(card, "m", usage(p, c, cached), at_ms=at_ms).nano
        for at_ms in (None, 0, BEIJING_10_00)  # midnight in UTC is 08:00, within the known hours
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
        ('{name: a, in: 0.8, out: "1"}', r"tiers\[0\].in: 0.8 is not allowed; expected text"),
        ('{name: a, out: "1"}', r"tiers\[0\].in: is required here"),
        ('{name: a, in: "1", out: "1", discount: "1"}', "discount: unknown key"),
        ('{name: a, in: "1", in: "2", out: "1"}', "given twice"),
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
    assert re.match(rf"price card {path}:4: models\.m\.tiers", str(caught.value))


def test_a_card_in_another_currency_or_absent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    with pytest.raises(PriceCardError, match="there is no such file"):
        load_card(path)
    path.write_text("version: v\ncurrency: USD\nmodels: {}\n")
    with pytest.raises(PriceCardError, match=r"card.yaml:2: currency: 'USD' .* CNY"):
        load_card(path)


@given(st.decimals(0, 10_000, places=3))
def test_three_decimals_are_always_exact(price: Decimal) -> None:
    assert nano_per_token(str(price)) == price * 1000


# ---- rates, hours, fees, and cards of their time


def hourly(*hours: Hours, off: int = 10) -> PriceCard:
    """100 a token, or `off` at some hours; None given: at hours that nobody knows."""
    usual = (Tier(name="peak", input_nano=100, output_nano=0),)
    other = (Tier(name="off", input_nano=off, output_nano=0),)
    lists = (PriceList(tiers=other, hours=hours or None),)
    return PriceCard(version="t", models={"m": ModelPrice(tiers=usual, lists=lists)})


@pytest.mark.parametrize(
    ("minute", "tier"), [(0, "off"), (509, "off"), (510, "peak"), (1_379, "peak"), (1_380, "off")]
)
def test_the_hour_in_beijing_chooses_the_prices(minute: int, tier: str) -> None:
    """23:00 to 08:30, over midnight; the epoch is 08:00 there."""
    card = hourly(Hours(from_min=23 * 60, to_min=8 * 60 + 30))
    at_ms = 20_000 * DAY_MS + (minute - 8 * 60) * 60_000
    found = cost(card, "m", usage(7, 0), at_ms=at_ms)
    assert (found.tier, found.flags) == (tier, ())
    assert found.nano == 7 * (100 if tier == "peak" else 10)
    last_ms = at_ms + 59_999
    assert cost(card, "m", usage(7, 0), at_ms=last_ms) == found


@pytest.mark.parametrize("off", [10, 1_000])
def test_hours_that_nobody_knows_cost_the_dearer_and_say_so(off: int) -> None:
    found = cost(hourly(off=off), "m", usage(7, 0), at_ms=0)
    assert (found.nano, found.flags) == (7 * max(off, 100), ("price_hour_unknown",))
    assert cost(hourly(off=100), "m", usage(7, 0), at_ms=0).flags == ()


def test_a_peak_that_may_begin_meanwhile_is_held() -> None:
    card = hourly(Hours(from_min=0, to_min=600), off=1_000)
    assert quote(card, "m", prompt_tokens_max=7, output_tokens_max=0).nano == 7_000


def test_each_rate_has_its_own_prices_and_none_is_made_up() -> None:
    fast = cost(CARD, "doubao-seed-2-0-pro", usage(32_001, 1, 100), rate=Rate.FAST)
    assert (fast.nano, fast.tier) == (32_001 * 14_400 + 72_000, "fast <=128k")
    low = cost(CARD, "doubao-seed-2-1-pro-260915", usage(100, 10, 60), rate=Rate.LOW)
    assert (low.nano, low.tier) == (40 * 3_000 + 60 * 1_200 + 10 * 15_000, "low flat")
    batch = cost(CARD, "doubao-seed-1-6-vision", usage(100, 10), rate=Rate.BATCH)
    assert batch.nano * 2 == cost(CARD, "doubao-seed-1-6-vision", usage(100, 10)).nano
    for rate in (Rate.FAST, Rate.BATCH):
        with pytest.raises(Unpriced, match=rate.value):
            cost(CARD, "glm-5-2", usage(1, 1), rate=rate)
        with pytest.raises(Unpriced, match=rate.value):
            quote(CARD, "glm-5-2", prompt_tokens_max=1, output_tokens_max=1, rate=rate)


def test_the_articles_call_costs_what_its_prices_say() -> None:
    """300 in and 150 out at 0.015 and 0.025 a thousand and 0.001 a call: 0.00925 CNY."""
    card = load_card(FOLDER / "article.yaml")
    assert cost(card, "article", usage(300, 150)).nano == 9_250_000
    assert quote(card, "article", prompt_tokens_max=300, output_tokens_max=150).nano == 9_250_000
    assert cost(card, "article", usage(0, 0)).nano == 1_000_000


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def test_a_request_is_priced_by_the_card_of_its_time() -> None:
    book = load_book()
    last = ms("2026-10-05T23:59:59.999+08:00")
    assert book.at(last).version == "ark-2026-09"
    assert book.at(last + 1).version == "ark-2026-10"
    assert book.at(ms("2027-06-01T00:00:00+08:00")).version == "ark-2026-10"
    before = ms("2026-08-31T23:59:59+08:00")
    assert book.at(before) is NO_CARD
    assert book.until_ms(before) == ms("2026-09-01T00:00:00+08:00")
    assert book.until_ms(last) == last + 1
    assert book.until_ms(last + 1) is None
    assert book.version("ark-2026-09") is book.cards[0]
    assert book.version("ark-1999") is None
    with pytest.raises(Unpriced):  # sold from October on only
        book.at(last).price_of("doubao-seed-2-1-lite-260915")
    with pytest.raises(Unpriced):
        NO_CARD.price_of("glm-5-2")


def test_a_gap_between_cards_prices_nothing() -> None:
    first = PriceCard(version="a", models={}, from_ms=10, to_ms=20)
    book = PriceBook(cards=(first, PriceCard(version="b", models={}, from_ms=30)))
    assert [book.at(at).version for at in (9, 10, 19, 20, 29, 30)] == [
        "none", "a", "a", "none", "none", "b",
    ]  # fmt: skip
    assert [book.until_ms(at) for at in (0, 10, 20, 30)] == [10, 20, 30, None]


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
