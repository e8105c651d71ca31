"""Token counts before anything was tokenised: upper bounds for money, likely counts for time."""

from __future__ import annotations

import math
from enum import StrEnum

from policies.types import ImageSize, ModelTraits

# What a chat template adds. GLM-4.6V: two tokens open every text, a role tag and a newline come
# before each message, an opened answer and its empty thought follow. Tool calls and results have
# longer tags. The engines of others are not known as well, hence the room above that.
TEMPLATE_TOKENS = 32
MESSAGE_TOKENS = 16
IMAGE_FRAME_TOKENS = 2  # begin and end of a picture, beside the picture's own tokens

# Likely counts. GLM's vocabulary of 150,000 holds most English words and common Chinese pairs:
# about four letters and about a character and a half to a token.
_NARROW_CHARS_PER_TOKEN = 4.0
_WIDE_CHARS_PER_TOKEN = 1.5

ASPECT_RATIO_MAX = 200  # GLM's image processor refuses a longer picture


class PictureUnfit(ValueError):
    """A picture that the model's processor would refuse."""


def text_tokens_max(utf8_bytes: int, *, messages: int) -> int:
    """No chat of this size has more tokens, pictures aside.

    utf8_bytes: of all text that reaches the template: contents, names, tools, tool calls. A
    byte-level BPE starts from one token per byte and only ever merges, and a special token spelled
    out in the text takes several bytes. (A tokenizer that first decomposes its text could grow
    it; neither GLM's nor, as far as is known, Ark's models do.)
    """
    return utf8_bytes + messages * MESSAGE_TOKENS + TEMPLATE_TOKENS


def text_tokens_likely(chars: int, utf8_bytes: int, *, messages: int) -> int:
    """A fair guess for latency, never for money.

    It needs no look at the text: a character of one byte is taken as narrow (Latin), and the
    bytes beyond one per character tell how many are wide (CJK, three bytes each).
    """
    wide = min(chars, max(0, utf8_bytes - chars) / 2)
    text = (chars - wide) / _NARROW_CHARS_PER_TOKEN + wide / _WIDE_CHARS_PER_TOKEN
    return math.ceil(text) + messages * MESSAGE_TOKENS // 4


def image_tokens(traits: ModelTraits, size: ImageSize) -> int:
    """Tokens of one picture by GLM's rule, exact, with its begin and end tokens.

    Raises PictureUnfit for a picture that GLM's processor refuses. For Ark's own models use
    `ark_image_tokens_max`.
    """
    height, width = resized(traits, size)
    factor = traits.image_factor_px
    return (height // factor) * (width // factor) + IMAGE_FRAME_TOKENS


def resized(traits: ModelTraits, size: ImageSize) -> tuple[int, int]:
    """Height and width that GLM's processor scales a picture to.

    The rule of `smart_resize` in transformers' glm46v processor for a still picture. Its limits
    are given for two frames there (a picture is doubled), for one in `traits`; hence no factor 2.
    """
    factor, height, width = traits.image_factor_px, size.height, size.width
    if height < 1 or width < 1:
        raise PictureUnfit("a picture has at least one pixel")
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > ASPECT_RATIO_MAX:
        raise PictureUnfit(f"a picture is more than {ASPECT_RATIO_MAX} times as long as wide")
    # Python's round, to even at one half, is part of the rule
    out_h, out_w = round(height / factor) * factor, round(width / factor) * factor
    if out_h * out_w > traits.image_pixels_max:
        beta = math.sqrt((2 * height * width) / (2 * traits.image_pixels_max))
        out_h = max(factor, math.floor(height / beta / factor) * factor)
        out_w = max(factor, math.floor(width / beta / factor) * factor)
    elif out_h * out_w < traits.image_pixels_min:
        beta = math.sqrt((2 * traits.image_pixels_min) / (2 * height * width))
        out_h = math.ceil(height * beta / factor) * factor
        out_w = math.ceil(width * beta / factor) * factor
    return out_h, out_w


class ImageFamily(StrEnum):
    """Ark's model generations, which count pictures in different ways."""

    BEFORE_1_8 = "before-1.8"
    SEED_1_8 = "seed-1.8"
    SEED_2 = "seed-2"
    UNKNOWN = "unknown"  # GLM and DeepSeek on Ark publish no rule


class Detail(StrEnum):
    """The `detail` of an image part. Auto: the model's own default."""

    AUTO = "auto"
    LOW = "low"
    HIGH = "high"
    XHIGH = "xhigh"


# Pixels to a token, least tokens, most tokens by detail (Ark docs 82379/1362931, 2026-08-13).
_ARK_RULES: dict[ImageFamily, tuple[int, int, dict[Detail, int]]] = {
    ImageFamily.BEFORE_1_8: (
        28 * 28,
        4,
        {Detail.AUTO: 1312, Detail.LOW: 1312, Detail.HIGH: 5120, Detail.XHIGH: 5120},
    ),
    ImageFamily.SEED_1_8: (
        42 * 42,
        1,
        {Detail.AUTO: 5120, Detail.LOW: 1213, Detail.HIGH: 5120, Detail.XHIGH: 5120},
    ),
    ImageFamily.SEED_2: (
        42 * 42,
        1,
        {Detail.AUTO: 1280, Detail.LOW: 1280, Detail.HIGH: 1280, Detail.XHIGH: 5120},
    ),
}
ARK_IMAGE_TOKENS_MAX = 5120  # the most that any published rule gives
_ARK_WHOLE_FROM = 1280  # seed-2 high and xhigh: the table says never fewer, an example says so


def ark_image_tokens_max(
    family: ImageFamily, size: ImageSize | None, detail: Detail = Detail.AUTO
) -> int:
    """No picture of this size is billed with more tokens by Ark.

    size None: not known (a URL that only Ark will open). The published rule divides the pixels by
    784 or 1764 and rounds; a token is added for what "rounds" may mean. For seed-2 at high detail
    the table names a fixed 1280 and an example less: the table is the bound.
    """
    rule = _ARK_RULES.get(family)
    if rule is None:
        return ARK_IMAGE_TOKENS_MAX
    pixels_per_token, least, most_by_detail = rule
    most = most_by_detail[detail]
    if size is None:
        return most
    by_size = math.ceil(size.width * size.height / pixels_per_token) + 1
    if family is ImageFamily.SEED_2 and detail is not Detail.LOW:
        least = _ARK_WHOLE_FROM
    return min(most, max(least, by_size))


def ark_image_tokens_likely(
    family: ImageFamily, size: ImageSize, detail: Detail = Detail.AUTO
) -> int | None:
    """What a picture of this size should be billed with by Ark; None: no rule is published.

    The pixels, scaled into the range of the detail, over the pixels of a token, to the nearest:
    every published example fits that. For seed-2 at high detail the table names a fixed 1280 and
    an example 697 for 1280x960. The table is expected here; what is billed tells which is right.
    """
    rule = _ARK_RULES.get(family)
    if rule is None:
        return None
    pixels_per_token, least, most_by_detail = rule
    if family is ImageFamily.SEED_2 and detail is not Detail.LOW:
        least = _ARK_WHOLE_FROM
    by_size = (2 * size.width * size.height + pixels_per_token) // (2 * pixels_per_token)
    return min(most_by_detail[detail], max(least, by_size))
