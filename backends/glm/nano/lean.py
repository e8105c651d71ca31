"""The forward pass used in training: the same weights and arithmetic, less work a picture.

transformers runs one attention call a picture in the vision tower and doubles every still picture
to two frames. Here equal pictures go through together, the two halves of the patch convolution
are added first, and the last layer answers only where an answer is learnt. A test holds the
outputs equal to the plain model's.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.glm4v.modeling_glm4v import (
    apply_rotary_pos_emb_vision,
    repeat_kv,
    rotate_half_llm,
)

from backends.glm.nano.build import CLIP_MEAN, CLIP_STD
from backends.glm.nano.resize import MERGE, PATCH


def patches_of(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> normalised patches (B, P, 3 * 14 * 14) in the processor's order."""
    count, high, wide, _ = pixels.shape
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    scaled = (pixels.float() / 255 - mean) / std
    rows, columns = high // PATCH // MERGE, wide // PATCH // MERGE
    split = scaled.view(count, rows, MERGE, PATCH, columns, MERGE, PATCH, 3)
    ordered = split.permute(0, 1, 4, 2, 5, 7, 3, 6)  # B, row, column, row in 2x2, column, RGB, y, x
    return ordered.reshape(count, rows * columns * MERGE**2, 3 * PATCH**2)


def grid_coordinates(rows: int, columns: int) -> Tensor:
    """(P, 2): row and column of every patch in the processor's order."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    both = torch.stack((y, x), -1)
    split = both.view(rows // MERGE, MERGE, columns // MERGE, MERGE, 2)
    return split.permute(0, 2, 1, 3, 4).reshape(-1, 2)


def see(visual: Any, pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3), all of one size -> features (B, tokens, width of the language model)."""
    count, high, wide, _ = pixels.shape
    at = grid_coordinates(high // PATCH, wide // PATCH)
    kernel = visual.patch_embed.proj
    weight = kernel.weight.sum(2).flatten(1)  # both frames are the same picture
    hidden = F.linear(patches_of(pixels), weight, kernel.bias)
    hidden = norm(visual.post_conv_layernorm, hidden, narrow=False)
    grid = torch.tensor([[1, high // PATCH, wide // PATCH]])
    place = visual.embeddings(
        torch.zeros(len(at), hidden.shape[-1]), torch.tensor([len(at)]), grid, at[:, 0], at[:, 1]
    )
    hidden = hidden + place
    cos, sin = visual.rotary_pos_emb(hidden, at)
    for block in visual.blocks:
        hidden = hidden + attend(block.attn, norm(block.norm1, hidden), cos, sin)
        hidden = hidden + block.mlp(norm(block.norm2, hidden))
    hidden = norm(visual.post_layernorm, hidden)
    squares = hidden.reshape(-1, MERGE, MERGE, hidden.shape[-1]).permute(0, 3, 1, 2)
    merged = visual.downsample(squares).view(count, -1, visual.config.out_hidden_size)
    features: Tensor = visual.merger(merged)
    return features


class Norm(torch.autograd.Function):  # type: ignore[misc]
    """RMS norm in few passes over memory, rounded once to what the next matrix takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x = x.float()
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        grad = grads[0].float()
        normed = x * scale
        for_weight = (grad * normed).flatten(0, -2).sum(0)
        inner = grad * weight
        along = (inner * normed).mean(-1, keepdim=True)
        return inner.addcmul_(normed, along, value=-1).mul_(scale), for_weight, None, None


def norm(module: Any, x: Tensor, *, narrow: bool = True) -> Tensor:
    """One of the model's RMS norms; `narrow`: the result goes straight into a matrix product."""
    wide = not narrow or not torch.is_autocast_enabled("cpu")
    dtype = torch.float32 if wide else torch.bfloat16
    out: Tensor = Norm.apply(x, module.weight, module.variance_epsilon, dtype)
    return out


def attend(attention: Any, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Self-attention inside each picture. hidden: (B, P, width)."""
    count, patches, _ = hidden.shape
    qkv = attention.qkv(hidden).view(count, patches, 3, attention.num_heads, -1)
    q, k, v = qkv.unbind(2)
    q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
    mixed = exact_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None)
    out: Tensor = attention.proj(mixed.transpose(1, 2).reshape(count, patches, -1))
    return out


def exact_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention in float32 under autocast too: its bfloat16 backward is slower on a CPU."""
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask)


def visible(branch: Tensor) -> Tensor:
    """(B, L) branch numbers (0 shared, -1 padding) -> who sees whom, bool (B, 1, L, L)."""
    length = branch.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
    return (causal & same)[:, None]


@dataclass(frozen=True)
class Turning:
    """Rotary angles (B, L, rotary width) and the mask (B, 1, L, L) of a packed batch."""

    cos: Tensor
    sin: Tensor
    mask: Tensor


def read(layer: Any, hidden: Tensor, turning: Turning, asking: Tensor | None) -> Tensor:
    """One layer of the language model. hidden: (B, L, width).

    `asking` (B, M): the only places whose output is wanted, which is so after the last layer.
    """
    attention, (count, length, width) = layer.self_attn, hidden.shape
    normed = norm(layer.input_layernorm, hidden)
    cos, sin, mask, own = turning.cos, turning.sin, turning.mask, normed
    if asking is not None:
        at = asking[..., None]
        own = normed.gather(1, at.expand(-1, -1, width))
        hidden = hidden.gather(1, at.expand(-1, -1, width))
        mask = mask.gather(2, at[:, None].expand(-1, -1, -1, length))
    q = attention.q_proj(own).view(count, own.shape[1], -1, attention.head_dim).transpose(1, 2)
    k = attention.k_proj(normed).view(count, length, -1, attention.head_dim).transpose(1, 2)
    v = attention.v_proj(normed).view(count, length, -1, attention.head_dim).transpose(1, 2)
    k = turn(k, cos, sin)
    q = turn(q, *((cos, sin) if asking is None else picked(cos, sin, asking)))
    shared = attention.num_key_value_groups
    mixed = exact_attention(q, repeat_kv(k, shared), repeat_kv(v, shared), mask)
    mixed = attention.o_proj(mixed.transpose(1, 2).reshape(count, own.shape[1], -1))
    hidden = hidden + norm(layer.post_self_attn_layernorm, mixed, narrow=False)
    out = layer.mlp(norm(layer.post_attention_layernorm, hidden))
    return hidden + norm(layer.post_mlp_layernorm, out, narrow=False)


def picked(cos: Tensor, sin: Tensor, asking: Tensor) -> tuple[Tensor, Tensor]:
    at = asking[..., None].expand(-1, -1, cos.shape[-1])
    return cos.gather(1, at), sin.gather(1, at)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on interleaved pairs of the first part of each head. x: (B, H, L, D)."""
    cos, sin = cos[:, None], sin[:, None]
    part = x[..., : cos.shape[-1]]
    turned = part * cos + rotate_half_llm(part) * sin
    return torch.cat((turned, x[..., cos.shape[-1] :].float()), -1)


def learnt_states(
    model: Any,
    ids: Tensor,
    positions: Tensor,
    branch: Tensor,
    seen: Tensor | None,
    learnt: Tensor,
) -> Tensor:
    """Last hidden states (N, width) at the places where `learnt` (B, L) is true, in row order.

    `seen`: what `see` made of the rows' pictures, if they have any.
    """
    text = model.model.language_model
    embeds = text.embed_tokens(ids)
    if seen is not None:
        mask = (ids == model.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(mask, seen.reshape(-1, seen.shape[-1]).to(embeds.dtype))
    cos, sin = text.rotary_emb(embeds, position_ids=positions)
    turning = Turning(cos, sin, visible(branch))
    # Wanted places first, in order; short rows are filled up with places nobody reads.
    most = int(learnt.sum(1).max())
    asking = torch.argsort(~learnt, dim=1, stable=True)[:, :most]
    for layer in text.layers[:-1]:
        embeds = read(layer, embeds, turning, None)
    last = read(text.layers[-1], embeds, turning, asking)
    wanted = learnt.gather(1, asking)
    return norm(text.norm, last[wanted])
