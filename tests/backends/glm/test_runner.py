"""Token for token what transformers' own `generate()` says, on the same weights in float32."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from backends.glm.load import Checkpoint
from backends.glm.protocol import parse_chat
from backends.glm.runner import Generation, Runner
from backends.glm.types import Prompt, Sampling

from .conftest import data_url, picture

GREEDY = Sampling(temperature=0.0)
STEPS = 16


def prompt_for(checkpoint: Checkpoint, text: str, sizes: list[tuple[int, int]]) -> Prompt:
    content: list[Any] = [
        {"type": "image_url", "image_url": {"url": data_url(picture(w, h, seed=w))}}
        for w, h in sizes
    ]
    content.append({"type": "text", "text": text})
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return checkpoint.prompts.build(parse_chat(json.dumps(body).encode()))


def reference(
    checkpoint: Checkpoint, text: str, sizes: list[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """Prompt and new ids of transformers, from its tokenizer, image processor and generate()."""
    vision = checkpoint.prompts.vision
    fast = checkpoint.tokenizer._fast
    content = [*({"type": "image"} for _ in sizes), {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content if sizes else text}]
    rendered = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs: dict[str, Any] = {}
    if sizes:
        images = [picture(w, h, seed=w) for w, h in sizes]
        inputs = dict(vision._processor(images=images, return_tensors="pt"))
        for w, h in sizes:
            count = vision._processor.get_number_of_image_patches(h, w) // 4
            rendered = rendered.replace("<|image|>", "<|placeholder|>" * count, 1)
        rendered = rendered.replace("<|placeholder|>", "<|image|>")
    ids = fast(rendered, add_special_tokens=False, return_tensors="pt")["input_ids"]
    if sizes:
        inputs["mm_token_type_ids"] = (ids == checkpoint.prompts.image_token_id).long()
    out = checkpoint.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=[checkpoint.model.config.text_config.vocab_size],  # none: to full length
        **inputs,
    )
    return ids[0].tolist(), out[0, ids.shape[1] :].tolist()


def tokens(generation: Generation, count: int = STEPS) -> list[int]:
    return [generation.next_token().token_id for _ in range(count)]


CASES: list[tuple[str, list[tuple[int, int]]]] = [
    ("Hello, what is this?", []),
    ("你好，请描述这张图片 🙂", []),
    ("What is in this picture?", [(28, 28)]),
    ("What is in this picture?", [(112, 56)]),
    ("What is in this picture?", [(50, 130)]),
    ("请描述这张图片", [(300, 200)]),
    ("Which one?", [(57, 85), (28, 140), (100, 100)]),
]


@pytest.mark.parametrize(("text", "sizes"), CASES)
def test_greedy_tokens_equal_generate(
    checkpoint: Checkpoint, text: str, sizes: list[tuple[int, int]]
) -> None:
    prompt = prompt_for(checkpoint, text, sizes)
    ids, expected = reference(checkpoint, text, sizes)
    assert prompt.ids == ids
    runner = Runner(checkpoint.model, checkpoint.device)
    assert tokens(runner.open(prompt, GREEDY)) == expected
    assert len(set(expected)) > 4  # a model that repeats itself would prove little


def test_interleaved_generations_do_not_share_positions(checkpoint: Checkpoint) -> None:
    """rope_deltas of transformers is state on the module: here, two requests take turns on it."""
    runner = Runner(checkpoint.model, checkpoint.device)
    prompts = [prompt_for(checkpoint, text, sizes) for text, sizes in (CASES[0], CASES[5])]
    alone = [tokens(runner.open(prompt, GREEDY)) for prompt in prompts]
    checkpoint.model.model.rope_deltas = torch.tensor([[77]])  # as an earlier generate() leaves it
    both = [runner.open(prompt, GREEDY) for prompt in prompts]
    mixed: list[list[int]] = [[], []]
    for _ in range(STEPS):
        for index, generation in enumerate(both):
            mixed[index].append(generation.next_token().token_id)
    assert mixed == alone


def test_cache_entries_are_prompt_and_generated_tokens(checkpoint: Checkpoint) -> None:
    prompt = prompt_for(checkpoint, *CASES[3])
    generation = Runner(checkpoint.model, checkpoint.device).open(prompt, GREEDY)
    assert generation.kv_tokens == 0
    tokens(generation, 3)
    assert generation.kv_tokens == len(prompt.ids) + 2  # the newest token is not in the cache yet


def test_a_seed_repeats_a_drawn_answer(checkpoint: Checkpoint) -> None:
    runner = Runner(checkpoint.model, checkpoint.device)
    prompt = prompt_for(checkpoint, *CASES[0])

    def drawn(seed: int | None) -> list[int]:
        return tokens(runner.open(prompt, Sampling(temperature=1.0, seed=seed)))

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)
    assert drawn(None) != drawn(None)
