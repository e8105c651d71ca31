from __future__ import annotations

import pytest

from policies.pictures import (
    cloud_image_tokens_likely,
    cloud_image_tokens_max,
    image_family,
    local_image_tokens,
)
from policies.price import ModelPrice, PriceCard, Tier
from policies.tokens import ImageFamily
from policies.types import ImageSize
from tests.policies.builders import CARD, TRAITS, facts


def _card(family: str) -> PriceCard:
    tier = Tier(name="flat", input_nano=1, output_nano=1)
    return PriceCard(version="t", models={"eye": ModelPrice(tiers=(tier,), image_family=family)})


def test_pictures_that_nobody_sends_cost_nothing() -> None:
    assert cloud_image_tokens_max(CARD, "no such model", facts()) == 0
    assert local_image_tokens(TRAITS, facts()) == 0


def test_a_picture_that_the_processor_refuses() -> None:
    asked = facts(images=(ImageSize(width=0, height=5),))
    assert local_image_tokens(TRAITS, asked) is None


@pytest.mark.parametrize(
    ("family", "images", "remote", "expected"),
    [
        ("before-1.8", ((1280, 720), (1920, 1080)), 0, 1_176 + 1_312),  # the documented examples
        ("seed-1.8", ((1280, 720), (1920, 1080)), 0, 522 + 1_176),
        ("seed-2", ((1280, 960),), 0, 1_280),
        ("unknown", ((1280, 960),), 0, 0),
        ("seed-2", ((1280, 960),), 1, 0),  # nobody has seen that one
        ("seed-2", (), 0, 0),
    ],
)
def test_what_pictures_should_be_billed_with(
    family: str, images: tuple[tuple[int, int], ...], remote: int, expected: int
) -> None:
    card = _card(family)
    sizes = tuple(ImageSize(width=w, height=h) for w, h in images)
    asked = facts(images=sizes, remote_images=remote)
    assert cloud_image_tokens_likely(card, "eye", asked) == expected
    assert cloud_image_tokens_max(card, "eye", asked) >= expected


@pytest.mark.parametrize("model", ["eye", "no such model"])
def test_a_card_that_says_no_rule_or_one_of_a_later_day_is_unknown(model: str) -> None:
    assert image_family(_card("seed-2"), "eye") is ImageFamily("seed-2")
    assert image_family(_card("of a later day"), model) is ImageFamily.UNKNOWN


def test_every_picture_that_only_ark_sees_counts_as_the_largest() -> None:
    seen = facts(images=(ImageSize(width=28, height=28),))
    both = facts(images=(ImageSize(width=28, height=28),), remote_images=3)
    known = cloud_image_tokens_max(_card("seed-2"), "eye", seen)
    assert cloud_image_tokens_max(_card("seed-2"), "eye", both) == known + 3 * 5_120
