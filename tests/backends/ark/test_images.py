from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.ark.images import SEED_1_8, SEED_2_0, SEED_BEFORE_1_8, THIRD_PARTY, ImageRule
from backends.ark.models import CATALOGUE
from policies.tokens import Detail, ImageFamily, ark_image_tokens_max
from policies.types import ImageSize

FAMILIES = {
    ImageFamily.BEFORE_1_8: SEED_BEFORE_1_8,
    ImageFamily.SEED_1_8: SEED_1_8,
    ImageFamily.SEED_2: SEED_2_0,
    ImageFamily.UNKNOWN: THIRD_PARTY,
}


@pytest.mark.parametrize(
    ("rule", "size", "detail", "tokens"),
    [
        # the published examples
        (SEED_BEFORE_1_8, (1280, 720), "high", 1176),
        (SEED_1_8, (1280, 720), None, 522),
        (SEED_BEFORE_1_8, (1920, 1080), None, 1312),
        (SEED_BEFORE_1_8, (1920, 1080), "high", 2645),
        (SEED_1_8, (1920, 1080), None, 1176),
        (SEED_2_0, (2560, 1440), "low", 1280),
        (SEED_2_0, (1280, 960), "low", 697),
        # the table against the worked example: the table, which is never too small
        (SEED_2_0, (1280, 960), None, 1280),
        (SEED_2_0, (1280, 960), "xhigh", 1280),
        # the ends of the ranges
        (SEED_BEFORE_1_8, (15, 15), None, 4),
        (SEED_BEFORE_1_8, (6000, 6000), "high", 5120),
        (SEED_1_8, (15, 15), "low", 1),
        (SEED_1_8, (6000, 6000), "low", 1213),
        (SEED_1_8, (6000, 6000), "high", 5120),
        (SEED_2_0, (6000, 6000), "xhigh", 5120),
    ],
)
def test_tokens_of_a_picture(
    rule: ImageRule, size: tuple[int, int], detail: str | None, tokens: int
) -> None:
    assert rule.tokens(*size, detail) == tokens


def test_a_pixel_limit_counts_before_the_detail() -> None:
    assert SEED_2_0.tokens(4000, 4000, "high", (1764, 176_400)) == 100
    assert SEED_2_0.tokens(15, 15, "low", (1_764_000, 36_000_000)) == 1000


def test_an_unknown_detail_is_an_error() -> None:
    with pytest.raises(KeyError):
        SEED_BEFORE_1_8.tokens(100, 100, "xhigh")


@given(
    name=st.sampled_from([name for name, model in CATALOGUE.items() if model.image_rule]),
    width=st.integers(15, 6000),
    height=st.integers(15, 6000),
)
def test_what_the_decision_holds_for_a_picture_is_an_upper_bound(
    name: str, width: int, height: int
) -> None:
    rule, traits = CATALOGUE[name].image_rule, CATALOGUE[name].traits
    assert rule is not None
    pixels = min(max(width * height, traits.image_pixels_min), traits.image_pixels_max)
    bound = -(-pixels // traits.image_factor_px**2)
    assert max(rule.tokens(width, height, detail) for detail in rule.details) <= bound


@given(
    family=st.sampled_from(list(FAMILIES)),
    width=st.integers(15, 6000),
    height=st.integers(15, 6000),
)
def test_what_is_held_for_a_picture_is_never_less_than_what_the_emulator_bills(
    family: ImageFamily, width: int, height: int
) -> None:
    rule, size = FAMILIES[family], ImageSize(width=width, height=height)
    for detail in (None, *rule.details):
        held = ark_image_tokens_max(family, size, Detail(detail or "auto"))
        assert rule.tokens(width, height, detail) <= held
