"""Configuration of the model and the files of a checkpoint directory."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    GenerationConfig,
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from backends.glm.nano import CHECKPOINT
from backends.glm.nano.resize import LONGEST_EDGE, MERGE, PATCH, SHORTEST_EDGE, TEMPORAL
from backends.glm.nano.tokenizer import VOCABULARY, special_ids

TEMPLATE = CHECKPOINT / "chat_template.jinja"
STOPS = ("<|endoftext|>", "<|user|>", "<|observation|>")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Widths of the shipped model: every part of the 9B architecture, nothing else, made narrow.
SHIPPED: dict[str, dict[str, Any]] = {
    "text": {
        "hidden_size": 256,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 100.0,  # short contexts: the slowest pair still turns within them
            "partial_rotary_factor": 0.5,
            "mrope_section": [4, 6, 6],
        },
    },
    "vision": {
        "hidden_size": 128,
        "depth": 5,
        "num_heads": 4,
        "intermediate_size": 384,
        "out_hidden_size": 256,
        "image_size": 112,
    },
}


def make_config(tokenizer: Tokenizer, widths: dict[str, dict[str, Any]] | None = None) -> Any:
    """A Glm4vConfig whose token ids are those of `tokenizer`."""
    ids = special_ids(tokenizer)
    wide = widths or SHIPPED
    stops = [ids[token] for token in STOPS]
    vision = {"patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": TEMPORAL}
    text = {
        "vocab_size": VOCABULARY,
        "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": stops,
    }
    return Glm4vConfig(
        text_config=text | wide["text"],
        vision_config=vision | wide["vision"],
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
        tie_word_embeddings=False,
        dtype="float32",
    )


def make_model(config: Any, seed: int) -> Any:
    """A new model with weights drawn from `seed`."""
    torch.manual_seed(seed)
    model: Any = Glm4vForConditionalGeneration(config)
    # The usual 0.02 leaves a vision tower this narrow almost linear for thousands of steps.
    for name, weight in model.model.visual.named_parameters():
        if weight.ndim > 1:
            spread = 0.5 if "position" in name else weight[0].numel() ** -0.5
            torch.nn.init.normal_(weight, std=spread)
    return model


def save_checkpoint(model: Any, tokenizer: Tokenizer, out: Path) -> None:
    """Write everything `from_pretrained` needs into `out`."""
    ids = special_ids(tokenizer)
    model.generation_config = GenerationConfig(
        eos_token_id=[ids[token] for token in STOPS],
        pad_token_id=ids["<|endoftext|>"],
        do_sample=False,
        max_new_tokens=256,
    )
    model.save_pretrained(out)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=STOPS[0],
        pad_token=STOPS[0],
        padding_side="left",
        model_max_length=model.config.text_config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(out)
    (out / TEMPLATE.name).write_text(TEMPLATE.read_text())
    (out / "preprocessor_config.json").write_text(json.dumps(preprocessor(), indent=2) + "\n")


def preprocessor() -> dict[str, Any]:
    return {
        "image_processor_type": "Glm46VImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(CLIP_MEAN),
        "image_std": list(CLIP_STD),
        "merge_size": MERGE,
        "patch_size": PATCH,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": SHORTEST_EDGE, "longest_edge": LONGEST_EDGE},
        "temporal_patch_size": TEMPORAL,
    }
