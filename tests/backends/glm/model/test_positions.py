from __future__ import annotations

import numpy as np
import pytest
import torch

from backends.glm.model.load import Checkpoint
from backends.glm.model.positions import rope_positions
from tests.backends.glm.batches import prompt_for


@pytest.mark.parametrize(
    "sizes",
    [[], [(28, 28)], [(112, 56)], [(56, 140)], [(57, 85), (28, 140), (100, 100)]],
)
def test_equal_to_transformers(checkpoint: Checkpoint, sizes: list[tuple[int, int]]) -> None:
    prompt = prompt_for(checkpoint, "What is this?", sizes)
    positions, delta = rope_positions(prompt)
    if prompt.pixels is None:
        assert (positions == np.arange(len(prompt.ids))).all()
        assert delta == 0
        return
    theirs, their_delta = checkpoint.model.model.get_rope_index(
        torch.tensor([prompt.ids]),
        mm_token_type_ids=torch.from_numpy(prompt.token_types)[None],
        image_grid_thw=torch.from_numpy(prompt.pixels.grid),
    )
    assert (positions == theirs[:, 0].numpy()).all()
    assert delta == int(their_delta)
    assert (delta < 0) == (sizes != [(28, 28)])
