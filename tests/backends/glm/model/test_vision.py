"""The encoder written out, against transformers' own on every architecture it claims."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from backends.glm.model import linears
from backends.glm.model.lean import ARCHITECTURES
from backends.glm.model.linears import MatrixMaker
from backends.glm.model.load import Checkpoint
from backends.glm.model.vision import Encoder, LeanVision, StockVision, claims_vision
from backends.glm.types import Picture
from tests.backends.glm.conftest import picture
from tests.backends.glm.model.test_lean import model_of

SIZES = [(112, 56), (28, 28), (57, 85), (112, 56), (300, 200)]


def pictures(checkpoint: Checkpoint) -> list[Picture]:
    made = [picture(w, h, seed=i) for i, (w, h) in enumerate(SIZES)]
    return [p for one in made for p in checkpoint.prompts.vision.pixels(one).pictures]


def close(ours: Encoder, theirs: Encoder, seen: list[Picture]) -> None:
    with torch.inference_mode():
        for found, expected, one in zip(ours.encode(seen), theirs.encode(seen), seen, strict=True):
            assert found.shape == expected.shape
            assert len(found) == one.tokens
            assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("packed", [False, True])
def test_equal_to_transformers(
    checkpoint: Checkpoint, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linears, "PACKED_ELEMENTS_MIN", 1 if packed else 10**9)
    assert claims_vision(checkpoint.model)
    lean, stock = LeanVision(checkpoint.model, MatrixMaker()), StockVision(checkpoint.model)
    seen = pictures(checkpoint)
    close(lean, stock, seen)
    close(lean, stock, seen[:1])


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_every_architecture(checkpoint: Checkpoint, kind: str) -> None:
    model = model_of(kind)
    assert claims_vision(model)
    close(LeanVision(model, MatrixMaker()), StockVision(model), pictures(checkpoint))


def test_a_picture_does_not_see_the_others(checkpoint: Checkpoint) -> None:
    lean = LeanVision(checkpoint.model, MatrixMaker())
    seen = pictures(checkpoint)
    with torch.inference_mode():
        together = lean.encode(seen)
        for one, found in zip(seen, together, strict=True):
            assert torch.allclose(lean.encode([one])[0], found, atol=1e-5)
    assert not torch.allclose(together[0], together[3], atol=1e-3)  # equal sizes, other content


def test_what_it_does_not_know_it_does_not_claim() -> None:
    model: Any = model_of("glm4v")
    model.model.visual.config.hidden_act = "gelu"
    assert not claims_vision(model)
    model = model_of("glm4v")
    model.model.visual.merger.proj = nn.Sequential(model.model.visual.merger.proj)
    assert not claims_vision(model)
