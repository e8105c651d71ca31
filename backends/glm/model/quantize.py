"""int8 weight-only: matrices in one byte a weight, half of bfloat16 and a quarter of float32.

Each output channel of a matrix is scaled so that its largest weight becomes 127 and rounded. That
is all there is to it: no calibration data, and activations are not quantised. Which tensors are
covered says `weights.quantises`. Quantised while loading, tensor by tensor, so a checkpoint that
fits only as int8 can also be loaded.

Products are made in 16 bits, where every int8 is exact, whatever the number type of the rest; the
scale follows in float32. On a CPU a few rows go through torch's own int8 kernel, which reads a byte
a weight; more rows are worth widening the matrix for. Both read the same numbers and round at the
same place. Elsewhere the matrix is widened for each product.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

from backends.glm.checkpoint.weights import quantises

METHOD = "yuzui-int8"
LARGEST = 127  # symmetric: -128 is not used, so no zero point is needed
# From here on the int8 kernel, which multiplies row by row, is slower than widening the matrix
# (6656 x 1024, one core of a Xeon of 2023: 8 rows 1.4 against 2.1 ms, 32 rows 5.2 against 2.6).
ROWS_WIDENED = 16

BLOCK_OUT, BLOCK_IN = 16, 32  # multiples that every version of the kernel walks in whole vectors


def quantised(weight: Any) -> tuple[Any, Any]:
    """(out, in) of any float type -> int8 of the same shape, and scales (out,) in float32."""
    wide = weight.float()
    # A channel of zeros stays zeros; any scale will do for it.
    scale = (wide.abs().amax(dim=1) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.round(wide / scale[:, None]).to(torch.int8), scale


def product(x: Any, weight: Any, scale: Any, bias: Any | None) -> Any:
    """`x` (..., in), `weight` (out, in) int8, `scale` (out,) -> (..., out) of x's type."""
    narrow = torch.float16 if x.dtype == torch.float16 else torch.bfloat16
    rows = x.reshape(-1, x.shape[-1]).to(narrow)
    if rows.shape[0] < ROWS_WIDENED and narrow == torch.bfloat16 and _kernel_takes(weight):
        ones = torch.ones_like(scale, dtype=narrow)
        made = torch._weight_int8pack_mm(rows.contiguous(), weight, ones)
    else:
        made = functional.linear(rows, weight.to(narrow))
    made = made.float() * scale
    if bias is not None:
        made += bias
    return made.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def _kernel_takes(weight: Any) -> bool:
    """The kernel does not check sizes: between its blocks it reads beyond the end and crashes."""
    out, width = (int(side) for side in weight.shape)
    on_cpu = str(weight.device.type) == "cpu"
    return on_cpu and out % BLOCK_OUT == 0 and width % BLOCK_IN == 0


class Int8Linear(nn.Module):  # type: ignore[misc]
    """Stands where an `nn.Linear` stood."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, dtype=torch.int8), requires_grad=False
        )
        self.weight_scale = nn.Parameter(
            torch.empty(out_features, dtype=torch.float32), requires_grad=False
        )
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @classmethod
    def of(cls, linear: Any) -> Int8Linear:
        """A float matrix, quantised."""
        made = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        made.weight.data, made.weight_scale.data = quantised(linear.weight.data)
        if linear.bias is not None:
            made.bias = linear.bias
        return made

    def forward(self, x: Any) -> Any:
        return product(x, self.weight, self.weight_scale, self.bias)


@register_quantization_config(METHOD)
@dataclass
class Int8Config(QuantizationConfigMixin):  # type: ignore[misc]
    """Pass it to from_pretrained as `quantization_config`."""

    quant_method: str = field(default=METHOD)


@register_quantizer(METHOD)
class _Int8Quantizer(HfQuantizer):  # type: ignore[misc]
    """transformers' hook between reading a tensor and keeping it."""

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and quantises(f"{name}.weight", 2):
                with torch.device("meta"):
                    made = Int8Linear(
                        module.in_features, module.out_features, bias=module.bias is not None
                    )
                model.set_submodule(name, made)
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Int8Linear) and name == "weight"

    def get_quantize_ops(self) -> Any:
        return _Quantise()

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


class _Quantise(ConversionOps):  # type: ignore[misc]
    def convert(self, input_dict: Any, full_layer_name: str = "", **_: Any) -> dict[str, Any]:
        ((_, value),) = input_dict.items()
        weight, scale = quantised(value[0] if isinstance(value, list) else value)
        return {full_layer_name: weight, f"{full_layer_name}_scale": scale}
