"""The model's side of the engine: requests as rows of the cache, and one forward pass a step.

Positions are computed per request and passed on every step. transformers keeps the offset between
text positions and cache positions (`rope_deltas`) on the module, where two requests would overwrite
each other's; it is never used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from backends.glm.engine import Job
from backends.glm.kv import KvCache, KvShape, pieces_of
from backends.glm.lean import LeanText, claims
from backends.glm.linears import Maker, MatrixMaker
from backends.glm.positions import rope_positions
from backends.glm.sampling import Sampler, pick_all
from backends.glm.step import Step, TextModel
from backends.glm.stock import StockText
from backends.glm.types import Drawn, Pixels


class Generation:
    """One request's state: its rows, its place in the prompt, its next position, its sampler."""

    def __init__(self, job: Job, *, place: int, features: Any | None) -> None:
        prompt = job.prompt
        self.ids = prompt.ids
        self.place = place
        self.computed = 0
        self.last = -1
        self.sampler = Sampler(job.sampling, prompt.ids, job.constraint)
        self.positions, self.delta = rope_positions(prompt)
        self.features = features
        self.pictured = np.flatnonzero(prompt.token_types) if prompt.pixels else None

    @property
    def decoding(self) -> bool:
        """The prompt is read."""
        return self.computed >= len(self.ids)


class Runner:
    """Runs the batch on one model. Not thread-safe: the engine's thread owns it."""

    def __init__(
        self,
        model: Any,
        device: Any,
        *,
        rows: int,
        row_tokens: int,
        make: Maker | None = None,
    ) -> None:
        """`make`: how matrices are held (see `linears`); None: as the checkpoint has them, and the
        model stays usable by others."""
        self.model = model
        self.device = device
        self._shape = kv_shape(model, rows=rows, row_tokens=row_tokens)
        self._dtype = model.dtype
        self._cache = KvCache(self._shape, dtype=self._dtype, device=device)
        self.lean = claims(model)
        self._text: TextModel = (
            LeanText(model, make or MatrixMaker()) if self.lean else StockText(model)
        )

    def open(self, job: Job, row: int) -> Generation:
        """A generation that has done no work yet; its cache begins at this row."""
        features = None
        if job.prompt.pixels is not None:
            with torch.inference_mode():
                features = self._see(job.prompt.pixels)
        return Generation(job, place=row * self._shape.row_tokens, features=features)

    def _see(self, pixels: Pixels) -> Any:
        output = self.model.model.visual(
            torch.from_numpy(pixels.values).to(self.device, self._dtype),
            grid_thw=torch.from_numpy(pixels.grid).to(self.device),
        )
        return output.pooler_output

    def step(self, work: Sequence[tuple[Generation, int]]) -> list[Drawn | None]:
        """One forward pass over so many further tokens of each; what was drawn for each, None
        where the prompt is not read to its end yet."""
        decodes = sorted((i for i, (g, _) in enumerate(work) if g.decoding), key=_by_place(work))
        chunks = [i for i, (g, _) in enumerate(work) if not g.decoding]
        with torch.inference_mode():
            order, step = self._assemble(work, decodes, chunks)
            logits = self._text.forward(step, self._cache)
            drawing = [i for i in order if _ends_prompt(*work[i])]
            drawn = pick_all([work[i][0].sampler for i in drawing], logits)
        for generation, tokens in work:
            generation.computed += tokens
        found: list[Drawn | None] = [None] * len(work)
        for i, one in zip(drawing, drawn, strict=True):
            found[i] = one
            work[i][0].last = one.token_id
        return found

    def close(self, generation: Generation) -> None:
        """It is over: nothing of it stays in its rows."""
        self._cache.clear(generation.place, generation.computed)

    def _assemble(
        self, work: Sequence[tuple[Generation, int]], decodes: list[int], chunks: list[int]
    ) -> tuple[list[int], Step]:
        """The step's tensors, and the order in which the members of `work` stand in it."""
        order, pieces = pieces_of(
            [(work[i][0].place, work[i][0].computed + 1) for i in decodes],
            [(work[i][0].place, work[i][0].computed + work[i][1], work[i][1]) for i in chunks],
            self._shape,
            dtype=self._dtype,
            device=self.device,
        )
        order = [decodes[i] for i in order]
        singles = [work[i][0] for i in order]
        ids = [g.last for g in singles]
        places = [g.place + g.computed for g in singles]
        positions = [np.tile(np.asarray([g.computed + g.delta for g in singles], np.int64), (3, 1))]
        wanted = list(range(len(order)))
        features, feature_at = [], []
        for i in chunks:
            generation, tokens = work[i]
            start, end = generation.computed, generation.computed + tokens
            if generation.pictured is not None and generation.features is not None:
                low, high = np.searchsorted(generation.pictured, (start, end))
                features.append(generation.features[low:high])
                feature_at.append(generation.pictured[low:high] - start + len(ids))
            ids += generation.ids[start:end]
            places += range(generation.place + start, generation.place + end)
            positions.append(generation.positions[:, start:end])
            if end == len(generation.ids):
                wanted.append(len(ids) - 1)
        on = self._tensor
        return [*order, *chunks], Step(
            ids=on(ids),
            positions=on(np.concatenate(positions, axis=1)),
            places=on(places),
            pieces=pieces,
            wanted=None if len(wanted) == len(ids) else on(wanted),
            features=torch.cat(features) if features else None,
            feature_at=on(np.concatenate(feature_at)) if features else None,
        )

    def _tensor(self, values: Any) -> Any:
        return torch.as_tensor(values, dtype=torch.int64).to(self.device)


def kv_shape(model: Any, *, rows: int, row_tokens: int) -> KvShape:
    """The cache that this model needs."""
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    return KvShape(
        layers=int(config.num_hidden_layers),
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        rows=rows,
        row_tokens=row_tokens,
    )


def kv_token_bytes(model: Any) -> int:
    """Bytes of one token's entry in this model's cache."""
    return kv_shape(model, rows=1, row_tokens=1).values_per_token * int(model.dtype.itemsize)


def _by_place(work: Sequence[tuple[Generation, int]]) -> Any:
    return lambda i: work[i][0].place


def _ends_prompt(generation: Generation, tokens: int) -> bool:
    """Whether a token is drawn after this step."""
    return generation.computed + tokens >= len(generation.ids)
