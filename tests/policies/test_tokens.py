from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.ark.images import SEED_1_8, SEED_2_0, SEED_BEFORE_1_8
from policies.tokens import (
    ARK_IMAGE_TOKENS_MAX,
    IMAGE_FRAME_TOKENS,
    Detail,
    ImageFamily,
    PictureUnfit,
    ark_image_tokens_likely,
    ark_image_tokens_max,
    image_tokens,
    text_tokens_likely,
    text_tokens_max,
)
from policies.types import ImageSize, ModelTraits


def traits(pixels_min: int, pixels_max: int) -> ModelTraits:
    return ModelTraits(
        context_tokens=1,
        output_tokens_max=1,
        image_pixels_min=pixels_min,
        image_pixels_max=pixels_max,
    )


FLASH = traits(112 * 112 // 2, 9_633_792 // 2)  # the processor's figures are for two frames


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [(336, 336, 144), (640, 480, 391), (1024, 768, 999), (1280, 720, 1196), (1920, 1080, 2691),
     (2480, 3508, 6045), (3840, 2160, 6032), (4032, 3024, 6030), (1000, 20, 50)],
)  # fmt: skip
def test_glm_counts(width: int, height: int, tokens: int) -> None:
    size = ImageSize(width=width, height=height)
    assert image_tokens(FLASH, size) == tokens + IMAGE_FRAME_TOKENS


def test_glm_rule_is_that_of_the_installed_processor() -> None:
    """Against the image processor that the worker really uses, over sizes of every kind."""
    module = pytest.importorskip("transformers.models.glm46v.image_processing_pil_glm46v")
    rng = random.Random(46)
    sides = [1, 2, 27, 28, 29, 41, 42, 43, 56, 111, 112, 113, 2000, 5600, 9999]
    for longest in (9_633_792, 28 * 28 * 15_000, 112 * 112 * 2):
        processor = module.Glm46VImageProcessorPil(
            size={"shortest_edge": 112 * 112, "longest_edge": longest}
        )
        ours = traits(112 * 112 // 2, longest // 2)
        for _ in range(1500):
            w, h = (
                rng.choice(sides) if rng.random() < 0.3 else int(10 ** rng.uniform(0, 4.1))
                for _ in "wh"
            )
            try:
                theirs = processor.get_number_of_image_patches(h, w, {}) // 4
            except ValueError:
                with pytest.raises(PictureUnfit):
                    image_tokens(ours, ImageSize(width=w, height=h))
                continue
            found = image_tokens(ours, ImageSize(width=w, height=h)) - IMAGE_FRAME_TOKENS
            assert found == theirs, (w, h, longest)


def test_a_picture_without_pixels_is_unfit() -> None:
    with pytest.raises(PictureUnfit):
        image_tokens(FLASH, ImageSize(width=0, height=10))


# family, detail, size -> tokens that the vendor's own examples name
ARK_EXAMPLES = [
    (ImageFamily.BEFORE_1_8, Detail.HIGH, 1280, 720, 1176),
    (ImageFamily.BEFORE_1_8, Detail.LOW, 1920, 1080, 1312),
    (ImageFamily.BEFORE_1_8, Detail.HIGH, 1920, 1080, 2645),
    (ImageFamily.SEED_1_8, Detail.AUTO, 1280, 720, 522),
    (ImageFamily.SEED_1_8, Detail.AUTO, 2560, 1440, 2090),
    (ImageFamily.SEED_2, Detail.AUTO, 2560, 1440, 1280),
    (ImageFamily.SEED_2, Detail.LOW, 1920, 1080, 1176),
    (ImageFamily.SEED_2, Detail.XHIGH, 2560, 1440, 2090),
]


@pytest.mark.parametrize(("family", "detail", "width", "height", "tokens"), ARK_EXAMPLES)
def test_ark_bounds_hold_for_the_published_examples_and_are_close(
    family: ImageFamily, detail: Detail, width: int, height: int, tokens: int
) -> None:
    bound = ark_image_tokens_max(family, ImageSize(width=width, height=height), detail)
    assert tokens <= bound <= tokens + 2


@given(
    st.sampled_from(ImageFamily),
    st.sampled_from(Detail),
    st.integers(1, 20_000),
    st.integers(1, 20_000),
)
def test_an_unknown_size_is_bounded_by_the_dearest(
    family: ImageFamily, detail: Detail, width: int, height: int
) -> None:
    known = ark_image_tokens_max(family, ImageSize(width=width, height=height), detail)
    assert 1 <= known <= ark_image_tokens_max(family, None, detail) <= ARK_IMAGE_TOKENS_MAX


@given(st.text(max_size=200), st.integers(1, 5))
def test_likely_is_never_above_the_bound(text: str, messages: int) -> None:
    size = len(text.encode("utf-8", "surrogatepass"))
    likely = text_tokens_likely(len(text), size, messages=messages)
    assert 0 <= likely <= text_tokens_max(size, messages=messages)


def test_likely_counts_are_of_the_right_size() -> None:
    english = "The quick brown fox jumps over the lazy dog. " * 20
    chinese = "敏捷的棕色狐狸跳过了懒狗,然后回到树林里去休息。" * 20
    for text, low, high in ((english, 180, 260), (chinese, 240, 400)):
        likely = text_tokens_likely(len(text), len(text.encode()), messages=1)
        assert low <= likely <= high


_BACKEND_RULES = {
    ImageFamily.BEFORE_1_8: SEED_BEFORE_1_8,
    ImageFamily.SEED_1_8: SEED_1_8,
    ImageFamily.SEED_2: SEED_2_0,
}


@given(
    st.sampled_from(sorted(_BACKEND_RULES)),
    st.sampled_from([Detail.AUTO, Detail.LOW, Detail.HIGH, Detail.XHIGH]),
    st.integers(15, 6_000),
    st.integers(15, 6_000),
)
def test_two_readings_of_the_published_rule_agree(
    family: ImageFamily, detail: Detail, width: int, height: int
) -> None:
    """The dialect's and ours were written apart: here on pixels, there on the range of them."""
    rule = _BACKEND_RULES[family]
    size = ImageSize(width=width, height=height)
    if detail is not Detail.AUTO and detail not in rule.details:
        return  # the dialect refuses it before it can cost anything
    asked = None if detail is Detail.AUTO else detail.value
    likely = ark_image_tokens_likely(family, size, detail)
    assert likely == rule.tokens(width, height, asked)
    assert likely <= ark_image_tokens_max(family, size, detail)


def test_without_a_published_rule_nothing_is_likely() -> None:
    size = ImageSize(width=640, height=480)
    assert ark_image_tokens_likely(ImageFamily.UNKNOWN, size) is None
