"""transformers' own forward over our cache, for every architecture the lean step does not know.

The model sees a `Cache` that puts each token where its request's row continues, and gets masks and
positions spelt out, so rows of different lengths share one call.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache

from backends.glm.model.kv import KvCache, Piece, Window
from backends.glm.model.step import Step


class StockText:
    """The language model as transformers runs it."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def forward(self, step: Step, cache: KvCache) -> Any:
        """See `TextModel`. One call of the model for each piece of the step."""
        hidden = self._model.get_input_embeddings()(step.ids)
        if step.features is not None:
            hidden = hidden.index_copy(0, step.feature_at, step.features.to(hidden.dtype))
        found, start = [], 0
        for piece in step.pieces:
            end = start + piece.tokens
            rows, tokens = (piece.tokens, 1) if isinstance(piece, Window) else (1, piece.tokens)
            output = self._model.model.language_model(
                inputs_embeds=hidden[start:end].view(rows, tokens, -1),
                position_ids=step.positions[:, start:end].reshape(3, rows, tokens),
                attention_mask=_mask(piece, hidden),
                past_key_values=_PieceCache(cache, step.places[start:end], piece),
                use_cache=True,
            )
            found.append(output.last_hidden_state.view(piece.tokens, -1))
            start = end
        states = torch.cat(found)
        return self._model.lm_head(states if step.wanted is None else states[step.wanted])


def _mask(piece: Piece, like: Any) -> Any:
    """Added to scores, (rows, 1, queries, length)."""
    if isinstance(piece, Window):
        if piece.mask is None:
            return like.new_zeros(piece.tokens, 1, 1, piece.length)
        return piece.mask if piece.members is None else piece.mask[piece.members]
    seen = piece.mask
    if seen is None:
        seen = torch.ones(piece.tokens, piece.length, dtype=torch.bool, device=like.device).tril(
            piece.length - piece.tokens
        )
    return torch.zeros_like(seen, dtype=like.dtype).masked_fill_(~seen, -torch.inf)[None, None]


class _PieceCache(Cache):  # type: ignore[misc]
    """One piece's view of the cache, in the shape transformers asks for."""

    def __init__(self, cache: KvCache, places: Any, piece: Piece) -> None:
        super().__init__(layers=[])
        self._cache, self._places, self._piece = cache, places, piece

    def update(self, keys: Any, values: Any, layer_idx: int, *_: Any, **__: Any) -> Any:
        """(rows, heads, tokens, dim) of the new tokens -> all keys and values up to them."""
        piece = self._piece
        entries = torch.cat((keys, values), dim=1)  # (rows, 2 x heads, tokens, dim)
        entries = entries.transpose(1, 2).flatten(0, 1)
        self._cache.write(layer_idx, self._places, entries)
        if not isinstance(piece, Window):
            return self._cache.span(layer_idx, piece.place, piece.length)
        keys, values = self._cache.window(layer_idx, piece.first, piece.count, piece.length)
        if piece.members is None:
            return keys, values
        return keys[piece.members], values[piece.members]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Entries before this step."""
        piece = self._piece
        return piece.length - (1 if isinstance(piece, Window) else piece.tokens)
