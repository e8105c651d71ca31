"""What a worker says of itself in JSON: our load report, a list of models, a state.

Foreign input: it is read, or it is a Failure, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from backends.base import Failure, Kind
from policies.types import Capability

T = TypeVar("T")


class ImageLimits(msgspec.Struct):
    factor: int
    min_pixels: int
    max_pixels: int


class Report(msgspec.Struct):
    """A load report of our worker; of any other engine, `engine` is empty."""

    engine: str = ""
    model: str = ""
    pid: int = 0
    slots: int = 1
    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    queue_limit: int = 0
    decode_tokens_per_s: float = 0.0
    prefill_tokens_per_s: float = 0.0
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0
    max_model_len: int | None = None
    state: str = "ok"
    image_limits: ImageLimits | None = None
    adapters: list[str] = []

    @property
    def kv_used(self) -> float:
        """Share of the key-value cache that is taken, 0..1."""
        if self.kv_tokens_total <= 0:
            return 0.0
        return min(1.0, max(0.0, self.kv_tokens_used / self.kv_tokens_total))


class Card(msgspec.Struct):
    """One entry of /v1/models."""

    id: str
    owned_by: str = ""
    max_model_len: int | None = None
    capabilities: list[str] | None = None
    parent: str | None = None  # vLLM: of an adapter, the model that it stands on


class _Cards(msgspec.Struct):
    data: list[Card]


class Status(msgspec.Struct):
    status: str = ""


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


def adapters_of(cards: Sequence[Card]) -> dict[str, str]:
    """Adapter -> the id to ask for. vLLM lists each as a model with a parent, under its bare name
    or, as SGLang and our worker spell it, behind the model's and a colon."""
    named = [card for card in cards if card.parent]
    return {card.id.removeprefix(f"{card.parent}:"): card.id for card in named}


def capabilities_of(names: Sequence[str]) -> frozenset[Capability]:
    """Those that the decision knows of; an engine may list others."""
    return frozenset(capability for capability in Capability if capability.value in names)
