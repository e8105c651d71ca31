"""Token for token what transformers' own `generate()` says, on the same weights in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.glm.model.load import Checkpoint
from backends.glm.model.runner import Generation, Runner
from backends.glm.model.stock import StockText
from backends.glm.types import Prompt, Sampling
from tests.backends.glm.batches import agrees, alone, generated, job, opened, prompt_for
from tests.backends.glm.conftest import picture

STEPS = 16
ROWS, ROW_TOKENS = 6, 64

CASES: list[tuple[str, list[tuple[int, int]]]] = [
    ("Hello, what is this?", []),
    ("你好，请描述这张图片 🙂", []),
    ("What is in this picture?", [(28, 28)]),
    ("What is in this picture?", [(112, 56)]),
    ("What is in this picture?", [(50, 130)]),
    ("请描述这张图片", [(300, 200)]),
    ("Which one?", [(57, 85), (28, 140), (100, 100)]),
]


def runner_of(checkpoint: Checkpoint, *, stock: bool = False, row_tokens: int = 256) -> Runner:
    runner = Runner(checkpoint.model, checkpoint.device, rows=ROWS, row_tokens=row_tokens)
    if stock:
        runner._text = StockText(checkpoint.model)
    return runner


def their_prompt(checkpoint: Checkpoint, text: str, sizes: list[tuple[int, int]]) -> list[int]:
    """The prompt's ids from transformers' own tokenizer and image processor."""
    vision = checkpoint.prompts.vision
    fast = checkpoint.tokenizer._fast
    content = [*({"type": "image"} for _ in sizes), {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content if sizes else text}]
    rendered = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for w, h in sizes:
        count = vision._processor.get_number_of_image_patches(h, w) // 4
        rendered = rendered.replace("<|image|>", "<|placeholder|>" * count, 1)
    rendered = rendered.replace("<|placeholder|>", "<|image|>")
    ids: list[int] = fast(rendered, add_special_tokens=False)["input_ids"]
    return ids


@pytest.mark.parametrize(("text", "sizes"), CASES)
@pytest.mark.parametrize("stock", [False, True])
def test_greedy_tokens_equal_generate(
    checkpoint: Checkpoint, text: str, sizes: list[tuple[int, int]], stock: bool
) -> None:
    prompt = prompt_for(checkpoint, text, sizes)
    assert prompt.ids == their_prompt(checkpoint, text, sizes)
    if sizes:
        theirs = checkpoint.prompts.vision._processor(
            images=[picture(w, h, seed=w) for w, h in sizes], return_tensors="pt"
        )
        assert prompt.pixels is not None
        assert torch.equal(torch.from_numpy(prompt.pixels.values), theirs["pixel_values"])
    expected, _ = generated(checkpoint.model, prompt, STEPS)
    runner = runner_of(checkpoint, stock=stock)
    assert runner.lean
    assert alone(runner, prompt, STEPS) == expected
    assert len(set(expected)) > 4  # a model that repeats itself would prove little


@dataclass(frozen=True)
class Visit:
    """One request of a random mix. `chunk`: prompt tokens read in a step; `leaves`: tokens drawn
    when it leaves; `first_step`: when it comes."""

    case: int
    first_step: int
    chunk: int
    leaves: int


visits = st.builds(
    Visit,
    case=st.integers(0, len(CASES) - 1),
    first_step=st.integers(0, 12),
    chunk=st.sampled_from([1, 5, 17, 1000]),
    leaves=st.integers(1, STEPS),
)


@cache
def known(checkpoint: Checkpoint, case: int) -> tuple[Prompt, list[int], list[float]]:
    prompt = prompt_for(checkpoint, *CASES[case])
    return prompt, *generated(checkpoint.model, prompt, STEPS)


def play(
    runner: Runner, checkpoint: Checkpoint, mix: list[Visit]
) -> Iterator[tuple[Visit, list[int]]]:
    """Requests come, take the lowest rows that are free, and leave; what each was told."""
    free = [True] * ROWS
    inside: dict[int, tuple[Generation, list[int], range]] = {}
    waiting = sorted(range(len(mix)), key=lambda i: mix[i].first_step)
    step = 0
    while waiting or inside:
        for i in list(waiting):
            prompt = known(checkpoint, mix[i].case)[0]
            need = -(-(len(prompt.ids) + STEPS) // ROW_TOKENS)
            fits = [r for r in range(ROWS - need + 1) if all(free[r : r + need])]
            if mix[i].first_step <= step and fits:
                waiting.remove(i)
                rows = range(fits[0], fits[0] + need)
                for row in rows:
                    free[row] = False
                inside[i] = (opened(runner, job(prompt), rows[0]), [], rows)
        step += 1
        members = list(inside.items())
        if not members:
            continue
        work = [
            (g, 1 if g.decoding else min(mix[i].chunk, len(g.ids) - g.computed))
            for i, (g, _, _) in members
        ]
        for (i, (_, found, rows)), drawn in zip(members, runner.step(work), strict=True):
            if drawn is not None:
                found.append(drawn.token_id)
            if len(found) >= mix[i].leaves:
                runner.close(inside.pop(i)[0])
                for row in rows:
                    free[row] = True
                yield mix[i], found


@pytest.mark.parametrize("stock", [False, True])
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(mix=st.lists(visits, min_size=2, max_size=9))
def test_any_mix_of_requests_gives_each_what_it_gets_alone(
    checkpoint: Checkpoint, stock: bool, mix: list[Visit]
) -> None:
    """Arrivals, sizes, chunks and departures at random; rows of their own, some of them several."""
    runner = runner_of(checkpoint, stock=stock, row_tokens=ROW_TOKENS)
    told = list(play(runner, checkpoint, mix))
    assert len(told) == len(mix)
    for visit, found in told:
        _, expected, ahead = known(checkpoint, visit.case)
        assert len(found) == visit.leaves
        assert agrees(found, expected, ahead), visit


def test_the_cache_of_another_request_is_never_read(checkpoint: Checkpoint) -> None:
    """A request that went wrong leaves nothing that others could meet, and nothing at all."""
    runner = runner_of(checkpoint)
    prompt, expected, ahead = known(checkpoint, 3)
    spoilt = opened(runner, job(prompt), 1)
    runner.step([(spoilt, len(prompt.ids))])
    runner._cache._data[:, 256 : 256 + spoilt.computed].fill_(torch.nan)
    beside, found = opened(runner, job(prompt), 2), []
    for tokens in (len(prompt.ids), *(STEPS - 1) * [1]):
        _, drawn = runner.step([(spoilt, 1), (beside, tokens)])
        assert drawn is not None
        found.append(drawn.token_id)
    assert agrees(found, expected, ahead)
    for generation in (spoilt, beside):
        runner.close(generation)
    assert not runner._cache._data.any()
    wrong = Runner(checkpoint.model, checkpoint.device, rows=1, row_tokens=256)
    generation = opened(wrong, job(prompt), 0)
    wrong.step([(generation, len(prompt.ids) - 1)])
    wrong._cache._data[:, 4].fill_(1e4)  # a positive control: one entry of its own spoilt
    (drawn,) = wrong.step([(generation, 1)])
    assert drawn is not None
    logits_moved = drawn.token_id != expected[0]
    assert logits_moved


def test_interleaved_generations_do_not_share_positions(checkpoint: Checkpoint) -> None:
    """rope_deltas of transformers is state on the module: nothing here reads it."""
    checkpoint.model.model.rope_deltas = torch.tensor([[77]])  # as an earlier generate() leaves it
    for stock in (False, True):
        runner = runner_of(checkpoint, stock=stock)
        for case in (0, 5):
            prompt, expected, ahead = known(checkpoint, case)
            assert agrees(alone(runner, prompt, STEPS), expected, ahead)


def test_a_seed_repeats_a_drawn_answer(checkpoint: Checkpoint) -> None:
    runner = runner_of(checkpoint)
    prompt = prompt_for(checkpoint, *CASES[0])

    def drawn(seed: int | None) -> list[int]:
        return alone(runner, prompt, STEPS, Sampling(temperature=1.0, seed=seed))

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)
    assert drawn(None) != drawn(None)


def test_a_failed_step_leaves_everything_as_it_was(checkpoint: Checkpoint) -> None:
    runner = runner_of(checkpoint)
    prompt, expected, ahead = known(checkpoint, 0)
    generation = opened(runner, job(prompt), 0)
    text: Any = runner._text
    runner._text = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        runner.step([(generation, len(prompt.ids))])
    runner._text = text
    (drawn,) = runner.step([(generation, len(prompt.ids))])
    assert drawn is not None
    assert drawn.token_id == expected[0]
    assert ahead[0] > 0
