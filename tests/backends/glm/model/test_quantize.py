"""int8 weight-only: how far a product may be off, and the same model through every path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from backends.glm.checkpoint.fit import Setting, need, read_shape
from backends.glm.checkpoint.weights import quantises, read_tensors
from backends.glm.model.lean import claims
from backends.glm.model.load import Checkpoint, load_checkpoint
from backends.glm.model.quantize import ROWS_WIDENED, Int8Linear, product, quantised
from tests.backends.glm.model.test_lean import forward_of, model_of


def _weight(out: int, width: int, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    # Channels of very different size: one scale for all of them would lose the small ones.
    sizes = 10.0 ** torch.randint(-4, 3, (out, 1), generator=generator)
    return torch.randn(out, width, generator=generator) * sizes


@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 9))
def test_no_weight_is_off_by_more_than_half_a_step(out: int, width: int, seed: int) -> None:
    weight = _weight(out, width, seed)
    made, scale = quantised(weight)
    assert made.dtype == torch.int8
    assert scale.shape == (out,)
    off = (made.float() * scale[:, None] - weight).abs()
    assert (off <= 0.501 * scale[:, None]).all()
    assert (made.abs().amax(dim=1) == 127).all()  # every channel uses the whole range


def test_a_channel_of_zeros_stays_zeros() -> None:
    made, scale = quantised(torch.zeros(3, 8))
    assert not made.any()
    assert torch.isfinite(scale).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, ROWS_WIDENED - 1, ROWS_WIDENED, 65])
def test_a_product_is_that_of_the_quantised_matrix(rows: int, dtype: torch.dtype) -> None:
    weight, bias = _weight(48, 64, 1), torch.linspace(-1, 1, 48)
    made, scale = quantised(weight)
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = product(x, made, scale, bias)
    assert found.dtype == dtype
    wide = made.double() * scale[:, None].double()
    exact = functional.linear(x.double(), wide, bias.double())
    # Operands and result in 16 bits: a relative error of 2^-8 of the largest possible sum.
    bound = 2**-7 * functional.linear(x.double().abs(), wide.abs()) + 1e-2
    assert ((found.double() - exact).abs() <= bound).all()


def test_a_row_does_not_depend_on_how_many_are_multiplied_with_it() -> None:
    made, scale = quantised(_weight(48, 64, 1))
    x = torch.randn(65, 64, generator=torch.Generator().manual_seed(2))
    few, many = product(x[:3], made, scale, None), product(x, made, scale, None)[:3]
    torch.testing.assert_close(few, many, rtol=2**-7, atol=1e-6)


def test_leading_dimensions_stay() -> None:
    linear = Int8Linear.of(nn.Linear(6, 4))
    assert linear(torch.zeros(2, 3, 6)).shape == (2, 3, 4)
    assert linear(torch.zeros(6)).shape == (4,)


@pytest.fixture(scope="module")
def int8(checkpoint_path: Path) -> Checkpoint:
    return load_checkpoint(checkpoint_path, device="cpu", quantize="int8")


def test_loading_quantises_every_matrix_and_nothing_else(
    int8: Checkpoint, checkpoint: Checkpoint
) -> None:
    plain = dict(checkpoint.model.named_parameters())
    for name, parameter in int8.model.named_parameters():
        if name.endswith("_scale"):
            continue
        if quantises(name, plain[name].ndim):
            assert parameter.dtype == torch.int8, name
            scale = int8.model.get_parameter(f"{name}_scale")
            again, same = quantised(plain[name].data)
            assert torch.equal(parameter, again), name
            assert torch.equal(scale, same), name
        else:
            assert torch.equal(parameter, plain[name]), name
    assert not [m for m in int8.model.modules() if type(m) is nn.Linear]


def test_the_memory_is_what_was_computed_before_loading(
    int8: Checkpoint, checkpoint_path: Path
) -> None:
    setting = Setting(dtype="float32", int8=True, max_model_len=64)
    computed = need(read_shape(checkpoint_path), read_tensors(checkpoint_path), setting).weights
    assert computed == sum(p.numel() * p.element_size() for p in int8.model.parameters())


def test_the_lean_step_claims_it_and_agrees_with_transformers_forward() -> None:
    model = model_of("glm4v")
    before, _ = forward_of(model)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            model.set_submodule(name, Int8Linear.of(module))
    assert claims(model)
    theirs, ours = forward_of(model)
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
    assert not torch.equal(theirs, before)  # it was quantised
    cosine = functional.cosine_similarity(theirs.flatten(), before.flatten(), dim=0)
    assert cosine > 0.98
