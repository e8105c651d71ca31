"""How many tokens a picture costs on Ark, by model family and detail.

A picture whose area lies outside the range of its detail is scaled proportionally into it; it then
costs one token for each square of 28 or 42 pixels' side, rounded to nearest (every published
example fits that), within the range of tokens of the detail. Source: docs 82379/1362931.

The table says that `high` is a fixed 1280 tokens from seed-2.0 on, its worked example says that
1280x960 costs 697. The table is followed here because a hold must never be too small; what the
service reports as used is the truth.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class DetailRange(msgspec.Struct, frozen=True, kw_only=True):
    """What one value of `detail` allows: area in pixels and tokens, both inclusive."""

    pixels_min: int
    pixels_max: int
    tokens_min: int
    tokens_max: int


class ImageRule(msgspec.Struct, frozen=True, kw_only=True):
    """The rule of one model family."""

    side_px: int  # one token covers a square of this side
    details: Mapping[str, DetailRange]
    default: str  # used when the caller names no detail

    def tokens(
        self,
        width: int,
        height: int,
        detail: str | None = None,
        pixel_limit: tuple[int, int] | None = None,
    ) -> int:
        """Tokens of one picture. `pixel_limit` is (min, max) in pixels and overrides `detail`.

        Raises KeyError for a detail that the family does not have.
        """
        span = self.details[detail or self.default]
        if pixel_limit is not None:
            span = self._limited(*pixel_limit)
        pixels = min(max(width * height, span.pixels_min), span.pixels_max)
        square = self.side_px * self.side_px
        tokens = (2 * pixels + square) // (2 * square)
        return min(max(tokens, span.tokens_min), span.tokens_max)

    def _limited(self, pixels_min: int, pixels_max: int) -> DetailRange:
        """The caller's own range, cut to what the family accepts at all."""
        return DetailRange(
            pixels_min=max(pixels_min, min(span.pixels_min for span in self.details.values())),
            pixels_max=min(pixels_max, self.pixels_max),
            tokens_min=min(span.tokens_min for span in self.details.values()),
            tokens_max=max(span.tokens_max for span in self.details.values()),
        )

    @property
    def pixels_max(self) -> int:
        """No picture counts as more pixels than this, whatever its detail."""
        return max(span.pixels_max for span in self.details.values())

    @property
    def pixels_floor(self) -> int:
        """A picture below this counts as this many pixels under the costliest detail.

        Together with `pixels_max` and `side_px` it gives an upper bound over all details.
        """
        return max(span.pixels_min for span in self.details.values())


SEED_BEFORE_1_8 = ImageRule(
    side_px=28,
    details={
        "low": DetailRange(pixels_min=3136, pixels_max=1_048_576, tokens_min=4, tokens_max=1312),
        "high": DetailRange(pixels_min=3136, pixels_max=4_014_080, tokens_min=4, tokens_max=5120),
    },
    default="low",
)

SEED_1_8 = ImageRule(
    side_px=42,
    details={
        "low": DetailRange(pixels_min=1764, pixels_max=2_139_732, tokens_min=1, tokens_max=1213),
        "high": DetailRange(pixels_min=1764, pixels_max=9_031_680, tokens_min=1, tokens_max=5120),
    },
    default="high",
)

SEED_2_0 = ImageRule(
    side_px=42,
    details={
        "low": DetailRange(pixels_min=1764, pixels_max=2_257_920, tokens_min=1, tokens_max=1280),
        "high": DetailRange(
            pixels_min=2_257_920, pixels_max=2_257_920, tokens_min=1280, tokens_max=1280
        ),
        "xhigh": DetailRange(
            pixels_min=2_257_920, pixels_max=9_031_680, tokens_min=1280, tokens_max=5120
        ),
    },
    default="high",
)

# Nothing is published for GLM and DeepSeek on Ark. The costliest of the published rules is taken,
# whatever the detail, so that a hold made with it is not low.
THIRD_PARTY = ImageRule(
    side_px=28,
    details={
        name: DetailRange(pixels_min=3136, pixels_max=4_014_080, tokens_min=4, tokens_max=5120)
        for name in ("low", "high")
    },
    default="high",
)
