"""Headers of safetensors files: read as torch's own library writes them, refused when broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from backends.glm.checkpoint.files import LoadError
from backends.glm.checkpoint.weights import (
    Tensor,
    quantises,
    read_header,
    read_tensors,
    weight_files,
)
from tests.backends.glm.nine_b import make_headers


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    tensors = {"a.weight": torch.zeros(3, 5, dtype=torch.bfloat16), "b.bias": torch.zeros(7)}
    save_file(tensors, file, metadata={"format": "pt"})
    assert sorted(read_tensors(tmp_path), key=lambda t: t.name) == [
        Tensor(name="a.weight", dtype="BF16", shape=(3, 5)),
        Tensor(name="b.bias", dtype="F32", shape=(7,)),
    ]


def test_every_file_of_an_index_is_read_once(tmp_path: Path) -> None:
    folder = make_headers(tmp_path, files=3)
    assert len(weight_files(folder)) == 3
    names = [tensor.name for tensor in read_tensors(folder)]
    assert len(names) == len(set(names)) > 500


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = make_headers(tmp_path, files=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(LoadError, match=r"lacks model-00002-of-00003.*1 of 3"):
        read_tensors(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(LoadError, match="not an index"):
        read_tensors(folder)


@given(raw=st.binary(max_size=64))
def test_whatever_is_no_header_is_refused_and_nothing_else(
    raw: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "garbage.safetensors"
    file.write_bytes(raw)
    if raw[8 : 8 + int.from_bytes(raw[:8], "little")] == b"{}":
        assert read_header(file) == []  # an empty header is a header
    else:
        with pytest.raises(LoadError, match=r"garbage\.safetensors"):
            read_header(file)


def test_a_file_cut_off_inside_its_header_is_refused(tmp_path: Path) -> None:
    file = make_headers(tmp_path, files=1) / "model-00001-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LoadError, match="cut off"):
        read_header(file)


@pytest.mark.parametrize(
    ("name", "rank", "covered"),
    [
        ("lm_head.weight", 2, True),
        ("model.language_model.layers.0.mlp.gate_up_proj.weight", 2, True),
        ("model.visual.blocks.3.attn.qkv.weight", 2, True),
        ("model.language_model.embed_tokens.weight", 2, False),
        ("model.visual.embeddings.position_embedding.weight", 2, False),
        ("model.visual.patch_embed.proj.weight", 5, False),
        ("model.language_model.layers.0.self_attn.q_proj.bias", 1, False),
    ],
)
def test_int8_covers_matrices_that_are_multiplied_by(name: str, rank: int, covered: bool) -> None:
    assert quantises(name, rank) is covered


def test_what_int8_covers_is_most_of_the_9b(tmp_path: Path) -> None:
    tensors = read_tensors(make_headers(tmp_path))
    covered = sum(t.elements for t in tensors if quantises(t.name, len(t.shape)))
    assert covered / sum(t.elements for t in tensors) > 0.93
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "glm4v"
