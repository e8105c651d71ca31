from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from backends.glm.model.kv import (
    CALL_TOKENS,
    KvCache,
    KvShape,
    Span,
    Window,
    attend,
    pieces_of,
    share,
)

ROWS, ROW_TOKENS, KV_HEADS, HEADS, DIM = 5, 12, 2, 6, 4
SHAPE = KvShape(
    layers=2, kv_heads=KV_HEADS, head_dim=DIM, rows=ROWS, row_tokens=ROW_TOKENS, spare_tokens=3
)


def filled() -> KvCache:
    cache = KvCache(SHAPE, dtype=torch.float32, device="cpu")
    cache._data.copy_(torch.randn(cache._data.shape, generator=torch.Generator().manual_seed(1)))
    return cache


def expected(cache: KvCache, layer: int, place: int, length: int, queries: torch.Tensor):
    """Attention of one row by its definition: (n, heads, dim), the last of which sees all."""
    own = cache._data[layer, place : place + length].transpose(0, 1)
    both = own.repeat_interleave(HEADS // KV_HEADS, 0)
    keys, values = both.chunk(2)
    count = len(queries)
    out = []
    for i, query in enumerate(queries):
        end = length - count + 1 + i
        scores = (keys[:, :end] @ query[:, :, None])[..., 0] / DIM**0.5
        out.append((scores.softmax(-1)[:, None] @ values[:, :end])[:, 0].flatten())
    return torch.stack(out)


rows = st.lists(
    st.tuples(st.integers(0, ROWS - 1), st.integers(1, ROW_TOKENS), st.integers(0, ROW_TOKENS)),
    min_size=1,
    unique_by=lambda row: row[0],
)


@settings(deadline=None)
@given(rows=rows)
def test_every_row_sees_its_own_entries_and_no_others(rows: list[tuple[int, int, int]]) -> None:
    """`rows`: row, length, new tokens (0: it decodes one)."""
    cache = filled()
    rows.sort()
    decodes = [(row * ROW_TOKENS, length) for row, length, new in rows if new == 0]
    chunks = [(row * ROW_TOKENS, max(n, length), n) for row, length, n in rows if n]
    order, pieces = pieces_of(decodes, chunks, SHAPE, dtype=torch.float32, device="cpu")
    assert sorted(order) == list(range(len(decodes)))
    wanted = [(*decodes[i], 1) for i in order] + chunks
    tokens = sum(n for _, _, n in wanted)
    queries = torch.randn(tokens, HEADS, DIM, generator=torch.Generator().manual_seed(2))
    found = attend(queries, cache, 1, pieces)
    start = 0
    for place, length, n in wanted:
        own = expected(cache, 1, place, length, queries[start : start + n])
        assert torch.allclose(found[start : start + n], own, atol=1e-5)
        start += n


def test_a_request_of_several_rows_is_read_across_them() -> None:
    cache = filled()
    length = 2 * ROW_TOKENS + 5
    order, pieces = pieces_of(
        [(0, 4), (ROW_TOKENS, length)], [], SHAPE, dtype=torch.float32, device="cpu"
    )
    queries = torch.randn(2, HEADS, DIM)
    found = attend(queries[order], cache, 0, pieces)
    for at, index in enumerate(order):
        place, long = [(0, 4), (ROW_TOKENS, length)][index]
        own = expected(cache, 0, place, long, queries[index : index + 1])
        assert torch.allclose(found[at], own[0], atol=1e-5)


def test_entries_go_where_they_are_sent_and_are_copied_in_all_layers() -> None:
    cache = filled()
    before = cache._data.clone()
    entries = torch.randn(2, 2 * KV_HEADS, DIM)
    cache.write(1, torch.tensor([3, 20]), entries)
    assert torch.equal(cache._data[1][[3, 20]], entries)
    assert torch.equal(cache._data[0], before[0])
    others = [p for p in range(cache._data.shape[1]) if p not in (3, 20)]
    assert torch.equal(cache._data[1][others], before[1][others])
    cache.copy(torch.tensor([3, 20]), torch.tensor([60, 61]))
    assert torch.equal(cache._data[:, [60, 61]], cache._data[:, [3, 20]])


@pytest.mark.parametrize(
    ("rows", "together"),
    [
        ([(0, 10)], []),  # one row needs no view over several
        ([(0, 10), (1, 9), (2, 11)], [0, 1, 2]),
        ([(0, 100), (31, 100)], []),  # thirty rows between them that nobody wants
        ([(0, 10), (1, 10), (2, 10), (3, 4000)], [0, 1, 2]),
        ([(0, 10), (1, 10), (2, 5000)], [0, 1]),  # longer than a row: never in a view
        ([(0, 4000), (1, 4000)], [0, 1]),
    ],
)
def test_what_is_read_together(rows: list[tuple[int, int]], together: list[int]) -> None:
    assert share(rows, 4096)[0] == together


@given(
    lengths=st.dictionaries(st.integers(0, 30), st.integers(1, 6000), min_size=1),
)
def test_reading_together_is_never_dearer_than_one_by_one(lengths: dict[int, int]) -> None:
    rows = sorted(lengths.items())
    together, alone = share(rows, 4096)
    assert sorted(together + alone) == list(range(len(rows)))
    assert together == sorted(together)
    if together:
        width = rows[together[-1]][0] - rows[together[0]][0] + 1
        view = width * max(rows[i][1] for i in together) + CALL_TOKENS
        assert view <= sum(rows[i][1] + CALL_TOKENS for i in together)


def test_a_mask_is_made_only_where_lengths_differ() -> None:
    def window(decodes: list[tuple[int, int]]) -> Window:
        _, (piece,) = pieces_of(decodes, [], SHAPE, dtype=torch.float32, device="cpu")
        assert isinstance(piece, Window)
        return piece

    same = window([(row * ROW_TOKENS, 7) for row in range(3)])
    assert (same.mask, same.members) == (None, None)
    mixed = window([(0, 7), (ROW_TOKENS, 6)])
    assert mixed.mask is not None
    gap = window([(row * ROW_TOKENS, 7) for row in (0, 2)])
    assert gap.members.tolist() == [0, 2]
    _, (span,) = pieces_of([], [(0, 9, 9)], SHAPE, dtype=torch.float32, device="cpu")
    assert isinstance(span, Span)
    assert span.mask is None


def test_unwritten_and_forgotten_entries_are_zero() -> None:
    assert not KvCache(SHAPE, dtype=torch.bfloat16, device="cpu")._data.any()
    cache = filled()
    kept = cache._data.clone()
    cache.clear(ROW_TOKENS, 4)
    assert not cache._data[:, ROW_TOKENS : ROW_TOKENS + 4].any()
    kept[:, ROW_TOKENS : ROW_TOKENS + 4] = 0
    assert torch.equal(cache._data, kept)


def test_rows_are_views_not_copies() -> None:
    cache = filled()
    for (first, count), length in itertools.product([(0, 5), (1, 2)], [1, 12]):
        keys, values = cache.window(0, first, count, length)
        assert keys.shape == values.shape == (count, KV_HEADS, length, DIM)
        assert keys.untyped_storage().data_ptr() == cache._data.untyped_storage().data_ptr()
    grouped = functional.scaled_dot_product_attention(keys, keys, values)
    assert grouped.shape == keys.shape
