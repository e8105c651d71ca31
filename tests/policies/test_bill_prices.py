from __future__ import annotations

import pytest

from gateway.prices.cards import load_book
from policies.bill import Lane, Open
from policies.bill_prices import (
    Cards,
    band_named,
    bands,
    cost_of,
    endpoint_models,
    place_name,
    undated,
)
from policies.price import Hours, ModelPrice, PriceCard, PriceList, Rate, Tier, cost
from policies.types import Usage

BOOK = load_book()
CARD = BOOK.cards[-1]


def test_a_band_begins_above_the_one_before() -> None:
    found = [(b.input_over, b.output_over, b.row_name) for b in bands(CARD, "doubao-seed-1-8")]
    assert found == [
        (0, 0, "<=32k, out<=0.2k"),
        (0, 200, "<=32k"),
        (32_000, 0, "<=128k"),
        (128_000, 0, ">128k"),
    ]


def test_every_band_of_every_card_is_found_again_by_both_its_names() -> None:
    for card in BOOK.cards:
        for model in card.models:
            for band in bands(card, model):
                assert band_named(card, model, band.row_name) == band
                place = place_name(card, model, band.where)
                assert place == band.row_name or band.tier.name == "off-peak"


def test_other_hours_share_the_place_of_the_usual_ones() -> None:
    day, night = (Tier(name=n, input_nano=1, output_nano=1) for n in ("day", "night"))
    lists = (PriceList(tiers=(night,), hours=(Hours(from_min=0, to_min=60),)),)
    card = PriceCard(version="t", models={"m": ModelPrice(tiers=(day,), lists=lists)})
    band = band_named(card, "m", "night")
    assert band is not None
    assert place_name(card, "m", band.where) == "day"


@pytest.mark.parametrize(
    ("model", "where", "name"),
    [
        ("doubao-seed-1-8", ("online", 32_000, 0), "<=128k"),
        ("doubao-seed-2-0-pro", ("fast", 32_000, 0), "fast <=128k"),
        ("doubao-seed-1-8", ("online", 9, 0), "online >9, out>0"),
        ("doubao-seed-1-8", ("express", 0, 0), "express >0, out>0"),
        ("nobody", ("online", 0, 0), "online >0, out>0"),
    ],
)
def test_a_band_has_a_name_also_when_the_card_has_none(
    model: str, where: tuple[str, int, int], name: str
) -> None:
    assert place_name(CARD, model, where) == name


def test_the_parts_add_up_to_what_the_whole_costs() -> None:
    usage = Usage(prompt_tokens=40_000, completion_tokens=300, cached_tokens=7)
    whole = cost(CARD, "doubao-seed-1-8", usage)
    band = band_named(CARD, "doubao-seed-1-8", whole.tier)
    assert band is not None
    assert sum(cost_of(band.tier, (39_993, 7, 300))) == whole.nano


def test_an_open_hold_is_priced_by_the_card_it_was_held_by() -> None:
    def hold(card: str, model: str = "glm-4-7") -> Open:
        return Open(hold_id="h", from_ms=0, to_ms=0, lane=Lane(model, ""), posted_nano=1, card=card)

    cards = Cards(BOOK)
    assert cards.tier_of(hold("ark-2026-09"), (32_000, 0, 200)) == "<=32k, out<=0.2k"
    assert cards.tier_of(hold("ark-2026-09"), (31_000, 1_001, 200)) == ">32k"
    assert cards.nano(hold("ark-2026-10"), ">32k", (1, 1, 1)) == (4_000, 800, 16_000)
    assert cards.nano(hold("ark-2026-10"), "fast >32k", (1, 1, 1)) is None
    for unknown in (hold("ark-1999"), hold("ark-2026-10", "nobody")):
        assert cards.tier_of(unknown, (1, 0, 1)) is None
        assert cards.nano(unknown, "flat", (1, 0, 1)) is None


def test_names_as_a_bill_has_them() -> None:
    assert undated("doubao-seed-1-8-251228") == "doubao-seed-1-8"
    assert undated("doubao-seed-evolving") == "doubao-seed-evolving"
    assert undated("-251228") == "-251228"
    known = {"ep-1": "glm-5-2-260617"}
    assert endpoint_models(known, "ep-1", "other") == "glm-5-2-260617"
    assert endpoint_models(known, "ep-2", "glm-4-7-251222") == "glm-4-7-251222"
    assert endpoint_models(known, "ep-2", "") == "ep-2"
    assert endpoint_models(known, "glm-5-2-260617", "other") == "glm-5-2-260617"
    assert {band.rate for band in bands(CARD, "doubao-seed-2-0-pro")} == {Rate.ONLINE, Rate.FAST}
