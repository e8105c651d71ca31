from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from backends.glm.model import linears
from backends.glm.model.linears import MatrixMaker, PackedLinear, PlainLinear, joined, packs


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_the_product_is_that_of_the_module(packed: bool, bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    module = nn.Linear(48, 80, bias=bias)
    kind = PackedLinear if packed else PlainLinear
    made = kind(*joined([module]))
    assert made.out_features == 80
    x = torch.randn(rows, 48)
    with torch.inference_mode():
        assert torch.allclose(made(x), module(x), atol=1e-5)


def test_several_modules_side_by_side() -> None:
    torch.manual_seed(0)
    modules = [nn.Linear(8, 4), nn.Linear(8, 6, bias=False), nn.Linear(8, 2)]
    made = MatrixMaker()("layers.0.qkv", modules)
    x = torch.randn(5, 8)
    with torch.inference_mode():
        assert torch.allclose(made(x), torch.cat([m(x) for m in modules], dim=-1), atol=1e-6)
    assert made.out_features == 12


def test_large_matrices_are_packed_and_small_ones_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "PACKED_ELEMENTS_MIN", 64)
    assert packs(torch.zeros(8, 8))
    assert not packs(torch.zeros(8, 7))
    assert not packs(torch.zeros(8, 8, dtype=torch.float64))
    assert not packs(torch.zeros(8, 8, device="meta"))


ON_ANY_CPU = """
import torch
from torch import nn
from backends.glm.model import linears
linears.PACKED_ELEMENTS_MIN = 1
for dtype in (torch.float32, torch.bfloat16):
    module = nn.Linear(32, 16, dtype=dtype)
    x = torch.randn(3, 32, dtype=dtype)
    with torch.inference_mode():
        made = linears.MatrixMaker()("out", [module])
        assert torch.allclose(made(x), module(x), atol=1e-5 if dtype is torch.float32 else 0.05)
    print(type(made).__name__)
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="about x86 processors")
def test_a_processor_without_avx512_computes_too() -> None:
    """oneDNN packs no bfloat16 there."""
    done = subprocess.run(
        [sys.executable, "-c", ON_ANY_CPU], capture_output=True, text=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["PackedLinear", "PlainLinear"]


@pytest.mark.parametrize("smallest", [1, 10**9])
def test_a_consumed_module_is_empty_and_the_matrix_is_not(
    smallest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linears, "PACKED_ELEMENTS_MIN", smallest)
    module = nn.Linear(8, 4)
    x = torch.randn(2, 8)
    expected = module(x).detach()
    made = MatrixMaker(consume=True)("out", [module])
    assert module.weight.numel() == 0
    with torch.inference_mode():
        assert torch.allclose(made(x), expected, atol=1e-6)
