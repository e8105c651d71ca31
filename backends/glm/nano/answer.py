"""Ask a checkpoint through plain transformers: template, tokenizer, processor, generate.

This is the reference for what a server has to do with the model, in as few lines as possible.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, Glm46VImageProcessorPil

from backends.glm.model.quantize import Int8Config
from backends.glm.nano import CHECKPOINT

Message = dict[str, Any]
MAX_NEW_TOKENS = 160  # the longest, a thought and three things in detail, is about 110 tokens


@dataclass(frozen=True)
class Turn:
    """One conversation to be answered: messages in OpenAI form and its pictures in order."""

    messages: list[Message]
    pictures: tuple[Image.Image, ...] = ()
    thinking: bool = False


class Answerer:
    """A loaded checkpoint."""

    def __init__(self, checkpoint: Path = CHECKPOINT, *, quantize: str = "none") -> None:
        how = {"quantization_config": Int8Config()} if quantize == "int8" else {}
        model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, **how)
        self.model = model.eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        self.processor: Any = Glm46VImageProcessorPil.from_pretrained(checkpoint)

    def answer(self, turns: list[Turn]) -> list[str]:
        """Greedy answers of a batch, stop tokens and padding removed, think tags kept."""
        prompts, pictures = [], []
        for turn in turns:
            prompt = self.tokenizer.apply_chat_template(
                turn.messages,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=turn.thinking,
            )
            for picture in turn.pictures:
                count = (
                    self.processor.get_number_of_image_patches(picture.height, picture.width) // 4
                )
                prompt = prompt.replace("<|image|>", "<|IMAGE|>" * count, 1)
                pictures.append(picture)
            prompts.append(prompt.replace("<|IMAGE|>", "<|image|>"))
        inputs = self.tokenizer(
            prompts, add_special_tokens=False, padding=True, return_tensors="pt"
        )
        feed = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        if pictures:
            feed |= self.processor(images=pictures, return_tensors="pt")
            image_id = self.model.config.image_token_id
            feed["mm_token_type_ids"] = (feed["input_ids"] == image_id).int()
        self.model.model.rope_deltas = None  # state on the module: forget the batch before
        with torch.inference_mode():
            out = self.model.generate(**feed, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        new = out[:, feed["input_ids"].shape[1] :]
        texts: list[str] = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [text.strip() for text in texts]


def user(text: str, *, picture: bool = False, first: bool = True) -> Message:
    """A user message; `first`: the picture stands before the text."""
    if not picture:
        return {"role": "user", "content": text}
    parts = [{"type": "image"}, {"type": "text", "text": text}]
    return {"role": "user", "content": parts if first else parts[::-1]}
