"""How many tokens the pictures of a request stand for: at a worker, and on Ark's bill.

The rules for one picture are those of `policies.tokens`; here are all pictures of a request.
"""

from __future__ import annotations

from policies import tokens
from policies.price import PriceCard, Unpriced
from policies.types import Facts, ModelTraits


def local_image_tokens(traits: ModelTraits, facts: Facts) -> int | None:
    """Tokens of all pictures by GLM's rule; None when its processor would refuse one."""
    if not facts.images:
        return 0
    try:
        return sum(tokens.image_tokens(traits, size) for size in facts.images)
    except tokens.PictureUnfit:
        return None


def cloud_image_tokens_max(card: PriceCard, model: str, facts: Facts) -> int:
    """No more tokens than these are billed for all pictures by Ark."""
    if not facts.images and not facts.remote_images:
        return 0
    family = image_family(card, model)
    known = sum(
        tokens.ark_image_tokens_max(family, size, _detail(size.detail)) for size in facts.images
    )
    # of a picture that only Ark will see, neither its size nor its detail is looked at
    return known + facts.remote_images * tokens.ARK_IMAGE_TOKENS_MAX


def cloud_image_tokens_likely(card: PriceCard, model: str, facts: Facts) -> int:
    """What Ark should bill for all pictures; 0 when there are none, or one that cannot be known."""
    if not facts.images or facts.remote_images:
        return 0
    family = image_family(card, model)
    total = 0
    for size in facts.images:
        found = tokens.ark_image_tokens_likely(family, size, _detail(size.detail))
        if found is None:
            return 0
        total += found
    return total


def image_family(card: PriceCard, model: str) -> tokens.ImageFamily:
    """By which rule a cloud model counts pictures; unknown also when the card does not say."""
    try:
        return tokens.ImageFamily(card.price_of(model).image_family)
    except (Unpriced, ValueError):
        return tokens.ImageFamily.UNKNOWN


def _detail(asked: str | None) -> tokens.Detail:
    """An unknown detail is refused by the dialect before it can cost anything."""
    if asked is None or asked.upper() not in tokens.Detail.__members__:
        return tokens.Detail.AUTO
    return tokens.Detail[asked.upper()]
