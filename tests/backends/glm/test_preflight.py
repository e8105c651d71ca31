"""A checkpoint that does not fit is refused before a weight is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backends.glm import preflight, startup
from backends.glm.checkpoint.capacity import SLOTS_CPU, SLOTS_CUDA
from backends.glm.checkpoint.files import LoadError
from backends.glm.checkpoint.fit import laid_out, read_shape
from backends.glm.engine.prefix import BLOCK
from backends.glm.model import load
from backends.glm.options import parse_options
from backends.glm.preflight import ensure_fits, setting_of
from backends.glm.startup import assemble

from .nine_b import make_headers


@pytest.fixture
def nine_b(tmp_path: Path, checkpoint_path: Path) -> Path:
    shutil.copy(checkpoint_path / "tokenizer.json", tmp_path)
    return make_headers(tmp_path)


def _free(monkeypatch: pytest.MonkeyPatch, gigabytes: float) -> None:
    monkeypatch.setattr(preflight, "host_free_bytes", lambda: int(gigabytes * 1e9))


def test_the_9b_on_a_small_machine(nine_b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _free(monkeypatch, 24)
    options = ["--model", str(nine_b), "--device", "cpu", "--dtype", "float32"]
    with pytest.raises(LoadError, match=r"4\d\.\d GB needed on cpu .* 24\.0 GB free") as error:
        ensure_fits(parse_options(options))
    assert "use --quantize int8 (needs" in str(error.value)
    ensure_fits(parse_options([*options, "--quantize", "int8"]))


def test_the_9b_on_a_large_machine(nine_b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _free(monkeypatch, 64)
    options = parse_options(["--model", str(nine_b), "--device", "cpu"])
    for narrow, weights in ((True, 20.6e9), (False, 41.2e9)):  # what loading would choose
        monkeypatch.setattr(load, "cpu_multiplies_bfloat16", lambda narrow=narrow: narrow)
        assert ensure_fits(options).weights == pytest.approx(weights, rel=0.01)


def test_a_small_checkpoint_fits_here(checkpoint_path: Path) -> None:
    assert ensure_fits(parse_options(["--model", str(checkpoint_path)])).total < 1e9


def test_what_is_left_open_is_what_the_worker_will_choose(checkpoint_path: Path) -> None:
    options = parse_options(["--model", "m"])
    assert setting_of(options, "", cuda=False).dtype == ""
    shape = read_shape(checkpoint_path)
    assert laid_out(shape, setting_of(options, "", cuda=False)).slots == SLOTS_CPU
    assert laid_out(shape, setting_of(options, "", cuda=True)).slots == SLOTS_CUDA
    set_all = ["--slots", "3", "--kv-tokens", "500", "--step-tokens", "7", "--dtype", "float16"]
    found = setting_of(parse_options(["--model", "m", *set_all]), "float16", cuda=True)
    made = laid_out(shape, found)
    assert (made.slots, made.kv_tokens, made.step_tokens) == (3, 498, 7)
    assert found.dtype == "float16"


@pytest.mark.parametrize(
    "line",
    [
        ("--kv-tokens", "6250000"),  # far more than slots x context can use
        ("--kv-tokens", "5000", "--slots", "3"),
        ("--kv-tokens", "1000", "--kept-tokens", "640", "--slots", "4"),
        ("--kv-tokens", "10"),  # fewer than slots
        ("--max-model-len", "512", "--kept-tokens", "0"),
        (),
    ],
)
def test_the_check_and_the_worker_that_starts_have_the_same_figures(
    checkpoint_path: Path, line: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a real worker: its cache as it was allocated, and what it may remember of pictures."""
    monkeypatch.setattr(startup, "host_free_bytes", lambda: 0)  # what is open is then at its least
    options = parse_options(["--model", str(checkpoint_path), *line])
    needed = ensure_fits(options)
    made = assemble(options, lambda: None)
    load = made.engine.load()
    assert load.kv_tokens_total == needed.cache_tokens
    cache = made.engine._model._cache._data  # type: ignore[attr-defined]
    pictures = made.engine._model._vision._kept_bytes  # type: ignore[attr-defined]
    one_block = BLOCK * cache.numel() // cache.shape[1] * cache.element_size()
    in_all = cache.numel() * cache.element_size() + pictures
    assert 0 <= needed.cache - in_all < one_block


def test_adapters_are_counted(checkpoint_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "faq"
    folder.mkdir()
    save_file({"a": torch.zeros(1_000, 250)}, folder / "adapter_model.safetensors")
    plain = ["--model", str(checkpoint_path), "--dtype", "float32"]
    without = ensure_fits(parse_options(plain))
    adapted = ensure_fits(parse_options([*plain, "--adapter", f"faq={folder}"]))
    assert (without.adapters, adapted.adapters) == (0, 1_000_000)
    assert adapted.total - without.total == pytest.approx(1_030_000, abs=2)
