"""What one request may ask for, apart from its text; each can be set on the command line."""

from __future__ import annotations

from dataclasses import dataclass

IMAGES_MAX = 64  # a bound on work per request; the context ends most requests earlier
CHOICES_MAX = 8  # each takes a slot of its own


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """`choices_max`: answers to one request (`n`); `images_max`: pictures in one request."""

    choices_max: int = CHOICES_MAX
    images_max: int = IMAGES_MAX
