"""The model's forward passes for one request: prefill once, then one token a step.

Positions are computed per request and passed on every step. transformers keeps the offset between
text positions and cache positions (`rope_deltas`) on the module, where two requests would overwrite
each other's; it is never used here.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from backends.glm.sampling import Sampler, pick_all
from backends.glm.types import Constraint, Drawn, Prompt, Sampling


class Generation:
    """One request's state on the device: its cache, its next position, its sampler."""

    def __init__(
        self,
        runner: Runner,
        *,
        prompt: Prompt,
        sampling: Sampling,
        constraint: Constraint | None,
    ) -> None:
        self._runner = runner
        self._prompt: Prompt | None = prompt
        self._sampler = Sampler(sampling, prompt.ids, constraint)
        self._cache = DynamicCache(config=runner.model.config)
        self._rope_delta = 0
        self._last = 0
        self.kv_tokens = 0

    def next_token(self) -> Drawn:
        """Run one step and draw a token. The first call reads the whole prompt."""
        with torch.inference_mode():
            logits = self._prefill(self._prompt) if self._prompt is not None else self._step()
            self._prompt = None  # the pixels of a large picture need not outlive its prefill
            (drawn,) = pick_all([self._sampler], logits[None])
        self._last = drawn.token_id
        return drawn

    def _prefill(self, prompt: Prompt) -> Any:
        positions, self._rope_delta = self._runner.positions(prompt)
        images = {}
        if prompt.pixels is not None:
            images = {
                "pixel_values": self._runner.to_device(prompt.pixels.values),
                "image_grid_thw": self._runner.to_device(prompt.pixels.grid),
            }
        return self._forward(torch.tensor([prompt.ids]), positions, **images)

    def _step(self) -> Any:
        positions = torch.full((3, 1, 1), self.kv_tokens + self._rope_delta)
        return self._forward(torch.tensor([[self._last]]), positions)

    def _forward(self, ids: Any, positions: Any, **images: Any) -> Any:
        """`ids` (1, n), `positions` (3, 1, n): time, row, column -> logits (vocabulary,)."""
        device = self._runner.device
        output = self._runner.model(
            input_ids=ids.to(device),
            position_ids=positions.to(device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **images,
        )
        self.kv_tokens += ids.shape[1]
        return output.logits[0, -1]


class Runner:
    """Opens generations on one model. Not thread-safe: the engine's thread owns it."""

    def __init__(self, model: Any, device: Any) -> None:
        self.model = model
        self.device = device

    def open(
        self, prompt: Prompt, sampling: Sampling, constraint: Constraint | None = None
    ) -> Generation:
        """A generation that has done no work yet."""
        return Generation(self, prompt=prompt, sampling=sampling, constraint=constraint)

    def to_device(self, array: Any) -> Any:
        """A numpy array as a tensor on the model's device."""
        return torch.from_numpy(array).to(self.device)

    def positions(self, prompt: Prompt) -> tuple[Any, int]:
        """M-RoPE positions (3, 1, n) of a prompt, and what to add to a cache length afterwards.

        A picture of r x c merged patches advances the position by max(r, c) only, so positions run
        behind the cache length from then on. Computed on the CPU: the function reads single values
        back, which on a GPU would wait for the device each time.
        """
        ids = torch.tensor([prompt.ids])
        if prompt.pixels is None:
            return torch.arange(ids.shape[1]).expand(3, 1, -1), 0
        positions, delta = self.model.model.get_rope_index(
            ids,
            mm_token_type_ids=torch.from_numpy(prompt.token_types)[None],
            image_grid_thw=torch.from_numpy(prompt.pixels.grid),
        )
        return positions, int(delta)
