"""The KV cache: one tensor for all layers, made once and cut into rows.

A running request owns one row, or several that lie side by side when it needs more room, and fills
it from the left at its own pace. Rows are never moved. Because they have one length and lie in
order, the keys of many requests are read as one strided view without copying anything; a cache in
small blocks, as attention kernels of CUDA engines read it, would have to be gathered at every step
(with PyTorch's own operations: half of the time of a step of a small model).

A place is the index of one token's entry: row times row length, plus position in the row.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

# What one more attention call costs, as key tokens of one row read instead. Calls on rows alone
# against one call over all: measured with 2 x 64 values a token on a CPU.
CALL_TOKENS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class KvShape:
    """`row_tokens`: entries of one row; `spare_tokens`: entries behind the rows, for copies."""

    layers: int
    kv_heads: int
    head_dim: int
    rows: int
    row_tokens: int
    spare_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Entries of all rows."""
        return self.rows * self.row_tokens

    @property
    def values_per_token(self) -> int:
        """Numbers that one token's entry holds."""
        return 2 * self.layers * self.kv_heads * self.head_dim


class KvCache:
    """The tensor. A layer's entries stand one after the other, keys before values in each:
    (places, 2 x heads, dim). So what one request has written is dense in memory, and what nobody
    has written is not touched."""

    def __init__(self, shape: KvShape, *, dtype: Any, device: Any) -> None:
        self.shape = shape
        places = shape.tokens + shape.spare_tokens
        # Entries that nobody has written are zero, because a view over several rows reads them too:
        # they weigh nothing there, but nothing times NaN is NaN.
        self._data = _zeros(
            (shape.layers, places, 2 * shape.kv_heads, shape.head_dim), dtype, torch.device(device)
        )
        self._layers = list(self._data.unbind(0))

    def write(self, layer: int, places: Any, entries: Any) -> None:
        """`places`: (T,); `entries`: (T, 2 x heads, dim), keys before values."""
        self._layers[layer].index_copy_(0, places, entries)

    def copy(self, source: Any, target: Any) -> None:
        """Copy the entries of all layers from places (n,) to places (n,)."""
        for layer in self._layers:
            layer.index_copy_(0, target, layer.index_select(0, source))

    def clear(self, place: int, length: int) -> None:
        """Forget the entries from a place on, whatever they became."""
        self._data[:, place : place + length].zero_()

    def window(self, layer: int, first: int, count: int, length: int) -> tuple[Any, Any]:
        """Keys and values of neighbouring rows, each (count, heads, length, dim), not copied."""
        shape, data = self.shape, self._layers[layer]
        width = shape.row_tokens
        part = data[first * width : (first + count) * width].unflatten(0, (count, width))
        both = part[:, :length].transpose(1, 2)
        return both[:, : shape.kv_heads], both[:, shape.kv_heads :]

    def span(self, layer: int, place: int, length: int) -> tuple[Any, Any]:
        """Keys and values from a place on, each (1, heads, length, dim), not copied."""
        heads = self.shape.kv_heads
        both = self._layers[layer][None, place : place + length].transpose(1, 2)
        return both[:, :heads], both[:, heads:]


def _zeros(shape: tuple[int, ...], dtype: Any, device: Any) -> Any:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # Pages that the system fills with zeros when they are first written: memory that no request has
    # used yet is not even there. torch's zeros are written at once, and numpy's come in pages of
    # 2 MB, which a row's first token would fill whole.
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One new token of each of several rows, read as one view over all rows between them.

    `members`: which of the view's rows the tokens belong to, (n,), None: all, in order; `mask`:
    added to scores, (count, 1, 1, length), None: every row is `length` long.
    """

    first: int
    count: int
    length: int
    tokens: int
    members: Any | None
    mask: Any | None

    def read(self, queries: Any, cache: KvCache, layer: int) -> Any:
        """Attention of (tokens, heads, dim) -> (tokens, heads x dim)."""
        _, heads, dim = queries.shape
        kv_heads = cache.shape.kv_heads
        if self.members is not None:
            spread = queries.new_zeros(self.count, heads, dim)
            queries = spread.index_copy_(0, self.members, queries)
        keys, values = cache.window(layer, self.first, self.count, self.length)
        # The heads that share keys take the place of several queries: nothing is repeated in
        # memory.
        grouped = queries.view(self.count, kv_heads, heads // kv_heads, dim)
        mixed = functional.scaled_dot_product_attention(grouped, keys, values, self.mask)
        mixed = mixed.reshape(self.count, heads * dim)
        return mixed if self.members is None else mixed.index_select(0, self.members)


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """`tokens` new tokens of one row that starts at `place` and is then `length` long."""

    place: int
    length: int
    tokens: int
    mask: Any | None

    def read(self, queries: Any, cache: KvCache, layer: int) -> Any:
        """As above."""
        tokens, heads, dim = queries.shape
        kv_heads = cache.shape.kv_heads
        keys, values = cache.span(layer, self.place, self.length)
        if tokens == 1:
            grouped = queries.view(1, kv_heads, heads // kv_heads, dim)
            mixed = functional.scaled_dot_product_attention(grouped, keys, values)
            return mixed.reshape(1, heads * dim)
        mixed = functional.scaled_dot_product_attention(
            queries.transpose(0, 1)[None],
            keys,
            values,
            attn_mask=self.mask,
            is_causal=self.mask is None,
            enable_gqa=heads != kv_heads,
        )
        return mixed[0].transpose(0, 1).reshape(tokens, heads * dim)


Piece = Window | Span


def pieces_of(
    decodes: Sequence[tuple[int, int]],
    chunks: Sequence[tuple[int, int, int]],
    shape: KvShape,
    *,
    dtype: Any,
    device: Any,
) -> tuple[list[int], list[Piece]]:
    """How a step reads the cache.

    `decodes`: (place of the row, its length with the new token) in ascending places; `chunks`:
    (place, length with the new tokens, number of new tokens). Returns the order in which the step
    has to put the decoding tokens (indices into `decodes`), and the pieces: first those of the
    decoding tokens in that order, then one for each chunk.
    """
    together, alone = share(
        [(place // shape.row_tokens, length) for place, length in decodes], shape.row_tokens
    )
    pieces: list[Piece] = []
    if together:
        rows = [(decodes[i][0] // shape.row_tokens, decodes[i][1]) for i in together]
        pieces.append(_window(rows, dtype=dtype, device=device))
    for i in alone:
        place, length = decodes[i]
        pieces.append(Span(place=place, length=length, tokens=1, mask=None))
    for place, length, tokens in chunks:
        mask = None
        if 1 < tokens < length:  # what reads a row from its start is plainly causal
            seen = torch.ones(tokens, length, dtype=torch.bool, device=device)
            mask = seen.tril(length - tokens)
        pieces.append(Span(place=place, length=length, tokens=tokens, mask=mask))
    return [*together, *alone], pieces


def share(rows: Sequence[tuple[int, int]], row_tokens: int) -> tuple[list[int], list[int]]:
    """Which rows one view reads, and which are read one by one: the cheapest split by key tokens.

    `rows`: (row, length) in ascending order. A view reads every row between its first and its last,
    wanted or not, and all as far as the longest of those wanted. Returns indices into `rows`.
    """
    # Where to draw the line between them is tried at powers of two only.
    limits: dict[int, int] = {}
    for _, length in rows:
        if length <= row_tokens:
            bucket = length.bit_length()
            limits[bucket] = max(length, limits.get(bucket, 0))
    best: tuple[list[int], list[int]] = ([], list(range(len(rows))))
    cost = sum(length + CALL_TOKENS for _, length in rows)
    for limit in limits.values():
        together = [i for i, (_, length) in enumerate(rows) if length <= limit]
        if len(together) < 2:
            continue
        alone = [i for i, (_, length) in enumerate(rows) if length > limit]
        width = rows[together[-1]][0] - rows[together[0]][0] + 1
        total = width * limit + CALL_TOKENS + sum(rows[i][1] + CALL_TOKENS for i in alone)
        if total < cost:
            best, cost = (together, alone), total
    return best


def _window(rows: Sequence[tuple[int, int]], *, dtype: Any, device: Any) -> Window:
    first, count = rows[0][0], rows[-1][0] - rows[0][0] + 1
    length = max(length for _, length in rows)
    members = None
    if count != len(rows):
        members = torch.tensor([row - first for row, _ in rows], device=device)
    mask = None
    if members is not None or any(own != length for _, own in rows):
        lengths = [1] * count  # of a row between that takes no part: something finite to read
        for row, own in rows:
            lengths[row - first] = own
        ends = torch.tensor(lengths, device=device)[:, None]
        hidden = torch.arange(length, device=device) >= ends
        mask = torch.zeros(count, length, dtype=dtype, device=device)
        mask = mask.masked_fill_(hidden, -torch.inf)[:, None, None]
    return Window(
        first=first, count=count, length=length, tokens=len(rows), members=members, mask=mask
    )


def attend(queries: Any, cache: KvCache, layer: int, pieces: Sequence[Piece]) -> Any:
    """Attention of a step: (T, heads, dim), in the order of the pieces -> (T, heads x dim)."""
    found, start = [], 0
    for piece in pieces:
        part = queries[start : start + piece.tokens] if len(pieces) > 1 else queries
        found.append(piece.read(part, cache, layer))
        start += piece.tokens
    return found[0] if len(found) == 1 else torch.cat(found)
