"""Plain `generate()` of transformers in a process of its own: the benchmark's second reference.

    python -m tests.bench.plain_generate CHECKPOINT

Reads one JSON object a line, {"chats": [messages, ...], "tokens": 64}, answers all chats as one
left-padded batch, and writes {"seconds": 1.23, "texts": [...]}. The time runs from the messages to
the texts, as a caller's does: template, picture, generate().
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
        began = time.perf_counter()
        texts = answer(model, processor, wanted["chats"], wanted["tokens"])
        print(json.dumps({"seconds": time.perf_counter() - began, "texts": texts}), flush=True)


def answer(model: Any, processor: Any, chats: list[Any], tokens: int) -> list[str]:
    """Greedy answers of exactly `tokens` tokens to chats in the OpenAI dialect."""
    inputs = processor.apply_chat_template(
        [_for_template(chat) for chat in chats],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    model.model.rope_deltas = None  # state on the module: forget the batch before
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    new = out[:, inputs["input_ids"].shape[1] :]
    assert new.shape[1] == tokens, "an answer that ends early compares nothing"
    texts: list[str] = processor.batch_decode(new, skip_special_tokens=True)
    return texts


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
