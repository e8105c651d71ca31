"""Logits -> the next tokens of a batch: greedy, or drawn, each row by its request's own rules.

Per row, in the order of transformers' processors: repetition penalty over prompt and answer,
frequency and presence penalty over the answer, logit_bias, the constraint's mask, temperature,
top_k, top_p, min_p. Log-probabilities are those of the model itself, before any of it.

All rows that only want the likeliest token share one argmax on the device. The others are worked on
in float32 on the CPU, where what a request has used of the vocabulary is a short list of ids.
Drawing is by the inverse of the cumulated probabilities at a number from the request's own
generator, so a seed gives the same tokens on every device that computes the same logits, whatever
other requests do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from backends.glm.types import Constraint, Drawn, Sampling

Logits = np.ndarray[Any, np.dtype[np.float32]]
Probabilities = np.ndarray[Any, np.dtype[np.float64]]
Ids = np.ndarray[Any, np.dtype[np.int64]]

GREEDY_BELOW = 1e-5  # dividing logits by less overflows float32; the limit of it is greedy anyway
# How many of the likeliest tokens are looked at in order, before all of them are. Sorting all
# 151,552 takes 10 ms a row; what top_p keeps of a trained model's distribution is mostly within 64.
CANDIDATES = (64, 1024)
USED_FIRST = 64  # room for so many different tokens, doubled when it is full


class _Used:
    """Different tokens of an answer and how often each came; arrays that grow."""

    def __init__(self, ids: Sequence[int] = ()) -> None:
        first = sorted(set(ids))
        self._at = {token_id: i for i, token_id in enumerate(first)}
        self._ids = np.zeros(len(first) + USED_FIRST, dtype=np.int64)
        self._ids[: len(first)] = first
        self._counts = np.zeros(len(self._ids), dtype=np.float32)

    def add(self, token_id: int) -> None:
        """One more of this token."""
        at = self._at.setdefault(token_id, len(self._at))
        if at == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[at] = token_id
        self._counts[at] += 1

    @property
    def ids(self) -> Ids:
        """Shape (n,), each once."""
        return self._ids[: len(self._at)]

    @property
    def counts(self) -> Logits:
        """Shape (n,), in the order of `ids`."""
        return self._counts[: len(self._at)]


class Sampler:
    """What one request wants of its tokens, and what drawing them leaves behind."""

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        constraint: Constraint | None = None,
    ) -> None:
        """`constraint`: what the answer's tokens are held to; its state is this request's own."""
        self.sampling = sampling
        self.constraint = constraint
        self.greedy = sampling.temperature < GREEDY_BELOW or sampling.top_k == 1
        self._seen = _Used(prompt_ids) if sampling.repetition_penalty != 1.0 else None
        counted = sampling.frequency_penalty != 0.0 or sampling.presence_penalty != 0.0
        self._said = _Used() if counted else None
        self._bias_ids = np.array([i for i, _ in sampling.logit_bias], dtype=np.int64)
        self._bias = np.array([bias for _, bias in sampling.logit_bias], dtype=np.float32)
        self._number: float | None = None
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    @property
    def plain(self) -> bool:
        """Nothing but the likeliest token is wanted."""
        return (
            self.greedy
            and self._seen is None
            and self._said is None
            and self.constraint is None
            and not len(self._bias)
            and self.sampling.logprobs is None
        )

    def adjust(self, logits: Logits) -> None:
        """Apply penalties, bias and mask to `logits` (V,) in place.

        Repetition: the CTRL paper (arXiv 1909.05858, section 4.1), prompt included. Frequency and
        presence: OpenAI's definition, over the tokens of the answer only.
        """
        sampling = self.sampling
        if self._seen is not None:
            scores, penalty = logits[self._seen.ids], np.float32(sampling.repetition_penalty)
            logits[self._seen.ids] = np.where(scores < 0, scores * penalty, scores / penalty)
        if self._said is not None:
            often = np.float32(sampling.frequency_penalty) * self._said.counts
            logits[self._said.ids] -= often + np.float32(sampling.presence_penalty)
        if len(self._bias):
            logits[self._bias_ids] += self._bias
        allowed = None if self.constraint is None else self.constraint.allowed()
        if allowed is not None:
            np.copyto(logits, -np.inf, where=~allowed)

    def uniform(self) -> float:
        """The next number in [0, 1) of the request's generator; the same one until a token was
        taken in, so that a step that failed draws the same when it is taken again."""
        if self._number is None:
            self._number = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        return self._number

    def took(self, token_id: int) -> None:
        """Take in the drawn token: later numbers, penalties and masks depend on it."""
        self._number = None
        for used in (self._seen, self._said):
            if used is not None:
                used.add(token_id)
        if self.constraint is not None:
            self.constraint.accept(token_id)


def pick_all(samplers: Sequence[Sampler], logits: Any) -> list[Drawn | Exception]:
    """`logits`: tensor (B, V) on any device, row i of `samplers[i]` -> the B drawn tokens.

    What goes wrong with one row stands in its place and changes nothing for the others. What goes
    wrong with all of them is raised before any sampler has taken a token in.
    """
    plain = [i for i, sampler in enumerate(samplers) if sampler.plain]
    drawn: dict[int, Drawn | Exception] = {}
    if plain:
        rows = logits if len(plain) == len(samplers) else logits[plain]
        drawn = {i: Drawn(token_id) for i, token_id in zip(plain, _likeliest(rows), strict=True)}
    others = [i for i in range(len(samplers)) if i not in drawn]
    if others:
        picked = _pick_adjusted([samplers[i] for i in others], logits[others].float().cpu())
        drawn |= zip(others, picked, strict=True)
    return [drawn[i] for i in range(len(samplers))]


def _likeliest(rows: Any) -> list[int]:
    """Tensor (R, V) -> R ids. On a CPU numpy's argmax is several times faster than torch's."""
    if rows.device.type != "cpu":
        return [int(token_id) for token_id in rows.argmax(dim=-1).tolist()]
    return [int(token_id) for token_id in rows.float().numpy().argmax(axis=-1)]


def _pick_adjusted(samplers: list[Sampler], logits: Any) -> list[Drawn | Exception]:
    """`logits`: float32 (R, V) on the CPU; they are changed."""
    logprobs = {
        i: logits[i].log_softmax(dim=-1)
        for i, sampler in enumerate(samplers)
        if sampler.sampling.logprobs is not None
    }
    ids: dict[int, int] = {}
    failed: dict[int, Exception] = {}
    for i, (sampler, row) in enumerate(zip(samplers, logits.numpy(), strict=True)):
        try:
            sampler.adjust(row)
        except Exception as error:  # its own mask is broken; the others have theirs
            failed[i] = error
            continue
        if sampler.greedy:
            ids[i] = int(row.argmax())
    sampled = [i for i in range(len(samplers)) if i not in ids and i not in failed]
    if sampled:
        ids |= zip(sampled, _draw([samplers[i] for i in sampled], logits[sampled]), strict=True)
    named = {
        i: _named(token_id, samplers[i].sampling.logprobs or 0, logprobs.get(i))
        for i, token_id in ids.items()
    }
    for i, token_id in ids.items():
        try:
            samplers[i].took(token_id)
        except Exception as error:  # as above
            failed[i] = error
    return [failed[i] if i in failed else named[i] for i in range(len(samplers))]


def _named(token_id: int, top: int, logprobs: Any) -> Drawn:
    """`logprobs`: tensor (V,), None if not asked for; `top`: how many of the likeliest to name."""
    if logprobs is None:
        return Drawn(token_id)
    named: tuple[tuple[int, float], ...] = ()
    if top:
        best = logprobs.topk(min(top, logprobs.numel()))
        named = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Drawn(token_id, float(logprobs[token_id]), named)


def _draw(samplers: list[Sampler], scores: Any) -> list[int]:
    """`scores`: float32 (R, V) on the CPU -> one drawn token id a row."""
    scores = scores.div(torch.tensor([[s.sampling.temperature] for s in samplers]))
    picked: dict[int, int] = {}
    left: list[int] = []
    for i, sampler in enumerate(samplers):
        sampling = sampler.sampling
        if sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0:
            left.append(i)
        else:
            row = scores[i].numpy()
            picked[i] = _at(np.exp(row - row.max()), sampler)
    width = scores.shape[1]
    for count in (*CANDIDATES, width):
        if not left:
            break
        left = _draw_among(min(count, width), left, samplers, scores, picked)
    return [picked[i] for i in range(len(samplers))]


def _draw_among(
    count: int, rows: list[int], samplers: list[Sampler], scores: Any, picked: dict[int, int]
) -> list[int]:
    """Draw for those of `rows` for which the `count` likeliest tokens decide where the distribution
    is cut; into `picked`. Returns the others."""
    chosen = scores[rows]
    best, ids = chosen.topk(count)
    total = chosen.logsumexp(dim=-1, keepdim=True)
    likeliest = (best - total).exp().double().numpy()
    left = []
    for row, probabilities, order in zip(rows, likeliest, ids, strict=True):
        sampler = samplers[row]
        whole = count == scores.shape[1]
        kept, known = truncated(probabilities, sampler.sampling, whole=whole)
        if known:
            picked[row] = int(order[_at(kept, sampler)])
        else:
            left.append(row)
    return left


def _at(weights: np.ndarray[Any, Any], sampler: Sampler) -> int:
    """A random index, each as likely as its weight."""
    cumulated = weights.cumsum(dtype=np.float64)
    at = int(cumulated.searchsorted(sampler.uniform() * cumulated[-1], side="right"))
    return min(at, len(cumulated) - 1)  # where rounding reached the end


def truncated(
    likeliest: Probabilities, sampling: Sampling, *, whole: bool
) -> tuple[Probabilities, bool]:
    """What top_k, then top_p, then min_p leave of a row.

    `likeliest`: shape (C,), falling: the C largest of a distribution, or all of it (`whole`).
    Returns the first n of them, not normalised, and whether that is certain: False when the cut
    lies beyond C.
    """
    kept, known = likeliest, whole
    if 0 < sampling.top_k <= len(kept):
        kept, known = kept[: sampling.top_k], True
    elif sampling.top_k > 0 and not whole:
        return kept, False
    if sampling.top_p < 1.0:
        # Counted within what top_k left. Without top_k that is everything, and sums to 1.
        mass = kept.sum() if known else 1.0
        before = kept.cumsum() - kept
        keep = max(1, int((before < sampling.top_p * mass).sum()))
        known = known or keep < len(kept)
        kept = kept[:keep]
    if sampling.min_p > 0.0:
        keep = max(1, int((kept >= sampling.min_p * kept[0]).sum()))
        known = known or keep < len(kept)
        kept = kept[:keep]
    return kept, known
