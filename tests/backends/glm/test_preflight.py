"""A checkpoint that does not fit is refused before a weight is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from backends.glm import preflight
from backends.glm.checkpoint.files import LoadError
from backends.glm.engine.capacity import SLOTS_CPU, SLOTS_CUDA
from backends.glm.model import load
from backends.glm.options import parse_options
from backends.glm.preflight import ensure_fits, setting_of

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


def test_what_is_left_open_is_what_the_worker_will_choose() -> None:
    options = parse_options(["--model", "m"])
    assert setting_of(options, "", cuda=False).dtype == ""
    assert setting_of(options, "", cuda=False).slots == SLOTS_CPU
    assert setting_of(options, "", cuda=True).slots == SLOTS_CUDA
    set_all = ["--slots", "3", "--kv-tokens", "500", "--step-tokens", "7", "--dtype", "float16"]
    found = setting_of(parse_options(["--model", "m", *set_all]), "float16", cuda=True)
    assert (found.slots, found.kv_tokens, found.step_tokens) == (3, 500, 7)
    assert found.dtype == "float16"
