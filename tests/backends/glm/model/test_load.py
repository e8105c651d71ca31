from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.glm.checkpoint.files import LoadError
from backends.glm.checkpoint.weights import Tensor
from backends.glm.model import load as load_module
from backends.glm.model.load import Checkpoint, find_dtype, load_checkpoint
from backends.glm.types import Sampling
from tests.backends.glm.tiny import CONTEXT


@pytest.fixture
def copy(checkpoint_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_path, tmp_path / "copy"))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def load(path: Path, **options: Any) -> Checkpoint:
    return load_checkpoint(path, device="cpu", **options)


def test_every_id_and_limit_comes_from_the_checkpoint(checkpoint: Checkpoint) -> None:
    fast = checkpoint.tokenizer._fast
    stops = ("<|endoftext|>", "<|user|>", "<|observation|>")
    assert checkpoint.stop_ids == {fast.convert_tokens_to_ids(stop) for stop in stops}
    assert checkpoint.prompts.image_token_id == fast.convert_tokens_to_ids("<|image|>")
    assert checkpoint.max_model_len == CONTEXT
    assert checkpoint.sampling == Sampling(temperature=0.0)  # do_sample is false in the file
    assert checkpoint.model.dtype == torch.float32
    assert not checkpoint.model.training


@pytest.mark.parametrize(
    ("file", "remedy"),
    [
        ("config.json", "whole checkpoint"),
        ("tokenizer.json", "save_pretrained"),
        ("preprocessor_config.json", "original checkpoint"),
        ("model.safetensors", "safetensors"),
        ("chat_template.jinja", "copy it"),
    ],
)
def test_a_missing_file_is_named_with_its_remedy(copy: Path, file: str, remedy: str) -> None:
    (copy / file).unlink()
    with pytest.raises(LoadError, match=remedy) as caught:
        load(copy)
    assert file in str(caught.value)


def test_a_path_that_is_no_folder() -> None:
    with pytest.raises(LoadError, match="not a folder"):
        load(Path("zai-org/GLM-4.6V-Flash"))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_broken_file_is_named(copy: Path, file: str) -> None:
    (copy / file).write_text("{")
    with pytest.raises(LoadError, match=file):
        load(copy)


def test_files_of_different_checkpoints_are_told_apart(copy: Path) -> None:
    edit(copy / "preprocessor_config.json", patch_size=16)
    with pytest.raises(LoadError, match="patch_size"):
        load(copy)
    edit(copy / "preprocessor_config.json", patch_size=14)
    edit(copy / "config.json", image_token_id=151363)
    with pytest.raises(LoadError, match="image_token_id 151363"):
        load(copy)


@pytest.mark.parametrize(
    ("generation", "stops", "sampling"),
    [
        ({"eos_token_id": 5}, {5}, Sampling()),
        (
            {"eos_token_id": [5, 6], "temperature": 0.8, "top_p": 0.6, "top_k": 2,
             "repetition_penalty": 1.1, "do_sample": True},
            {5, 6},
            Sampling(temperature=0.8, top_p=0.6, top_k=2, repetition_penalty=1.1),
        ),
        ({}, {23}, Sampling()),  # the tokenizer's end-of-text token is the last resort
    ],
)  # fmt: skip
def test_stop_ids_and_sampling_defaults(
    copy: Path, generation: dict[str, Any], stops: set[int], sampling: Sampling
) -> None:
    (copy / "generation_config.json").write_text(json.dumps(generation))
    checkpoint = load(copy)
    assert checkpoint.stop_ids == stops
    assert checkpoint.sampling == sampling


def test_dtype_device_and_context_options(checkpoint_path: Path) -> None:
    small = load(checkpoint_path, dtype="bfloat16", max_model_len=100)
    assert small.model.dtype == torch.bfloat16
    assert small.max_model_len == small.prompts.max_model_len == 100
    for options, message in (
        ({"dtype": "int3"}, "--dtype int3"),
        ({"max_model_len": CONTEXT + 1}, f"between 2 and {CONTEXT}"),
    ):
        with pytest.raises(LoadError, match=message):
            load(checkpoint_path, **options)
    with pytest.raises(LoadError, match="--device toaster"):
        load_checkpoint(checkpoint_path, device="toaster")


def tensors(**elements: int) -> list[Tensor]:
    return [Tensor(name=kind, dtype=kind, shape=(n,)) for kind, n in elements.items()]


def test_the_number_type_that_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    mostly_narrow, mostly_wide = tensors(BF16=90, F32=10), tensors(BF16=10, F32=90)
    for can in (True, False):
        monkeypatch.setattr(load_module, "cpu_multiplies_bfloat16", lambda can=can: can)
        assert find_dtype("auto", cpu, mostly_narrow) == ("bfloat16" if can else "float32")
        assert find_dtype("auto", cpu, mostly_wide) == "float32"
        assert find_dtype("auto", cpu, tensors(F16=100)) == "float32"
        assert find_dtype("auto", gpu, mostly_wide) == ""
        assert find_dtype("float16", cpu, mostly_narrow) == "float16"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_what_the_cpu_multiplies_is_what_the_kernel_says() -> None:
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    assert load_module.cpu_multiplies_bfloat16() == bool(flags & {"avx512_bf16", "amx_bf16"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_that_is_not_there(checkpoint_path: Path) -> None:
    with pytest.raises(LoadError, match="no CUDA device"):
        load_checkpoint(checkpoint_path, device="cuda:0")
