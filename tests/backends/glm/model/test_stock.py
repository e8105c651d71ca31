"""An architecture that the lean step does not know is served by transformers' own forward."""

from __future__ import annotations

from typing import Any

import torch

from backends.glm.model.runner import Runner
from backends.glm.types import Prompt
from tests.backends.glm.batches import agrees, generated, job, opened
from tests.backends.glm.model.test_lean import model_of


def prompt(ids: list[int]) -> Prompt:
    return Prompt(ids=ids, image_token_id=-1, pixels=None, thinking="closed")


def test_a_mixture_of_experts_in_one_batch_equals_generate() -> None:
    model: Any = model_of(
        "glm4v_moe", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8
    )
    prompts = [prompt([5, 6, 7]), prompt(list(range(20))), prompt([9])]
    runner = Runner(model, torch.device("cpu"), rows=4, row_tokens=40)
    assert not runner.lean
    inside = [opened(runner, job(p), row) for p, row in zip(prompts, (0, 1, 3), strict=True)]
    found: list[list[int]] = [[], [], []]
    for _ in range(24):
        work = [(g, 1 if g.decoding else min(7, len(g.ids) - g.computed)) for g in inside]
        for told, drawn in zip(found, runner.step(work), strict=True):
            if drawn is not None:
                told.append(drawn.token_id)
    for one, told in zip(prompts, found, strict=True):
        expected, ahead = generated(model, one, 12)
        assert len(told) >= 12
        assert agrees(told, expected, ahead)
        assert len(set(expected)) > 2
