"""One matrix of the model as a callable: the seam where another arithmetic can stand in.

Everything the lean step multiplies by goes through `Linear`, made by a `Maker` from one or several
`nn.Linear` of the checkpoint. Plain float matrices are here; quantised ones, or ones with adapters
on top, are further makers and need no change to the step.

On a CPU a large float32 matrix is kept in oneDNN's own blocked order. MKL's product of a few rows
with a row-major matrix reads it several times: 6656 x 1024 by 8 rows takes 4.6 ms on an AMD EPYC
and 0.8 ms packed (two cores; 3.0 and 1.4 ms on one core of an Intel Xeon of 2023). For a small
matrix the longer way into oneDNN costs more than it saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional

from backends.glm.model.quantize import Int8Linear, product

PACKED_ELEMENTS_MIN = 1 << 20  # below, both products are as fast or MKL's is faster (1 to 64 rows)


class RowOwners(Protocol):
    """Whose rows a product is for. A plain matrix does not look at it."""

    def add(self, name: str, x: Any, y: Any) -> None:
        """Add to `y` (T, out) what is the rows' own at the place of this name, made of `x`."""
        ...


class Linear(Protocol):
    """y = x W^T + b. `out_features`: width of y."""

    out_features: int

    def __call__(self, x: Any, rows: RowOwners | None = None) -> Any:
        """`x`: (T, in_features), `rows` about its T rows -> (T, out_features)."""
        ...


class Maker(Protocol):
    """Makes a `Linear` that answers for several modules of the checkpoint at once."""

    def __call__(self, name: str, modules: Sequence[Any]) -> Linear:
        """`name`: where it stands, e.g. "layers.3.qkv"; `modules`: `nn.Linear`s that read the same
        input, whose outputs the result puts side by side."""
        ...


class PlainLinear:
    """The matrix as the device's own library multiplies by it."""

    def __init__(self, weight: Any, bias: Any | None) -> None:
        self.out_features = int(weight.shape[0])
        self._weight, self._bias = weight, bias

    def __call__(self, x: Any, rows: RowOwners | None = None) -> Any:
        return functional.linear(x, self._weight, self._bias)


class PackedLinear:
    """The matrix in oneDNN's order (CPU)."""

    def __init__(self, weight: Any, bias: Any | None) -> None:
        self.out_features = int(weight.shape[0])
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        self._bias = bias

    def __call__(self, x: Any, rows: RowOwners | None = None) -> Any:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")


def joined(modules: Sequence[Any]) -> tuple[Any, Any | None]:
    """Weight (sum of outputs, inputs) and bias of modules that read the same input."""
    weights = [module.weight.detach() for module in modules]
    biases = [getattr(module, "bias", None) for module in modules]
    if len(modules) == 1:
        return weights[0], None if biases[0] is None else biases[0].detach()
    if all(bias is None for bias in biases):
        return torch.cat(weights), None
    known = next(bias for bias in biases if bias is not None)  # an int8 weight has another type
    filled = [
        torch.zeros(weight.shape[0], dtype=known.dtype, device=known.device)
        if bias is None
        else bias.detach()
        for weight, bias in zip(weights, biases, strict=True)
    ]
    return torch.cat(weights), torch.cat(filled)


class Int8Product:
    """A matrix that was quantised while loading."""

    def __init__(self, weight: Any, scale: Any, bias: Any | None) -> None:
        self.out_features = int(weight.shape[0])
        self._weight, self._scale, self._bias = weight, scale.detach(), bias

    def __call__(self, x: Any, rows: RowOwners | None = None) -> Any:
        return product(x, self._weight, self._scale, self._bias)


class MatrixMaker:
    """Makes what the checkpoint holds: int8 matrices, else plain or packed ones, whichever is
    faster for the size and device."""

    def __init__(self, *, consume: bool = False) -> None:
        """`consume`: empty each module once its matrix is made, so that the model is not held
        twice. Its own forward does not work afterwards."""
        self._consume = consume

    def __call__(self, name: str, modules: Sequence[Any]) -> Linear:
        weight, bias = joined(modules)
        made: Linear
        if isinstance(modules[0], Int8Linear):
            made = Int8Product(weight, torch.cat([m.weight_scale for m in modules]), bias)
        elif packs(weight):
            made = PackedLinear(weight, bias)
        else:
            made = PlainLinear(weight, bias)
        if self._consume:
            for module in modules:
                module.weight.data = module.weight.data.new_empty(0)
        return made


def packs(weight: Any) -> bool:
    """Whether a weight is worth packing, where oneDNN can: for bfloat16 it refuses on a CPU that
    has neither AVX-512 nor avx_ne_convert."""
    return (
        weight.device.type == "cpu"
        and (
            weight.dtype is torch.float32
            or (weight.dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )
        and weight.numel() >= PACKED_ELEMENTS_MIN
        and torch.backends.mkldnn.is_available()
    )
