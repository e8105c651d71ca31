"""The picture size rule of GLM-4.6V with the limits of this checkpoint.

The image processor of transformers applies the same rule at inference. A test holds them equal.
"""

from backends.glm.request.images import fitted_size

PATCH = 14
MERGE = 2
TEMPORAL = 2
FACTOR = PATCH * MERGE
# Both limits count TWO temporal frames of the same still picture. They are chosen so that a
# square of any size lands on 112x112 (16 image tokens) with room for rounding on both sides: the
# floor of 130/28 and the ceiling of 110.9/28 are both 4. At 130 a 4:3 photo becomes 140x112
# instead of 112x84, which keeps circles rounder.
SHORTEST_EDGE = 24_576
LONGEST_EDGE = 33_800
MAX_ASPECT = 200


def model_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) in pixels -> (height, width) in pixels that the vision tower sees."""
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise ValueError("the picture is more than 200 times longer than it is wide")
    return fitted_size(
        height=height,
        width=width,
        factor=FACTOR,
        frames=TEMPORAL,
        edges=(SHORTEST_EDGE, LONGEST_EDGE),
    )


def image_tokens(height: int, width: int) -> int:
    """How many <|image|> tokens a picture of this size in pixels costs."""
    high, wide = model_size(height, width)
    return (high // FACTOR) * (wide // FACTOR)
