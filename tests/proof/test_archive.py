from __future__ import annotations

import pytest

from tests.proof.archive import prove


@pytest.mark.slow
async def test_archivers_are_killed_at_random_for_a_few_seconds() -> None:
    found = await prove(seconds=5.0, seed=3, kills_min=2)
    assert found["drift_nano"] == 0
    assert found["kills"] >= 2
    assert found["rows"] > 0
