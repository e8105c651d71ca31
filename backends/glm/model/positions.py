"""M-RoPE positions of a prompt: three numbers a token, time, row and column.

transformers computes the same in `get_rope_index`, and keeps the offset that follows from it on
the module (`rope_deltas`), where two requests would overwrite each other's. Here both belong to the
request. Equality is held by a test.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from backends.glm.types import Prompt

Positions = np.ndarray[Any, np.dtype[np.int64]]


def rope_positions(prompt: Prompt) -> tuple[Positions, int]:
    """Positions (3, n) of the prompt's n tokens, and what to add to the cache length afterwards.

    Text counts on in all three. A picture of r x c merged patches spans r rows and c columns from
    where it stands, and advances the position by max(r, c) only, so positions run behind the
    cache length from then on.
    """
    count = len(prompt.ids)
    if prompt.pixels is None:
        return np.broadcast_to(np.arange(count), (3, count)), 0
    found = np.empty((3, count), dtype=np.int64)
    places = np.flatnonzero(prompt.token_types)
    at = position = taken = 0
    for (frames, high, wide), tokens in zip(
        prompt.pixels.grid.tolist(), prompt.pixels.tokens, strict=True
    ):
        merge = round((frames * high * wide / tokens) ** 0.5)
        start = int(places[taken])
        found[:, at:start] = np.arange(position, position + start - at)
        position += start - at
        rows, columns = high // merge, wide // merge
        grid = np.indices((frames, rows, columns)).reshape(3, -1)
        found[:, start : start + tokens] = grid + position
        position += max(rows, columns)
        at, taken = start + tokens, taken + tokens
    found[:, at:] = np.arange(position, position + count - at)
    return found, position + (count - at) - count
