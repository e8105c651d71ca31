"""The model's side of the engine: requests as rows of the cache, and one forward pass a step.

Positions are computed per request and passed on every step. transformers keeps the offset between
text positions and cache positions (`rope_deltas`) on the module, where two requests would overwrite
each other's; it is never used here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from backends.glm.checkpoint.files import LoadError
from backends.glm.engine.events import Job
from backends.glm.engine.prefix import BLOCK
from backends.glm.engine.seam import Opened, Pictures
from backends.glm.model.kv import KvCache, KvShape, pieces_of
from backends.glm.model.lean import LeanText, claims
from backends.glm.model.linears import Maker, MatrixMaker
from backends.glm.model.lora import LoraAdapter, adapting, read_adapter, rows_of
from backends.glm.model.positions import rope_positions
from backends.glm.model.sampling import Sampler, pick_all
from backends.glm.model.step import Step, TextModel
from backends.glm.model.stock import StockText
from backends.glm.model.vision import Encoder, LeanVision, StockVision, claims_vision
from backends.glm.model.vision_thread import Encoding, VisionThread
from backends.glm.types import Drawn


class Generation:
    """One request's state: its rows, its place in the prompt, its next position, its sampler."""

    def __init__(self, job: Job, *, place: int, computed: int) -> None:
        prompt = job.prompt
        self.ids = prompt.ids
        self.place = place
        self.computed = computed
        self.last = -1
        # The engine knows adapters by name only; this side made them.
        self.adapter = cast("LoraAdapter | None", job.adapter)
        self.sampler = Sampler(job.sampling, prompt.ids, job.constraint)
        self.positions, self.delta = rope_positions(prompt)
        # Places of pictures that are not in the cache yet, in the order of their features.
        self.pictured = np.empty(0, np.int64)
        self.encoding: Encoding | None = None
        self._features: Any | None = None

    @property
    def decoding(self) -> bool:
        """The prompt is read."""
        return self.computed >= len(self.ids)

    def features(self, low: int, high: int) -> Any:
        """Of the pictured places low to high."""
        if self._features is None:
            if self.encoding is None or not self.encoding.ready:
                raise RuntimeError("a prompt is read before its pictures are encoded")
            self._features = self.encoding.features
        return self._features[low:high]


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
        kept_blocks: int = 0,
        kept_bytes: int = 0,
    ) -> None:
        """`kept_blocks`: of prompts, `kept_bytes`: of encoded pictures to remember; `make`: how
        matrices are held (see `linears`); None: as the checkpoint has them, and the model stays
        usable by others."""
        self.model = model
        self.device = device
        self._shape = kv_shape(
            model, rows=rows, row_tokens=row_tokens, spare_tokens=kept_blocks * BLOCK
        )
        self._dtype = model.dtype
        self._cache = KvCache(self._shape, dtype=self._dtype, device=device)
        self.lean = claims(model)
        make = make or MatrixMaker()
        self._text: TextModel = LeanText(model, adapting(make)) if self.lean else StockText(model)
        seen = self.lean and claims_vision(model)
        encoder: Encoder = LeanVision(model, make) if seen else StockVision(model)
        self._vision = VisionThread(encoder, kept_bytes=kept_bytes)

    def open(
        self,
        job: Job,
        row: int,
        blocks: Sequence[int] = (),
        on_ready: Callable[[Exception | None], None] = lambda _: None,
    ) -> Opened:
        """See `BatchModel`."""
        place = row * self._shape.row_tokens
        generation = Generation(job, place=place, computed=len(blocks) * BLOCK)
        if blocks:
            own = range(place, place + generation.computed, BLOCK)
            self._copy([self._kept_place(block) for block in blocks], own)
        return Opened(generation, self._encode(generation, job, on_ready))

    def read_adapter(self, folder: Path) -> LoraAdapter:
        """A LoRA adapter in peft's format. Raises: LoadError."""
        if not self.lean:
            kind = self.model.config.model_type
            raise LoadError(f"Adapters are served for GLM-4V checkpoints; this one is {kind}.")
        return read_adapter(folder, self.model)

    def keep(self, generation: Generation, blocks: Sequence[tuple[int, int]]) -> None:
        """See `BatchModel`."""
        self._copy(
            [generation.place + index * BLOCK for index, _ in blocks],
            [self._kept_place(block) for _, block in blocks],
        )

    def stop(self, timeout_s: float) -> None:
        """See `BatchModel`."""
        self._vision.stop(timeout_s)

    def pictures(self) -> Pictures:
        """See `BatchModel`."""
        vision = self._vision
        return Pictures(vision.asked, vision.remembered, vision.waiting, vision.batches)

    def _encode(
        self, generation: Generation, job: Job, on_ready: Callable[[Exception | None], None]
    ) -> bool:
        """Ask for the features of pictures that are still to be read; whether they are there."""
        pixels = job.prompt.pixels
        if pixels is None:
            return True
        places = np.flatnonzero(job.prompt.token_types)
        ends = np.cumsum(pixels.tokens)
        read = int((places[ends - 1] < generation.computed).sum())
        generation.pictured = places[int(ends[read - 1]) if read else 0 :]
        if read == len(ends):
            return True
        generation.encoding = self._vision.encode(pixels.pictures[read:], job.tenant, on_ready)
        return generation.encoding.ready

    def _kept_place(self, block: int) -> int:
        return self._shape.tokens + block * BLOCK

    def _copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        within = torch.arange(BLOCK, device=self.device)
        self._cache.copy(
            *((self._tensor(starts)[:, None] + within).flatten() for starts in (sources, targets))
        )

    def step(self, work: Sequence[tuple[Generation, int]]) -> list[Drawn | Exception | None]:
        """See `BatchModel`."""
        decodes = sorted((i for i, (g, _) in enumerate(work) if g.decoding), key=_by_place(work))
        chunks = [i for i, (g, _) in enumerate(work) if not g.decoding]
        with torch.inference_mode():
            order, step = self._assemble(work, decodes, chunks)
            logits = self._text.forward(step, self._cache)
            drawing = [i for i in order if _ends_prompt(*work[i])]
            drawn = pick_all([work[i][0].sampler for i in drawing], logits)
        for generation, tokens in work:
            generation.computed += tokens
        found: list[Drawn | Exception | None] = [None] * len(work)
        for i, one in zip(drawing, drawn, strict=True):
            found[i] = one
            if isinstance(one, Drawn):
                work[i][0].last = one.token_id
        return found

    def close(self, generation: Generation) -> None:
        """It is over: nothing of it stays in its rows."""
        if generation.encoding is not None:
            self._vision.cancel(generation.encoding)
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
        owners = [g.adapter for g in singles]
        features, feature_at = [], []
        for i in chunks:
            generation, tokens = work[i]
            start, end = generation.computed, generation.computed + tokens
            low, high = np.searchsorted(generation.pictured, (start, end))
            if low < high:
                features.append(generation.features(low, high))
                feature_at.append(generation.pictured[low:high] - start + len(ids))
            owners += [generation.adapter] * tokens
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
            adapters=rows_of(owners, self.device),
            wanted_adapters=rows_of([owners[at] for at in wanted], self.device),
        )

    def _tensor(self, values: Any) -> Any:
        return torch.as_tensor(np.asarray(values, np.int64)).to(self.device)


def kv_shape(model: Any, *, rows: int, row_tokens: int, spare_tokens: int = 0) -> KvShape:
    """The cache that this model needs."""
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    return KvShape(
        layers=int(config.num_hidden_layers),
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        rows=rows,
        row_tokens=row_tokens,
        spare_tokens=spare_tokens,
    )


def kv_token_bytes(model: Any) -> int:
    """Bytes of one token's entry in this model's cache."""
    return kv_shape(model, rows=1, row_tokens=1).values_per_token * int(model.dtype.itemsize)


def _by_place(work: Sequence[tuple[Generation, int]]) -> Any:
    return lambda i: work[i][0].place


def _ends_prompt(generation: Generation, tokens: int) -> bool:
    """Whether a token is drawn after this step."""
    return generation.computed + tokens >= len(generation.ids)
