"""Logits -> the next tokens of a batch: greedy, or drawn, each row by its request's own rules.

Per row, in the order of transformers' processors: repetition penalty over prompt and answer,
frequency and presence penalty over the answer, logit_bias, the constraint's mask, temperature,
top_k, top_p, min_p. Log-probabilities are those of the model itself, before any of it.

Drawing happens in float32 on the CPU, by the inverse of the cumulated probabilities at a number
from the request's own generator: a seed gives the same tokens on every device that computes the
same logits, whatever other requests do. All rows that only want the likeliest token share one
argmax on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from backends.glm.types import Constraint, Drawn, Sampling

Probabilities = np.ndarray[Any, np.dtype[np.float64]]

GREEDY_BELOW = 1e-5  # dividing logits by less overflows float32; the limit of it is greedy anyway
# Likeliest tokens that are looked at in order. Sorting all 151,552 takes 10 ms a row on a CPU; the
# mass that top_p wants lies almost always within these, and where it does not all are sorted.
CANDIDATES_MAX = 1024


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
        self._counts: dict[int, int] = {}  # of the answer's tokens
        self._prompt_ids = frozenset(prompt_ids) if sampling.repetition_penalty != 1.0 else None
        self._counting = (
            self._prompt_ids is not None
            or sampling.frequency_penalty != 0.0
            or sampling.presence_penalty != 0.0
        )
        self._adjusts = self._counting or bool(sampling.logit_bias) or constraint is not None
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    @property
    def plain(self) -> bool:
        """Nothing but the likeliest token is wanted."""
        return self.greedy and not self._adjusts and self.sampling.logprobs is None

    def adjusted(self, logits: Any) -> Any:
        """`logits` (V,) with penalties, bias and mask; the same tensor when there are none."""
        if not self._adjusts:
            return logits
        logits = logits.float().clone()
        if self._counting:
            self._penalise(logits)
        if self.sampling.logit_bias:
            ids, bias = zip(*self.sampling.logit_bias, strict=True)
            index = torch.tensor(ids, device=logits.device)
            logits[index] += torch.tensor(bias, device=logits.device)
        allowed = None if self.constraint is None else self.constraint.allowed()
        if allowed is not None:
            logits.masked_fill_(~torch.from_numpy(allowed).to(logits.device), -torch.inf)
        return logits

    def _penalise(self, logits: Any) -> None:
        """Repetition: the CTRL paper (arXiv 1909.05858, section 4.1), prompt included. Frequency
        and presence: OpenAI's definition, over the tokens of the answer only."""
        sampling = self.sampling
        if self._prompt_ids is not None:
            seen = sorted(self._prompt_ids.union(self._counts))
            ids = torch.tensor(seen, dtype=torch.long, device=logits.device)
            scores, penalty = logits[ids], sampling.repetition_penalty
            logits[ids] = torch.where(scores < 0, scores * penalty, scores / penalty)
        if self._counts and (sampling.frequency_penalty or sampling.presence_penalty):
            ids = torch.tensor(list(self._counts), device=logits.device)
            counts = torch.tensor(list(self._counts.values()), device=logits.device)
            logits[ids] -= sampling.frequency_penalty * counts + sampling.presence_penalty

    def uniform(self) -> float:
        """The next number in [0, 1) of the request's generator."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))

    def took(self, token_id: int) -> None:
        """Take in the drawn token: later penalties and masks depend on it."""
        if self._counting:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1
        if self.constraint is not None:
            self.constraint.accept(token_id)


def pick_all(samplers: Sequence[Sampler], logits: Any) -> list[Drawn]:
    """`logits`: tensor (B, V) on any device, row i of `samplers[i]` -> the B drawn tokens."""
    plain = [i for i, sampler in enumerate(samplers) if sampler.plain]
    drawn: dict[int, Drawn] = {}
    if plain:
        rows = logits if len(plain) == len(samplers) else logits[plain]
        drawn = {i: Drawn(t) for i, t in zip(plain, rows.argmax(dim=-1).tolist(), strict=True)}
    others = [i for i in range(len(samplers)) if i not in drawn]
    if others:
        picked = _pick_adjusted([samplers[i] for i in others], logits[others])
        drawn |= zip(others, picked, strict=True)
    return [drawn[i] for i in range(len(samplers))]


def _pick_adjusted(samplers: list[Sampler], logits: Any) -> list[Drawn]:
    rows = [sampler.adjusted(row) for sampler, row in zip(samplers, logits, strict=True)]
    greedy = [i for i, sampler in enumerate(samplers) if sampler.greedy]
    sampled = [i for i, sampler in enumerate(samplers) if not sampler.greedy]
    ids: dict[int, int] = {}
    if greedy:
        best = torch.stack([rows[i] for i in greedy]).argmax(dim=-1).tolist()
        ids |= zip(greedy, best, strict=True)
    if sampled:
        scores = torch.stack([rows[i] for i in sampled]).float().cpu()
        ids |= zip(sampled, _draw([samplers[i] for i in sampled], scores), strict=True)
    drawn = []
    for i, sampler in enumerate(samplers):
        drawn.append(_with_logprobs(ids[i], sampler.sampling.logprobs, logits[i]))
        sampler.took(ids[i])
    return drawn


def _with_logprobs(token_id: int, top: int | None, logits: Any) -> Drawn:
    """`logits` (V,) as the model gave them; `top`: how many of the likeliest to name."""
    if top is None:
        return Drawn(token_id)
    logprobs = logits.float().log_softmax(dim=-1)
    named: tuple[tuple[int, float], ...] = ()
    if top:
        best = logprobs.topk(min(top, logprobs.numel()))
        named = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Drawn(token_id, float(logprobs[token_id]), named)


def _draw(samplers: list[Sampler], scores: Any) -> list[int]:
    """`scores`: float32 (R, V) on the CPU -> one drawn token id a row."""
    scores = scores.div(torch.tensor([[s.sampling.temperature] for s in samplers]))
    total = scores.logsumexp(dim=-1, keepdim=True)
    best, ids = scores.topk(min(CANDIDATES_MAX, scores.shape[1]))
    whole = best.shape == scores.shape
    likeliest = (best - total).exp().double().numpy()
    picked = []
    for i, sampler in enumerate(samplers):
        sampling, order = sampler.sampling, ids[i]
        kept, known = truncated(likeliest[i], sampling, whole=whole)
        if not known:  # the cut lies beyond the candidates, or there is none
            cuts = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
            every, order = scores[i].sort(descending=True) if cuts else (scores[i], None)
            kept, _ = truncated((every - total[i]).exp().double().numpy(), sampling, whole=True)
        cumulated = kept.cumsum()
        at = int(cumulated.searchsorted(sampler.uniform() * cumulated[-1], side="right"))
        at = min(at, len(cumulated) - 1)  # where rounding reached the end
        picked.append(at if order is None else int(order[at]))
    return picked


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
