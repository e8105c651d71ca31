"""What a worker says of itself in JSON: our load report, a list of models, a state.

Foreign input: it is read, or it is a Failure, and nothing else. A number that no worker can mean is
a Failure as well: forecasts are made with it, for every request, and one that does not fit into a
float would be an error of them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from backends.base import Failure, Kind
from policies.types import Capability

T = TypeVar("T")

# Far beyond what any engine has.
COUNT_MAX = 1_000_000
TOKENS_MAX = 1_000_000_000
PACE_MIN, PACE_MAX = 1e-3, 1e7  # tokens per second; 0: not measured yet

Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Tokens = Annotated[int, Meta(ge=0, le=TOKENS_MAX)]
Pace = Annotated[float, Meta(ge=0, le=PACE_MAX)]


class ImageLimits(msgspec.Struct):
    factor: Annotated[int, Meta(ge=1, le=10_000)]
    min_pixels: Tokens
    max_pixels: Annotated[int, Meta(ge=1, le=TOKENS_MAX)]


class Report(msgspec.Struct):
    """A load report of our worker."""

    engine: str = ""
    model: str = ""
    pid: int = 0
    slots: Count = 1
    running: Count = 0
    waiting: Count = 0
    preparing: Count = 0
    waiting_tokens: Tokens = 0
    queue_limit: Count = 0
    decode_tokens_per_s: Pace = 0.0
    prefill_tokens_per_s: Pace = 0.0
    kv_tokens_used: Tokens = 0
    kv_tokens_total: Tokens = 0
    max_model_len: Tokens | None = None
    state: str = "ok"
    image_limits: ImageLimits | None = None
    adapters: list[str] = []

    def __post_init__(self) -> None:
        paces = self.decode_tokens_per_s, self.prefill_tokens_per_s
        if any(0 < pace < PACE_MIN for pace in paces):
            raise ValueError("slower than any engine")

    @property
    def kv_used(self) -> float:
        """Share of the key-value cache that is taken, 0..1."""
        if not self.kv_tokens_total:
            return 0.0
        return min(1.0, self.kv_tokens_used / self.kv_tokens_total)


class Named(msgspec.Struct):
    """Of a load report, who wrote it."""

    engine: str = ""


class Card(msgspec.Struct):
    """One entry of /v1/models."""

    id: str
    owned_by: str = ""
    max_model_len: Tokens | None = None
    capabilities: list[str] | None = None
    parent: str | None = None  # vLLM: of an adapter, the model that it stands on


class _Cards(msgspec.Struct):
    data: list[Card]


class Status(msgspec.Struct):
    status: str = ""


NAMED = msgspec.json.Decoder(Named)
REPORT = msgspec.json.Decoder(Report)
CARDS = msgspec.json.Decoder(_Cards)
STATUS = msgspec.json.Decoder(Status)


def read(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """Raises Failure when it is anything else."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise nonsense() from None


def maybe(decoder: msgspec.json.Decoder[T], data: bytes, otherwise: T) -> T:
    try:
        return read(decoder, data)
    except Failure:
        return otherwise


def nonsense() -> Failure:
    return Failure(Kind.BROKEN, "the worker answered a probe with something else")


def engine_of(card: Card) -> str:
    """The engine by the owner that it names for its models; "openai" when it is none we know."""
    return card.owned_by if card.owned_by in ("vllm", "sglang") else "openai"


def adapters_of(cards: Sequence[Card]) -> dict[str, str]:
    """Adapter -> the id to ask for. vLLM lists each as a model with a parent, under its bare name
    or, as SGLang and our worker spell it, behind the model's and a colon."""
    named = [card for card in cards if card.parent]
    return {card.id.removeprefix(f"{card.parent}:"): card.id for card in named}


def capabilities_of(names: Sequence[str]) -> frozenset[Capability]:
    """Those that the decision knows of; an engine may list others."""
    return frozenset(capability for capability in Capability if capability.value in names)
