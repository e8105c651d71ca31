"""What fits, on the published sizes of the 9B, and the remedies when it does not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.glm.checkpoint.capacity import Asked
from backends.glm.checkpoint.files import LoadError
from backends.glm.checkpoint.fit import Setting, Shape, check_fits, need, read_shape, token_bytes
from backends.glm.checkpoint.weights import Tensor, read_tensors
from backends.glm.model.load import Checkpoint
from tests.backends.glm.nine_b import make_headers

GB = 10**9
BF16 = Setting(dtype="bfloat16", int8=False, max_model_len=0, cuda=True)
KEPT = 1 + 1 / 8 + 1 / 32  # prompts and pictures are remembered beside the cache


@pytest.fixture(scope="module")
def nine_b(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shape, list[Tensor]]:
    folder = make_headers(tmp_path_factory.mktemp("nine_b"))
    return read_shape(folder), read_tensors(folder)


def test_the_9b_is_as_large_as_it_is_published_to_be(nine_b: tuple[Shape, list[Tensor]]) -> None:
    shape, tensors = nine_b
    assert sum(t.elements for t in tensors) == pytest.approx(10.29e9, rel=0.01)
    assert token_bytes(shape, BF16) == 40_960
    assert shape.picture_tokens == 6144
    found = need(shape, tensors, BF16)
    assert found.weights == pytest.approx(20.6e9, rel=0.01)
    assert found.cache == 8192 * 40_960 * KEPT
    assert 1 * GB < found.working < 3 * GB


def test_int8_halves_the_weights(nine_b: tuple[Shape, list[Tensor]]) -> None:
    shape, tensors = nine_b
    half = need(shape, tensors, replace(BF16, int8=True)).weights
    assert half / need(shape, tensors, BF16).weights == pytest.approx(0.5, abs=0.04)
    assert half / need(shape, tensors, replace(BF16, dtype="float32")).weights < 0.28


def test_a_24_gb_card_takes_bf16_and_a_16_gb_card_is_told_int8(
    nine_b: tuple[Shape, list[Tensor]],
) -> None:
    shape, tensors = nine_b
    check_fits(shape, tensors, BF16, free_bytes=int(25.2 * GB), device="cuda:0")
    with pytest.raises(LoadError) as error:
        check_fits(shape, tensors, BF16, free_bytes=int(15.8 * GB), device="cuda:0")
    message = str(error.value)
    assert re.match(r"2\d\.\d GB needed on cuda:0 \(weights 20\.\d, cache 0\.4 for 8,192", message)
    assert "15.8 GB free: use --quantize int8 (needs 1" in message


def test_a_long_context_is_told_a_shorter_one_that_fits(
    nine_b: tuple[Shape, list[Tensor]],
) -> None:
    shape, tensors = nine_b
    long = replace(BF16, max_model_len=131072)
    with pytest.raises(LoadError, match=r"--max-model-len 32768 \(needs 2") as error:
        check_fits(shape, tensors, long, free_bytes=25 * GB, device="cuda:0")
    assert "--quantize int8 (" in str(error.value)
    check_fits(
        shape, tensors, replace(long, max_model_len=32768), free_bytes=25 * GB, device="cuda:0"
    )
    held = replace(BF16, asked=Asked(kv_tokens=400_000))
    with pytest.raises(LoadError, match=r"--kv-tokens \d+ "):
        check_fits(shape, tensors, held, free_bytes=25 * GB, device="cuda:0")


def test_two_changes_are_named_only_where_one_is_not_enough(
    nine_b: tuple[Shape, list[Tensor]],
) -> None:
    shape, tensors = nine_b
    long = replace(BF16, max_model_len=131072)
    with pytest.raises(LoadError, match=r"use --quantize int8 --max-model-len \d+ \(") as error:
        check_fits(shape, tensors, long, free_bytes=14 * GB, device="cuda:0")
    assert " or " not in str(error.value)


def test_where_nothing_helps_it_says_so(nine_b: tuple[Shape, list[Tensor]]) -> None:
    shape, tensors = nine_b
    with pytest.raises(LoadError, match="no setting makes it fit"):
        check_fits(shape, tensors, BF16, free_bytes=8 * GB, device="cuda:0")


def test_float32_is_told_of_bfloat16(nine_b: tuple[Shape, list[Tensor]]) -> None:
    shape, tensors = nine_b
    wide = replace(BF16, dtype="float32")
    with pytest.raises(LoadError, match=r"--dtype bfloat16 \(needs"):
        check_fits(shape, tensors, wide, free_bytes=30 * GB, device="cpu")


@given(
    free=st.integers(0, 80 * GB),
    context=st.sampled_from([0, 2048, 32768, 131072]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    int8=st.booleans(),
)
def test_every_remedy_that_is_named_is_one(
    nine_b: tuple[Shape, list[Tensor]], free: int, context: int, dtype: str, int8: bool
) -> None:
    shape, tensors = nine_b
    setting = replace(BF16, dtype=dtype, int8=int8, max_model_len=context)
    try:
        assert check_fits(shape, tensors, setting, free_bytes=free, device="d").total <= free
    except LoadError as error:
        for length in re.findall(r"use .*?--max-model-len (\d+)", str(error)):
            assert 1024 <= int(length) < (context or 8192)
        for total in re.findall(r"needs ([\d.]+) GB", str(error)):
            assert float(total) * GB <= free + 0.05 * GB
        assert need(shape, tensors, setting).total > free


def test_weights_and_cache_of_a_real_model_are_what_is_computed(
    checkpoint_path: Path, checkpoint: Checkpoint
) -> None:
    shape, tensors = read_shape(checkpoint_path), read_tensors(checkpoint_path)
    real = {name: value for name, value in checkpoint.model.named_parameters()}
    setting = replace(BF16, dtype="float32", max_model_len=2048)
    found = need(shape, tensors, setting)
    assert found.weights == sum(p.numel() * p.element_size() for p in real.values())
    text = checkpoint.model.config.get_text_config()
    width = text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    assert found.cache == KEPT * 2048 * 2 * text.num_hidden_layers * width * 4


def test_a_config_without_a_size_is_named(tmp_path: Path) -> None:
    folder = make_headers(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["num_key_value_heads"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match=r"config\.json has no num_key_value_heads"):
        read_shape(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(LoadError, match="not valid JSON"):
        read_shape(folder)
