"""Price cards as files: YAML with prices in CNY per million tokens, written as text.

    version: ark-2026-10
    valid_from: 2026-10-06              # a day in Beijing, from its midnight on
    valid_to: 2026-12-31                # the last day; without it: until another card begins
    models:
      doubao-seed-1-6-vision:
        images: before-1.8              # how the model counts pictures (policies.tokens)
        sources: [where it was read]
        per_request: "0.001"            # a fee of every call, in CNY
        tiers:                          # the online rate; all tokens of a request use one tier
          - {name: "<=32k", prompt_to: 32000, in: "0.80", cached: "0.16", out: "8.00"}
          - {name: ">32k", in: "1.20", cached: "0.16", out: "16.00"}
        fast: [...]                     # service_tier fast; likewise `low` and `batch`
        by_hour:                        # other prices at some hours of the online rate
          - hours: ["00:30-08:30"]      # in UTC+8; `unknown`: then the dearer is held and charged
            tiers: [...]

A price must be a whole number of nano-CNY per token, so at most three decimals; anything that is
not exactly readable is refused rather than rounded, and the error names the file and the line.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from gateway.config.read import ConfigError, Invalid, Node, build, from_yaml, text_of
from policies.price import (
    BEIJING_MS,
    Hours,
    ModelPrice,
    PriceBook,
    PriceCard,
    PriceList,
    Rate,
    Tier,
    flaws,
)
from policies.tokens import ImageFamily
from policies.types import NANO_PER_CNY

FOLDER: Final = Path(__file__).parent
SHIPPED: Final = (FOLDER / "ark-2026-09.yaml", FOLDER / "ark-2026-10.yaml")
DEFAULT_CARD: Final = SHIPPED[-1]

_NANO_PER_CNY_PER_MILLION: Final = 1000  # 1 CNY per 1e6 tokens is 1e9/1e6 nano-CNY per token
_CLOCK: Final = re.compile(r"([01]\d|2[0-4]):([0-5]\d)")

Day = Annotated[date, msgspec.Meta(description="a day such as 2026-10-06")]


class PriceCardError(Exception):
    """A price card that cannot be used; the message names the file and, where it can, the line."""


class _TierFile(msgspec.Struct, kw_only=True):
    name: str
    in_: str = msgspec.field(name="in")
    out: str
    cached: str | None = None
    prompt_to: Annotated[int, msgspec.Meta(ge=0)] | None = None
    output_to: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        for field, price in (("in", self.in_), ("out", self.out), ("cached", self.cached)):
            if price is not None:
                _checked(field, nano_per_token, price)

    def tier(self) -> Tier:
        return Tier(
            name=self.name,
            prompt_tokens_to=self.prompt_to,
            output_tokens_to=self.output_to,
            input_nano=nano_per_token(self.in_),
            cached_nano=None if self.cached is None else nano_per_token(self.cached),
            output_nano=nano_per_token(self.out),
        )


class _HoursFile(msgspec.Struct, kw_only=True):
    hours: tuple[str, ...]
    tiers: tuple[_TierFile, ...]

    def __post_init__(self) -> None:
        if self.hours != ("unknown",):
            for span in self.hours or ("",):
                _checked("hours", _hours, span)

    def list(self) -> PriceList:
        hours = None if self.hours == ("unknown",) else tuple(_hours(span) for span in self.hours)
        return PriceList(tiers=_tiers(self.tiers), hours=hours)


class _ModelFile(msgspec.Struct, kw_only=True):
    tiers: tuple[_TierFile, ...]
    by_hour: tuple[_HoursFile, ...] = ()
    fast: tuple[_TierFile, ...] = ()
    low: tuple[_TierFile, ...] = ()
    batch: tuple[_TierFile, ...] = ()
    per_request: str = "0"
    images: ImageFamily = ImageFamily.UNKNOWN
    sources: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        _checked("per_request", _nano, self.per_request)
        if found := flaws(self.price()):
            raise Invalid("tiers", "; ".join(found))

    def price(self) -> ModelPrice:
        rates = ((Rate.FAST, self.fast), (Rate.LOW, self.low), (Rate.BATCH, self.batch))
        return ModelPrice(
            tiers=_tiers(self.tiers),
            lists=(
                *(each.list() for each in self.by_hour),
                *(PriceList(rate=rate, tiers=_tiers(tiers)) for rate, tiers in rates if tiers),
            ),
            request_nano=_nano(self.per_request),
            image_family=self.images,
            sources=self.sources,
            note=self.note,
        )


class _CardFile(msgspec.Struct, kw_only=True):
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    valid_from: Day = date(1970, 1, 1)
    valid_to: Day | None = None
    currency: Literal["CNY"] = "CNY"  # the books are kept in it
    sources: dict[str, str] = {}
    note: str = ""

    def __post_init__(self) -> None:
        if self.valid_to is not None and self.valid_to < self.valid_from:
            raise Invalid("valid_to", "lies before valid_from")


def load_card(path: Path | None = None) -> PriceCard:
    """Reads a card; None: the newest shipped one. Raises PriceCardError for the first flaw."""
    path = DEFAULT_CARD if path is None else path
    card, problems = read_card(path)
    if card is None or problems:
        raise PriceCardError(f"price card {problems[0]}")
    return card


def read_card(path: Path) -> tuple[PriceCard | None, list[str]]:
    """A card, and everything that is wrong with it, each with its line. None: unreadable."""
    try:
        tree = from_yaml(text_of(path), path)
    except FileNotFoundError:
        return None, [f"{path}: there is no such file"]
    except ConfigError as error:
        return None, [str(error)]
    problems: list[str] = []
    models: dict[str, ModelPrice] = {}
    try:
        below = tree.value.pop("models", None) if isinstance(tree.value, dict) else None
        head = build(tree, _CardFile)
        if below is None:
            raise ConfigError(str(path), "models", "is required here")
        if not isinstance(below.value, dict):
            raise ConfigError(below.where, "models", "expected a section with keys of its own")
    except ConfigError as error:
        return None, [str(error)]
    for name, node in below.value.items():
        try:
            models[name] = _model(node, name, head.sources)
        except ConfigError as error:
            problems.append(str(error))
    to = None if head.valid_to is None else _midnight_ms(head.valid_to + timedelta(days=1))
    card = PriceCard(
        version=head.version, models=models, from_ms=_midnight_ms(head.valid_from), to_ms=to
    )
    return card, problems


def _model(node: Node, name: str, sources: dict[str, str]) -> ModelPrice:
    key = f"models.{name}"
    found = build(node, _ModelFile, key)
    for source in found.sources:
        if sources and source not in sources:
            text = f"{source!r} is not among the card's sources"
            raise ConfigError(node.value["sources"].where, f"{key}.sources", text)
    return found.price()


def load_book(paths: Iterable[Path] = ()) -> PriceBook:
    """Cards of files and of folders of files; none given: the shipped ones. Raises PriceCardError,
    also when two cards begin on the same day or have the same version."""
    given = tuple(paths)
    return _book(given) if given else _shipped()


@functools.cache
def _shipped() -> PriceBook:
    """Read once: they are part of the program, and do not change while it runs."""
    return _book(SHIPPED)


def _book(paths: Iterable[Path]) -> PriceBook:
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    if not files:
        raise PriceCardError("price cards: the folder holds no *.yaml file")
    read_ones = sorted(((load_card(file), file) for file in files), key=lambda it: it[0].from_ms)
    for (card, file), (later, other) in itertools.pairwise(read_ones):
        if card.from_ms == later.from_ms:
            raise PriceCardError(f"price cards {file} and {other} begin on the same day")
    versions = [card.version for card, _ in read_ones]
    if len(set(versions)) < len(versions):
        raise PriceCardError(f"price cards: a version is used twice: {', '.join(versions)}")
    return PriceBook(cards=tuple(card for card, _ in read_ones))


def nano_per_token(cny_per_million: str) -> int:
    """ "0.16" -> 160. Raises ValueError unless that is a whole, non-negative number of nanos."""
    return _exact(
        cny_per_million,
        _NANO_PER_CNY_PER_MILLION,
        "CNY per million is not a whole number of nano-CNY per token "
        "(at most three decimals, not negative)",
    )


def _nano(cny: str) -> int:
    return _exact(cny, NANO_PER_CNY, "CNY is not a whole number of nano-CNY")


def _exact(text: str, factor: int, wrong: str) -> int:
    try:
        nano = Decimal(text) * factor
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a price") from None
    if not nano.is_finite() or nano < 0 or nano != int(nano):
        raise ValueError(f"{text!r} {wrong}")
    return int(nano)


def _hours(span: str) -> Hours:
    start, dash, end = span.partition("-")
    found = [_CLOCK.fullmatch(part.strip()) for part in (start, end)]
    minutes = [int(each[1]) * 60 + int(each[2]) for each in found if each is not None]
    if not dash or len(minutes) < 2 or minutes[0] >= 1440 or max(minutes) > 1440:
        raise ValueError(f"{span!r} is not a time of the day such as 00:30-08:30, nor `unknown`")
    return Hours(from_min=minutes[0], to_min=minutes[1])


def _checked(field: str, reader: Any, value: str) -> None:
    try:
        reader(value)
    except ValueError as error:
        raise Invalid(field, str(error)) from None


def _tiers(files: tuple[_TierFile, ...]) -> tuple[Tier, ...]:
    return tuple(file.tier() for file in files)


def _midnight_ms(day: date) -> int:
    """When a day begins in Beijing, in milliseconds since 1970."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000) - BEIJING_MS
