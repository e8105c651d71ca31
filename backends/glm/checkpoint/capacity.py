"""How many requests run at once, and how much cache they share. Pure: sizes in, sizes out."""

from __future__ import annotations

from dataclasses import dataclass

SLOTS_CPU, SLOTS_CUDA = 32, 64  # a step of so many costs little more than one of a few
# Of what is free once the weights are loaded. A CPU's memory belongs to others as well.
SHARE_CPU, SHARE_CUDA = 0.25, 0.80
# Left aside on a GPU for a pass itself: the largest picture of a 9B, 24,576 patches, takes 1.3 GB
# by the widths of its matrices (not measured: no GPU was at hand). Never more than half.
PASS_BYTES = 2 * 1024**3
# Remembered beside the entries of running requests, as shares of those: prompts, and features of
# pictures (a picture's features are smaller than its entries in the cache of most models).
KEPT_SHARE, KEPT_PICTURES_SHARE = 1 / 8, 1 / 32
# Prompt tokens read in one step: long enough that the products are limited by arithmetic, short
# enough that the first of many prompts is answered long before the last one is read.
STEP_TOKENS_CPU, STEP_TOKENS_CUDA = 512, 2048
# How long a step may keep those waiting who decode: more is seen as a stream that stutters.
PAUSE_S = 0.1
BESIDE_TOKENS_MIN = 64  # below, most of a step is overhead
# What a cache holds at the least, where its size is left open: one large picture (6,144 tokens)
# with a question and an answer.
USEFUL_TOKENS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """`rows` rows of `row_tokens` entries; `slots` requests at most; `step_tokens` of one step;
    `kept_tokens` of prompts and `kept_bytes` of encoded pictures are remembered."""

    slots: int
    rows: int
    row_tokens: int
    step_tokens: int
    kept_tokens: int
    kept_bytes: int

    @property
    def kv_tokens(self) -> int:
        """All entries, and so the longest possible request."""
        return self.rows * self.row_tokens

    def cache_bytes(self, token_bytes: int) -> int:
        """Everything that requests leave in memory: entries of those that run and of those that
        are remembered, and pictures."""
        return (self.kv_tokens + self.kept_tokens) * token_bytes + self.kept_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What the operator set; 0, or None where 0 means none: choose."""

    slots: int = 0
    kv_tokens: int = 0
    step_tokens: int = 0
    kept_tokens: int | None = None


def beside_tokens(step_tokens: int, prefill_tokens_per_s: float) -> int:
    """Prompt tokens of a step in which others decode, from the measured speed of reading."""
    return min(step_tokens, max(BESIDE_TOKENS_MIN, int(prefill_tokens_per_s * PAUSE_S)))


def useful_tokens(max_model_len: int, *, asked_for: bool) -> int:
    """The least cache that is worth having: `asked_for`: the operator named that context, and gets
    it."""
    return max_model_len if asked_for else min(max_model_len, USEFUL_TOKENS)


def capacity(
    asked: Asked,
    *,
    cuda: bool,
    free_bytes: int,
    token_bytes: int,
    max_model_len: int,
    least_tokens: int = 0,
) -> Capacity:
    """`free_bytes`: memory of the device beside the weights; `token_bytes`: of one cache entry;
    `least_tokens`: of the cache, also where its share of the memory is less (`fit` has seen to it
    that so much is there).

    Every slot has a row. A row is as long as a fair part of the cache, but never longer than a
    request can be; a longer request takes several rows, and fewer run at once.
    """
    slots = asked.slots or (SLOTS_CUDA if cuda else SLOTS_CPU)
    tokens = asked.kv_tokens
    if not tokens:
        room = free_bytes * SHARE_CPU
        if cuda:
            room = max(free_bytes - PASS_BYTES, free_bytes / 2) * SHARE_CUDA
        tokens = max(slots, int(room) // token_bytes, least_tokens)
    row_tokens = max(1, min(max_model_len, tokens // slots))
    kept = asked.kept_tokens
    if kept is None:
        kept = int(slots * row_tokens * KEPT_SHARE)
    return Capacity(
        slots=slots,
        rows=slots,
        row_tokens=row_tokens,
        kept_tokens=kept,
        kept_bytes=int(slots * row_tokens * token_bytes * KEPT_PICTURES_SHARE) if kept else 0,
        step_tokens=asked.step_tokens or (STEP_TOKENS_CUDA if cuda else STEP_TOKENS_CPU),
    )
