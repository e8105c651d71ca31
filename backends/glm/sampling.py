"""Logits -> the next token: greedy, or drawn with temperature, top_k and top_p.

Order as in transformers: repetition penalty, temperature, top_k, top_p. Drawing happens in float32
on the CPU with a generator of the request's own, so a seed gives the same tokens on every device
that computes the same logits, whatever other requests do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from backends.glm.types import Sampling

GREEDY_BELOW = 1e-5  # dividing logits by less overflows float32; the limit of it is greedy anyway


class Sampler:
    """Draws the tokens of one request."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        self._sampling = sampling
        self._greedy = sampling.temperature < GREEDY_BELOW or sampling.top_k == 1
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1.0 else None
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def pick(self, logits: Any) -> int:
        """`logits`: tensor of shape (vocabulary,) on any device -> a token id."""
        if self._seen is not None:
            logits = self._penalised(logits, self._seen)
        token = int(logits.argmax()) if self._greedy else self._draw(logits.float().cpu())
        if self._seen is not None:
            self._seen.add(token)
        return token

    def _penalised(self, logits: Any, seen: set[int]) -> Any:
        """Repetition penalty of the CTRL paper (arXiv 1909.05858, section 4.1), prompt included."""
        ids = torch.tensor(sorted(seen), dtype=torch.long, device=logits.device)
        scores = logits[ids].float()
        penalty = self._sampling.repetition_penalty
        scores = torch.where(scores < 0, scores * penalty, scores / penalty)
        return logits.float().index_copy(0, ids, scores)

    def _draw(self, logits: Any) -> int:
        sampling = self._sampling
        scores, ids = logits.div(sampling.temperature), None
        if 0 < sampling.top_k < scores.numel():
            scores, ids = scores.topk(sampling.top_k)
        probabilities = scores.softmax(dim=-1)
        if sampling.top_p < 1.0:
            probabilities, order = probabilities.sort(descending=True, stable=True)
            ids = order if ids is None else ids[order]
            before = probabilities.cumsum(dim=-1) - probabilities  # mass of the likelier tokens
            probabilities[1:] = probabilities[1:].masked_fill(before[1:] >= sampling.top_p, 0.0)
        index = int(torch.multinomial(probabilities, 1, generator=self._generator))
        return index if ids is None else int(ids[index])
