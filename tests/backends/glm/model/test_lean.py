"""The step written out, against transformers' own forward on every architecture it claims."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, Glm4vConfig, Glm4vMoeConfig, Glm46VConfig

from backends.glm.model import linears
from backends.glm.model.kv import KvCache, pieces_of
from backends.glm.model.lean import ARCHITECTURES, LeanText, claims
from backends.glm.model.linears import MatrixMaker
from backends.glm.model.load import Checkpoint
from backends.glm.model.runner import kv_shape
from backends.glm.model.step import Step

TOKENS = 23


def model_of(kind: str, **text: Any) -> Any:
    """A random model with odd sizes: what is mixed up does not fit."""
    text_config = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "max_position_embeddings": 64,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 100.0,
            "partial_rotary_factor": 0.75,
            "mrope_section": [1, 1, 1],
        },
        **text,
    }
    vision_config = {
        "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24,
        "out_hidden_size": 48, "image_size": 56,
    }  # fmt: skip
    configs = {"glm4v": Glm4vConfig, "glm46v": Glm46VConfig, "glm4v_moe": Glm4vMoeConfig}
    if kind == "glm46v":
        text_config["model_type"], vision_config["model_type"] = "glm4v_text", "glm4v_vision"
    config = configs[kind](text_config=text_config, vision_config=vision_config)
    torch.manual_seed(3)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "layernorm.weight", "proj.bias")):
            nn.init.normal_(parameter, 1.0 if "norm" in name else 0.0, 0.3)
    return model


def forward_of(model: Any, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Logits of the last token by both, for positions as no text has them."""
    ids = torch.arange(TOKENS) * 7 % 97
    positions = torch.randint(0, 50, (3, TOKENS), generator=torch.Generator().manual_seed(5))
    shape = kv_shape(model, rows=1, row_tokens=TOKENS)
    _, pieces = pieces_of([], [(0, TOKENS, TOKENS)], shape, dtype=dtype, device="cpu")
    step = Step(
        ids=ids,
        positions=positions,
        places=torch.arange(TOKENS),
        pieces=pieces,
        wanted=torch.tensor([TOKENS - 1]),
    )
    cache = KvCache(shape, dtype=dtype, device="cpu")
    with torch.inference_mode():
        theirs = model(input_ids=ids[None], position_ids=positions[:, None]).logits[0, -1:]
        return LeanText(model, MatrixMaker()).forward(step, cache), theirs


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
@pytest.mark.parametrize("packed", [False, True])
def test_equal_to_transformers(kind: str, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "PACKED_ELEMENTS_MIN", 1 if packed else 10**9)
    model = model_of(kind)
    assert claims(model)
    ours, theirs = forward_of(model)
    assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))
    assert theirs.std() > 0.1  # nothing would be proved by a constant


def test_close_in_bfloat16() -> None:
    """The other way to turn heads; and what rounding to 8 bits of mantissa allows."""
    model = model_of("glm4v").to(torch.bfloat16)
    ours, theirs = forward_of(model, torch.bfloat16)
    exact, _ = forward_of(model_of("glm4v"))
    error = (theirs.float() - exact).abs().max()
    assert (ours.float() - exact).abs().max() < 2 * error


def test_what_it_does_not_know_it_does_not_claim(checkpoint: Checkpoint) -> None:
    assert claims(checkpoint.model)
    moe = model_of(
        "glm4v_moe", n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8
    )
    assert not claims(moe)
    assert not claims(model_of("glm4v", hidden_act="gelu"))
    other = model_of("glm4v")
    other.config.text_config.rope_parameters["rope_type"] = "yarn"
    assert not claims(other)

    class Quantised(nn.Linear):
        """Whatever a quantiser puts in place of a linear."""

    quantised = model_of("glm4v")
    quantised.model.language_model.layers[1].mlp.down_proj = Quantised(40, 48)
    assert not claims(quantised)
