"""The checkpoints that the engine benchmark serves, made from a seed and kept in build/bench.

Both differ from a checkpoint to be used in one thing: the output rows of control tokens are zero,
so their logit is 0 while the best of the others is above it. No greedy answer can end early or
contain a control token, and every server makes exactly as many tokens as it is asked for.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backends.glm.nano import CHECKPOINT

SEED = 20261126

# Every width as in the 9B but narrower, with the vocabulary of nano: with GLM's 151,552 rows the
# embedding alone would be larger than the layers. Linears are wide enough (6656 x 1024) that
# reading weights, not calling kernels, takes the time, as on a real model. Weights are spread three
# times as far as usual: every token then depends on all before it and on the picture, where the
# answers of a random model would else repeat one word, right or wrong.
MID: dict[str, dict[str, Any]] = {
    "text": {
        "hidden_size": 1024,
        "intermediate_size": 3328,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.06,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [4, 6, 6],
        },
    },
    "vision": {
        "hidden_size": 512,
        "depth": 12,
        "num_heads": 8,
        "intermediate_size": 1536,
        "out_hidden_size": 1024,
        "image_size": 112,
    },
}


def nano(folder: Path) -> Path:
    """The shipped checkpoint, prepared as the module says."""
    key = hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()[:12]
    return _kept(folder / f"nano-{key}", _make_nano)


def mid(folder: Path, widths: dict[str, dict[str, Any]] | None = None) -> Path:
    """A GLM-4.6V with random weights, by default of about 245 million parameters, in bfloat16 as
    GLM's own checkpoints are."""
    wide = widths or MID
    text = json.dumps([SEED, wide, inspect.getsource(_make_mid)], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    return _kept(folder / f"mid-{key}", lambda out: _make_mid(out, wide))


def number_type(checkpoint: Path) -> str:
    """The type its weights are saved in, e.g. "bfloat16"."""
    return str(json.loads((checkpoint / "config.json").read_text())["dtype"])


def parameters(checkpoint: Path) -> int:
    """How many numbers the weights are, read from the header of the file."""
    with (checkpoint / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for side in tensor["shape"]:
                count *= side
            total += count
    return total


def _kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """Made beside and renamed: what was interrupted is never taken for a checkpoint."""
    if not folder.is_dir():
        draft = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        make(draft)
        draft.rename(folder)
    return folder


def _make_nano(out: Path) -> None:
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    shutil.copytree(CHECKPOINT, out, dirs_exist_ok=True)
    weights = load_file(out / "model.safetensors")
    _silence(weights["lm_head.weight"], Tokenizer.from_file(str(out / "tokenizer.json")))
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def _make_mid(out: Path, widths: dict[str, dict[str, Any]]) -> None:
    import torch
    from tokenizers import Tokenizer

    from backends.glm.nano.build import make_config, make_model, save_checkpoint

    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    model = make_model(make_config(tokenizer, widths), SEED)
    rows = model.lm_head.weight.data
    _silence(rows, tokenizer)
    # Random answers are to be text: half a character is shown by every server in its own way.
    pieces = (tokenizer.decode([token_id]) for token_id in range(rows.shape[0]))
    rows[[token_id for token_id, piece in enumerate(pieces) if "\ufffd" in piece]] = 0
    save_checkpoint(model.to(torch.bfloat16), tokenizer, out)
    # GLM's own limits for pictures, so that 224 x 224 pixels are the usual 64 tokens.
    limits = {"size": {"shortest_edge": 112 * 112, "longest_edge": 28 * 28 * 15_000}}
    processor = out / "preprocessor_config.json"
    processor.write_text(json.dumps(json.loads(processor.read_text()) | limits, indent=2))


def _silence(rows: Any, tokenizer: Any) -> None:
    """Zero the rows (vocabulary, width) of control tokens and of ids that are no token at all."""
    rows[list(tokenizer.get_added_tokens_decoder())] = 0
    rows[tokenizer.get_vocab_size(with_added_tokens=True) :] = 0
