"""Plain `generate()` of transformers in a process of its own: the benchmark's second reference.

    python -m tests.bench.plain_generate CHECKPOINT

Reads one JSON object a line, {"chats": [messages, ...], "tokens": 64}, answers all chats as one
left-padded batch, and writes {"seconds": 1.23, "texts": [...]}. The time runs from the messages to
the texts, as a caller's does: template, picture, generate().

With {"chats": [messages], "tokens": 64, "text": "..."} it judges somebody's answer instead: see
`follow`; it writes {"behind": [0.0, 0.0003, ...]}.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.bench.processor import register


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--dtype", required=True)
    args = parser.parse_args()
    register()
    model: Any = AutoModelForImageTextToText.from_pretrained(args.checkpoint, dtype=args.dtype)
    model.eval()
    processor: Any = AutoProcessor.from_pretrained(args.checkpoint)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        if "text" in wanted:
            behind = follow(model, processor, wanted["chats"], wanted["tokens"], wanted["text"])
            print(json.dumps({"behind": behind}), flush=True)
            continue
        began = time.perf_counter()
        texts = answer(model, processor, wanted["chats"], wanted["tokens"])
        print(json.dumps({"seconds": time.perf_counter() - began, "texts": texts}), flush=True)


def answer(model: Any, processor: Any, chats: list[Any], tokens: int) -> list[str]:
    """Greedy answers of exactly `tokens` tokens to chats in the OpenAI dialect."""
    new = _generated(model, _inputs(processor, chats), tokens)
    assert new.shape[1] == tokens, "an answer that ends early compares nothing"
    texts: list[str] = processor.batch_decode(new, skip_special_tokens=True)
    return texts


def follow(model: Any, processor: Any, chats: list[Any], tokens: int, text: str) -> list[float]:
    """How greedy `text` is as an answer to the only one of `chats`: generate() is led along it,
    and for each token tells how far its logit is behind the likeliest one's. All zero: it is the
    greedy answer itself. Shorter than `tokens`: no likely token continues the text from there."""
    way = _Way(processor.tokenizer, text)
    _generated(model, _inputs(processor, chats), tokens, logits_processor=[way])
    if len(way.behind) == tokens and way.decoded().lstrip() != text.lstrip():
        return way.behind[:-1]
    return way.behind


class _Way:
    """A logits processor of generate() that leaves the likeliest token that continues a text."""

    LIKELY = 20  # how many tokens are tried

    def __init__(self, tokenizer: Any, text: str) -> None:
        self._tokenizer, self._text = tokenizer, text.lstrip()
        self._ids: list[int] = []
        self._lost = False
        self.behind: list[float] = []

    def decoded(self) -> str:
        """The text of the tokens so far."""
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))

    def __call__(self, ids: Any, scores: Any) -> Any:
        """`scores`: (1, vocabulary), as the model gave them."""
        best = scores[0].float().topk(self.LIKELY)
        chosen = 0
        if not self._lost:
            chosen = next((n for n, i in enumerate(best.indices.tolist()) if self._leads(i)), -1)
            self._lost = chosen < 0
        if not self._lost:
            self._ids.append(int(best.indices[chosen]))
            self.behind.append(float(best.values[0] - best.values[chosen]))
        only = torch.full_like(scores, -torch.inf)
        only[0, best.indices[chosen]] = 0
        return only

    def _leads(self, token_id: int) -> bool:
        shown = self._tokenizer.decode([*self._ids, token_id], skip_special_tokens=True)
        # At the end: the bytes of a character that is not whole yet.
        return self._text.startswith(shown.lstrip().rstrip("\ufffd"))


def _generated(model: Any, inputs: Any, tokens: int, **options: Any) -> Any:
    """New ids (chats, tokens)."""
    model.model.rope_deltas = None  # state on the module: forget the batch before
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **options)
    return out[:, inputs["input_ids"].shape[1] :]


def _inputs(processor: Any, chats: list[Any]) -> Any:
    return processor.apply_chat_template(
        [_for_template(chat) for chat in chats],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )


def _for_template(chat: Any) -> Any:
    made = []
    for message in chat:
        parts = [
            {"type": "image", "url": part["image_url"]["url"]}
            if part["type"] == "image_url"
            else part
            for part in message["content"]
        ]
        made.append({**message, "content": parts})
    return made


if __name__ == "__main__":
    main()
