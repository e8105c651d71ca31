"""The step written out over the checkpoint's own weights, for architectures it is checked against.

transformers' forward does the same arithmetic with many more operations and a Python call around
each. For a batch of single tokens that is most of the time, so this page holds all of it: what a
layer of GLM-4V's language model is, and nothing else. Which checkpoints it can stand in for is
decided by `claims`; a test compares it with transformers on each architecture named there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from backends.glm.model.kv import KvCache, attend
from backends.glm.model.linears import Linear, Maker, RowOwners
from backends.glm.model.quantize import Int8Linear
from backends.glm.model.step import Step

# One code in transformers under two names. GLM-4.6V-Flash is a `glm4v` checkpoint.
ARCHITECTURES = frozenset({"glm4v", "glm46v"})


def claims(model: Any) -> bool:
    """Whether the step below is this model's arithmetic, down to every module it replaces."""
    config = model.config
    if config.model_type not in ARCHITECTURES:
        return False
    text = config.get_text_config()
    linears = [
        module
        for layer in model.model.language_model.layers
        for module in (*_attention_of(layer), layer.mlp.gate_up_proj, layer.mlp.down_proj)
    ]
    return (
        text.hidden_act == "silu"
        and text.rope_parameters.get("rope_type", "default") == "default"
        and all(type(module) in (nn.Linear, Int8Linear) for module in [*linears, model.lm_head])
    )


def _attention_of(layer: Any) -> tuple[Any, Any, Any, Any]:
    attention = layer.self_attn
    return attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layer:
    """A layer's matrices and its four norm weights, named by what they come before or after."""

    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    before_attention: Any
    after_attention: Any
    before_mlp: Any
    after_mlp: Any


class LeanText:
    """The language model of GLM-4V."""

    def __init__(self, model: Any, make: Maker) -> None:
        """`model`: one that `claims` accepts. `make` may empty its linears."""
        config = model.config.get_text_config()
        text = model.model.language_model
        self._heads = int(config.num_attention_heads)
        self._kv_heads = int(config.num_key_value_heads)
        self._eps = float(config.rms_norm_eps)
        self._embedding = text.embed_tokens.weight.detach()
        self._norm = text.norm.weight.detach()
        self._rope = Rope(text.rotary_emb)
        self._layers = [_layer(i, layer, make) for i, layer in enumerate(text.layers)]
        self._head = make("lm_head", [model.lm_head])

    def forward(self, step: Step, cache: KvCache) -> Any:
        """See `TextModel`."""
        hidden = functional.embedding(step.ids, self._embedding)
        if step.features is not None:
            hidden.index_copy_(0, step.feature_at, step.features.to(hidden.dtype))
        rotation = self._rope.at(step.positions, hidden.dtype)
        for index in range(len(self._layers) - 1):
            attended = self._attention(index, hidden, rotation, step, cache)
            hidden = self._mlp(index, hidden, attended, step.adapters)
        # After the last attention only the wanted tokens matter.
        last = len(self._layers) - 1
        attended = self._attention(last, hidden, rotation, step, cache)
        if step.wanted is not None:
            attended, hidden = (
                attended.index_select(0, step.wanted),
                hidden.index_select(0, step.wanted),
            )
        hidden = self._mlp(last, hidden, attended, step.wanted_adapters)
        return self._head(self._normed(hidden, self._norm), step.wanted_adapters)

    def _attention(self, index: int, hidden: Any, rotation: Any, step: Step, cache: KvCache) -> Any:
        """Attention, before its output matrix: (T, width) -> (T, heads x dim)."""
        layer = self._layers[index]
        qkv = layer.qkv(self._normed(hidden, layer.before_attention), step.adapters)
        heads = qkv.view(len(qkv), self._heads + 2 * self._kv_heads, -1)
        rotate(heads[:, : self._heads + self._kv_heads], rotation)
        cache.write(index, step.places, heads[:, self._heads :])
        return attend(heads[:, : self._heads], cache, index, step.pieces)

    def _mlp(self, index: int, hidden: Any, attended: Any, rows: RowOwners | None) -> Any:
        layer = self._layers[index]
        hidden = hidden + self._normed(layer.out(attended, rows), layer.after_attention)
        both = layer.gate_up(self._normed(hidden, layer.before_mlp), rows)
        gate, up = both.chunk(2, dim=-1)
        fed = layer.down(functional.silu(gate).mul_(up), rows)
        return hidden.add_(self._normed(fed, layer.after_mlp))

    def _normed(self, x: Any, weight: Any) -> Any:
        return functional.rms_norm(x, weight.shape, weight, self._eps)


def _layer(index: int, layer: Any, make: Maker) -> _Layer:
    name = f"layers.{index}"
    *qkv, out = _attention_of(layer)
    return _Layer(
        qkv=make(f"{name}.qkv", qkv),
        out=make(f"{name}.out", [out]),
        gate_up=make(f"{name}.gate_up", [layer.mlp.gate_up_proj]),
        down=make(f"{name}.down", [layer.mlp.down_proj]),
        before_attention=layer.input_layernorm.weight.detach(),
        after_attention=layer.post_self_attn_layernorm.weight.detach(),
        before_mlp=layer.post_attention_layernorm.weight.detach(),
        after_mlp=layer.post_mlp_layernorm.weight.detach(),
    )


class Rope:
    """Rotary angles of M-RoPE: each frequency turns by one of time, row and column.

    transformers' `recomposition_frequencies` takes section i of the frequencies from axis i mod 3.
    """

    def __init__(self, rotary: Any) -> None:
        """`rotary`: the model's own module, which knows frequencies and sections."""
        sections = list(rotary.mrope_section)
        axes = [axis % 3 for axis, size in enumerate(sections) for _ in range(size)]
        self._frequencies = rotary.inv_freq.detach().float()
        self._axes = torch.tensor(axes, device=self._frequencies.device)
        self._scale = torch.tensor(float(rotary.attention_scaling), device=self._frequencies.device)

    def at(self, positions: Any, dtype: Any) -> Any:
        """`positions` (3, T) -> what `rotate` takes: (T, 1, pairs), complex for float32; else
        (2, T, 1, pairs), cosines and sines rounded to `dtype`."""
        angles = positions.index_select(0, self._axes).t().float() * self._frequencies
        rotation = torch.polar(self._scale.expand_as(angles), angles)[:, None]
        if dtype == torch.float32:
            return rotation
        return torch.view_as_real(rotation).movedim(-1, 0).to(dtype)


def rotate(heads: Any, rotation: Any) -> None:
    """Rotate the first 2 x pairs values of every head in place; `heads`: (T, heads, dim).

    GLM turns neighbouring values as a pair, which is the product of complex numbers.
    """
    pairs = rotation.shape[-1]
    part = heads[..., : 2 * pairs].unflatten(-1, (pairs, 2))
    if rotation.is_complex():
        torch.view_as_complex(part).mul_(rotation)
        return
    cos, sin = rotation
    even, odd = part[..., 0], part[..., 1]
    part.copy_(torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1))
