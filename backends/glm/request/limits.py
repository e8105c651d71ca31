"""What one request may ask for, apart from its text; each can be set on the command line."""

from __future__ import annotations

from dataclasses import dataclass

from backends.limits import CHOICES_MAX, IMAGES_MAX

# Of all pictures together: ten scans of the largest size, or thirty photos of a telephone. They are
# decoded one by one, so this bounds time (seconds), not memory.
IMAGES_PIXELS_MAX = 360_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """`choices_max`: answers to one request (`n`); `images_max`: pictures in one request, and
    `image_pixels_max` the height x width of all of them."""

    choices_max: int = CHOICES_MAX
    images_max: int = IMAGES_MAX
    image_pixels_max: int = IMAGES_PIXELS_MAX
