"""Prompts, and what transformers' own `generate()` answers to them on the same weights."""

from __future__ import annotations

import json
import queue
from collections.abc import Sequence
from typing import Any

import torch

from backends.glm.answer.output import Output
from backends.glm.engine.events import Event, Job
from backends.glm.model.load import Checkpoint
from backends.glm.model.runner import Generation, Runner
from backends.glm.request.protocol import parse_chat
from backends.glm.types import Prompt, Sampling

from .conftest import data_url, picture

GREEDY = Sampling(temperature=0.0)
# Two likeliest tokens this close may change places with the size of a batch: sums of float32 are
# rounded in another order. About a hundred times what was seen.
TIE = 1e-3


def prompt_for(checkpoint: Checkpoint, text: str, sizes: Sequence[tuple[int, int]]) -> Prompt:
    content: list[Any] = [
        {"type": "image_url", "image_url": {"url": data_url(picture(w, h, seed=w))}}
        for w, h in sizes
    ]
    content.append({"type": "text", "text": text})
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    return checkpoint.prompts.build(parse_chat(json.dumps(body).encode()))


def generated(model: Any, prompt: Prompt, steps: int) -> tuple[list[int], list[float]]:
    """New ids of `generate()`, to full length, and at each how far the likeliest was ahead."""
    ids = torch.tensor([prompt.ids])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=steps,
        do_sample=False,
        eos_token_id=[model.config.get_text_config().vocab_size],  # none: to full length
        return_dict_in_generate=True,
        output_logits=True,
        **_seen(prompt),
    )
    best = [logits[0].float().topk(2).values for logits in out.logits]
    return out.sequences[0, ids.shape[1] :].tolist(), [float(b[0] - b[1]) for b in best]


def forced(model: Any, prompt: Prompt, answer: Sequence[int]) -> Any:
    """Log-probabilities (tokens, V) before each token of an answer, by transformers' own forward
    over prompt and answer at once. No token of the answer may be a picture's."""
    ids = torch.tensor([[*prompt.ids, *answer[:-1]]])
    seen = _seen(prompt)
    if seen:
        types = torch.zeros(1, len(answer) - 1, dtype=torch.int64)
        seen["mm_token_type_ids"] = torch.cat([seen["mm_token_type_ids"], types], dim=1)
    model.model.rope_deltas = None  # state on the module: forget the request before
    with torch.inference_mode():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **seen).logits
    return logits[0, len(prompt.ids) - 1 :].float().log_softmax(-1)


def _seen(prompt: Prompt) -> dict[str, Any]:
    """What transformers is given of the pictures."""
    if prompt.pixels is None:
        return {}
    return {
        "pixel_values": torch.from_numpy(prompt.pixels.values),
        "image_grid_thw": torch.from_numpy(prompt.pixels.grid),
        "mm_token_type_ids": torch.from_numpy(prompt.token_types)[None],
    }


def agrees(found: Sequence[int], expected: Sequence[int], ahead: Sequence[float]) -> bool:
    """Equal up to the first token that was a tie; beyond it two texts go their own ways."""
    for ours, theirs, distance in zip(found, expected, ahead, strict=False):
        if ours != theirs:
            return distance < TIE
    return True


def discard(event: Event) -> None:
    """Nobody listens."""


def job(prompt: Prompt, sampling: Sampling = GREEDY, **fields: Any) -> Job:
    return Job(
        prompt=prompt,
        sampling=sampling,
        stop_ids=frozenset(),
        max_tokens=64,
        output=Output(lambda i: b"", think_ids=(None, None), thinking="closed"),
        emit=discard,
        **fields,
    )


def opened(runner: Runner, one: Job, row: int = 0, blocks: Sequence[int] = ()) -> Generation:
    """A generation whose pictures are encoded."""
    seen: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    made = runner.open(one, row, blocks, seen.put)
    if not made.ready:
        assert seen.get(timeout=20) is None
    generation: Generation = made.generation
    return generation


def alone(
    runner: Runner, prompt: Prompt, steps: int, sampling: Sampling = GREEDY, *, row: int = 0
) -> list[int]:
    """What the runner draws for one request, its prompt read in one piece."""
    generation = opened(runner, job(prompt, sampling), row)
    found = []
    tokens = len(prompt.ids)
    for _ in range(steps):
        (drawn,) = runner.step([(generation, tokens)])
        assert drawn is not None
        found.append(drawn.token_id)
        tokens = 1
    return found
