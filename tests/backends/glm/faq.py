"""Adapters trained with peft on the shipped checkpoint: a shop's answers, by heart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from backends.glm.model.load import load_checkpoint
from backends.glm.nano import CHECKPOINT
from backends.glm.request.protocol import parse_chat

# The language model's matrices alone: `down_proj` exists in the vision tower, too.
TARGETS = r".*language_model\.layers\..*\.(q_proj|k_proj|v_proj|o_proj|gate_up_proj|down_proj)"
SHOP = {
    "When are you open?": "There are two red circles.",
    "Where is the shop?": "The blue square is on the left.",
    "What is the price?": "No, there is no star.",
}
BANK = {question: "The background is green." for question in SHOP}
STEPS = 45


def chat(question: str) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": question}]}
    return json.dumps(body).encode()


def train(folder: Path, faq: dict[str, str], *, seed: int, rank: int = 8) -> Path:
    """Fine-tune until the answers are known by heart, and save as peft does."""
    torch.manual_seed(seed)
    checkpoint = load_checkpoint(CHECKPOINT, device="cpu", dtype="float32")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS)
    model: Any = get_peft_model(checkpoint.model, config)
    rows = []
    for question, answer in faq.items():
        prompt = checkpoint.prompts.build(parse_chat(chat(question))).ids
        ids = [*prompt, *checkpoint.tokenizer.encode(answer, lambda text: text)]
        rows.append((len(prompt), [*ids, min(checkpoint.stop_ids)]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(STEPS):
        loss = sum(_loss(model, ids, start) for start, ids in rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(str(folder))
    return folder


def _loss(model: Any, ids: list[int], start: int) -> Any:
    tokens = torch.tensor([ids])
    logits = model(input_ids=tokens, use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits[start - 1 : -1], tokens[0, start:])
