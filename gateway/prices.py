"""Price cards as files: YAML with prices in CNY per million tokens, written as text.

    version: ark-2026-10
    models:
      doubao-seed-1-6-vision:
        images: before-1.8              # how the model counts pictures (policies.tokens)
        sources: [where it was read]
        tiers:
          - {name: "<=32k", prompt_to: 32000, in: "0.80", cached: "0.16", out: "8.00"}
          - {name: ">32k", in: "1.20", cached: "0.16", out: "16.00"}

A price must be a whole number of nano-CNY per token, so at most three decimals; anything that is
not exactly readable is refused rather than rounded.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from policies.price import ModelPrice, PriceCard, Tier, flaws
from policies.tokens import ImageFamily

DEFAULT_CARD: Final = Path(__file__).parent / "prices" / "ark-2026-10.yaml"

_NANO_PER_CNY_PER_MILLION: Final = 1000  # 1 CNY per 1e6 tokens is 1e9/1e6 nano-CNY per token


class PriceCardError(Exception):
    """A price card that cannot be used; the message names the file, the model and the tier."""


class _TierFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    name: str
    in_: str = msgspec.field(name="in")
    out: str
    cached: str | None = None
    prompt_to: int | None = None
    output_to: int | None = None


class _ModelFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    tiers: list[_TierFile]
    images: ImageFamily = ImageFamily.UNKNOWN
    sources: list[str] = []
    note: str = ""


class _CardFile(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    version: str
    models: dict[str, _ModelFile]
    currency: str = "CNY"
    sources: dict[str, str] = {}
    note: str = ""


def load_card(path: Path | None = None) -> PriceCard:
    """Reads a card; None: the shipped one. Raises PriceCardError."""
    path = DEFAULT_CARD if path is None else path
    try:
        file = msgspec.convert(_UniqueKeys(path.read_text("utf-8")).get_single_data(), _CardFile)
        if file.currency != "CNY":
            raise ValueError(f"the currency is {file.currency}, and the books are kept in CNY")
        models = {name: _model(name, model) for name, model in file.models.items()}
    except OSError as error:
        raise PriceCardError(f"price card {path}: {error.strerror}") from error
    except (yaml.YAMLError, msgspec.ValidationError, ValueError) as error:
        raise PriceCardError(f"price card {path}: {error}") from error
    return PriceCard(version=file.version, models=models)


def nano_per_token(cny_per_million: str) -> int:
    """ "0.16" -> 160. Raises ValueError unless that is a whole, non-negative number of nanos."""
    try:
        nano = Decimal(cny_per_million) * _NANO_PER_CNY_PER_MILLION
    except InvalidOperation:
        raise ValueError(f"{cny_per_million!r} is not a price") from None
    if not nano.is_finite() or nano < 0 or nano != int(nano):
        raise ValueError(
            f"{cny_per_million!r} CNY per million is not a whole number of nano-CNY per token "
            "(at most three decimals, not negative)"
        )
    return int(nano)


def _model(name: str, file: _ModelFile) -> ModelPrice:
    tiers = []
    for tier in file.tiers:
        try:
            tiers.append(
                Tier(
                    name=tier.name,
                    prompt_tokens_to=tier.prompt_to,
                    output_tokens_to=tier.output_to,
                    input_nano=nano_per_token(tier.in_),
                    cached_nano=None if tier.cached is None else nano_per_token(tier.cached),
                    output_nano=nano_per_token(tier.out),
                )
            )
        except ValueError as error:
            raise ValueError(f"model {name}, tier {tier.name}: {error}") from None
    price = ModelPrice(
        tiers=tuple(tiers), image_family=file.images, sources=tuple(file.sources), note=file.note
    )
    found = flaws(price)
    if found:
        raise ValueError(f"model {name}: {'; '.join(found)}")
    return price


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice: the second price would win unseen."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} stands here twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)
