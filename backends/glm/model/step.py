"""What one step of the model is given: the new tokens of many requests, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from backends.glm.model.kv import KvCache, Piece
from backends.glm.model.linears import RowOwners


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """T new tokens, those that one piece reads the cache for next to each other.

    `ids` (T,); `positions` (3, T): time, row, column; `places` (T,): where their keys go; `wanted`:
    the tokens whose logits are asked for, (W,), None: all T. `features` (F, width) replace the
    embeddings of the tokens `feature_at` (F,), where pictures stand. `adapters`: of the T tokens,
    `wanted_adapters`: of the W wanted ones; None: all are the base's.
    """

    ids: Any
    positions: Any
    places: Any
    pieces: Sequence[Piece]
    wanted: Any | None = None
    features: Any | None = None
    feature_at: Any | None = None
    adapters: RowOwners | None = None
    wanted_adapters: RowOwners | None = None


class TextModel(Protocol):
    """The language model, over a cache of rows."""

    def forward(self, step: Step, cache: KvCache) -> Any:
        """Writes the step's keys and values; logits (W, vocabulary)."""
        ...
