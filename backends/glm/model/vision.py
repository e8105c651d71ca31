"""Pictures -> features, off the decode path: in a thread of its own, several at once, remembered.

`LeanVision` is GLM-4V's encoder written out, for the architectures of `lean`. Pictures of all sizes
go through the matrices together; only attention is apart, one call for all pictures of a size.
transformers' own encoder makes one call a picture and interpolates positions anew each time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from backends.glm.model.linears import Linear, Maker
from backends.glm.model.quantize import Int8Linear
from backends.glm.types import Picture

GRIDS_KEPT = 32  # sizes of pictures whose positions are remembered


class Encoder(Protocol):
    """The vision tower."""

    def encode(self, pictures: Sequence[Picture]) -> list[Any]:
        """Features of each, (tokens, width of the language model)."""
        ...


class StockVision:
    """The encoder as transformers runs it."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def encode(self, pictures: Sequence[Picture]) -> list[Any]:
        """See `Encoder`."""
        visual = self._model.model.visual
        values = torch.cat([torch.from_numpy(picture.values) for picture in pictures])
        grid = torch.tensor([picture.grid for picture in pictures])
        output = visual(values.to(visual.device, visual.dtype), grid_thw=grid.to(visual.device))
        return list(output.pooler_output.split([picture.tokens for picture in pictures]))


def claims_vision(model: Any) -> bool:
    """Whether `LeanVision` is the arithmetic of a model whose text `lean` claims."""
    visual = model.model.visual
    linears = [m for block in visual.blocks for m in (*_mlp_of(block.mlp), block.attn.qkv)]
    linears += [block.attn.proj for block in visual.blocks]
    linears += [visual.merger.proj, *_mlp_of(visual.merger)]
    return visual.config.hidden_act == "silu" and all(
        type(m) in (nn.Linear, Int8Linear) for m in linears
    )


def _mlp_of(mlp: Any) -> tuple[Any, Any, Any]:
    return mlp.gate_proj, mlp.up_proj, mlp.down_proj


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    qkv: Linear
    out: Linear
    gate_up: Linear
    down: Linear
    before_attention: Any
    before_mlp: Any


class LeanVision:
    """The vision tower of GLM-4V."""

    def __init__(self, model: Any, make: Maker) -> None:
        """`model`: one that `claims_vision` accepts. `make` may empty its linears."""
        self._visual = visual = model.model.visual
        self._heads = int(visual.config.num_heads)
        self._merge = int(visual.config.spatial_merge_size)
        self._blocks = [_block(i, block, make) for i, block in enumerate(visual.blocks)]
        # Both convolutions take patches that do not overlap: they are matrices.
        patch, down = visual.patch_embed.proj, visual.downsample
        self._patch = make("visual.patch", [_flat(patch.weight.flatten(1), patch.bias)])
        weight = down.weight.permute(0, 2, 3, 1).flatten(1)  # as patches lie in memory
        self._down = make("visual.downsample", [_flat(weight, down.bias)])
        merger = visual.merger
        self._merger = make("visual.merger.proj", [merger.proj])
        self._merger_norm = merger.post_projection_norm
        self._merger_gate_up = make("visual.merger.gate_up", [merger.gate_proj, merger.up_proj])
        self._merger_down = make("visual.merger.down", [merger.down_proj])
        self._places = lru_cache(GRIDS_KEPT)(self._place)

    def encode(self, pictures: Sequence[Picture]) -> list[Any]:
        """See `Encoder`."""
        order = sorted(range(len(pictures)), key=lambda i: len(pictures[i].values))
        ordered = [pictures[i] for i in order]
        features = self._encode(ordered).split([picture.tokens for picture in ordered])
        return [feature for _, feature in sorted(zip(order, features, strict=True))]

    def _encode(self, pictures: Sequence[Picture]) -> Any:
        visual = self._visual
        like = visual.post_conv_layernorm.weight
        values = torch.cat([torch.from_numpy(picture.values) for picture in pictures])
        hidden = _normed(
            self._patch(values.to(like.device, like.dtype)), visual.post_conv_layernorm
        )
        frames = [(picture.grid, picture.grid[0]) for picture in pictures]
        places = [self._places(grid) for grid, count in frames for _ in range(count)]
        hidden = hidden + torch.cat([place for place, _, _ in places])
        cos = torch.cat([cos for _, cos, _ in places])[:, None]
        sin = torch.cat([sin for _, _, sin in places])[:, None]
        sizes = [len(place) for place, _, _ in places]
        for block in self._blocks:
            hidden = self._attended(block, hidden, (cos, sin), sizes)
            gate, up = block.gate_up(functional.rms_norm(hidden, *block.before_mlp)).chunk(2, -1)
            hidden = hidden.add_(block.down(functional.silu(gate).mul_(up)))
        hidden = _normed(hidden, visual.post_layernorm)
        merged = self._down(hidden.view(-1, self._merge**2 * hidden.shape[-1]))
        projected = functional.gelu(self._merger_norm(self._merger(merged)))
        gate, up = self._merger_gate_up(projected).chunk(2, -1)
        return self._merger_down(functional.silu(gate).mul_(up))

    def _attended(
        self, block: _Block, hidden: Any, rotation: tuple[Any, Any], sizes: list[int]
    ) -> Any:
        qkv = block.qkv(functional.rms_norm(hidden, *block.before_attention))
        qkv = qkv.view(len(qkv), 3 * self._heads, -1)
        rotated = _rotated(qkv[:, : 2 * self._heads], *rotation)
        values = qkv[:, 2 * self._heads :]
        mixed, start = [], 0
        for size, group in itertools.groupby(sizes):
            count = len(list(group))
            part = slice(start, start + count * size)
            queries, keys = (
                heads.unflatten(0, (count, size)).transpose(1, 2)
                for heads in rotated[part].chunk(2, dim=1)
            )
            seen = values[part].unflatten(0, (count, size)).transpose(1, 2)
            found = functional.scaled_dot_product_attention(queries, keys, seen)
            mixed.append(found.transpose(1, 2).reshape(count * size, -1))
            start += count * size
        return hidden + block.out(mixed[0] if len(mixed) == 1 else torch.cat(mixed))

    def _place(self, grid: tuple[int, int, int]) -> tuple[Any, Any, Any]:
        """Position embedding (patches, width) and rotary cosines and sines of one frame."""
        visual = self._visual
        weight = visual.post_conv_layernorm.weight
        _, high, wide = grid
        at = _coordinates(high, wide, self._merge).to(weight.device)
        none = torch.zeros(len(at), weight.shape[0], dtype=weight.dtype, device=weight.device)
        sized = torch.tensor([[1, high, wide]], device=weight.device)
        place = visual.embeddings(none, torch.tensor([len(at)]).to(at), sized, at[:, 0], at[:, 1])
        cos, sin = visual.rotary_pos_emb(none, at)
        return place, cos, sin


def _block(index: int, block: Any, make: Maker) -> _Block:
    name = f"visual.blocks.{index}"
    gate, up, down = _mlp_of(block.mlp)
    return _Block(
        qkv=make(f"{name}.qkv", [block.attn.qkv]),
        out=make(f"{name}.out", [block.attn.proj]),
        gate_up=make(f"{name}.gate_up", [gate, up]),
        down=make(f"{name}.down", [down]),
        before_attention=_norm_of(block.norm1),
        before_mlp=_norm_of(block.norm2),
    )


def _flat(weight: Any, bias: Any) -> Any:
    return SimpleNamespace(weight=weight.detach().contiguous(), bias=bias)


def _norm_of(module: Any) -> tuple[Any, Any, float]:
    weight = module.weight.detach()
    return weight.shape, weight, float(module.variance_epsilon)


def _normed(x: Any, module: Any) -> Any:
    return functional.rms_norm(x, *_norm_of(module))


def _rotated(heads: Any, cos: Any, sin: Any) -> Any:
    """Rotary positions on halves of each head, rounded once, as transformers does."""
    wide = heads.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos).addcmul_(torch.cat((-second, first), dim=-1), sin).to(heads.dtype)


def _coordinates(high: int, wide: int, merge: int) -> Any:
    """(patches, 2): row and column of every patch, those that are merged next to each other."""
    y, x = torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij")
    split = torch.stack((y, x), -1).view(high // merge, merge, wide // merge, merge, 2)
    return split.permute(0, 2, 1, 3, 4).reshape(-1, 2)
