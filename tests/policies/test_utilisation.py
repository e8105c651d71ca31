from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.server_cost import ServerRate, slot_cost
from policies.utilisation import LocalUse

RATE = ServerRate(full_nano_per_s=1_000, marginal_nano_per_s=400)
HOUR_MS = 3_600_000


def used(slots: int, *times_ms: int) -> LocalUse:
    found = LocalUse(target="w1")
    for slot_ms in times_ms:
        cost = slot_cost(RATE, slots=slots, slot_ms=slot_ms)
        found = found.plus(
            slot_ms=slot_ms,
            slots=slots,
            posted_nano=cost.full_nano,
            marginal_nano=cost.marginal_nano,
        )
    return found


def test_a_server_whose_slots_are_all_taken_is_carried_whole() -> None:
    found = used(4, *[HOUR_MS] * 4)
    assert found.utilisation(HOUR_MS) == 1.0
    assert found.whole_nano(RATE, HOUR_MS) == found.carried_nano == 3_600 * 1_000
    assert found.unused_nano(RATE, HOUR_MS) == 0
    assert found.marginal_nano == 3_600 * 400


def test_what_nobody_used_costs_its_idle_seconds() -> None:
    assert used(4).unused_nano(RATE, HOUR_MS) == 3_600 * 600
    half = used(4, HOUR_MS, HOUR_MS)
    assert half.utilisation(HOUR_MS) == 0.5
    assert half.whole_nano(RATE, HOUR_MS) == 3_600 * (600 + 200)
    assert half.unused_nano(RATE, HOUR_MS) == 3_600 * 300
    assert half.utilisation(0) == 0.0


@given(st.integers(1, 64), st.lists(st.integers(0, HOUR_MS), max_size=20))
def test_carried_and_unused_are_the_whole(slots: int, times_ms: list[int]) -> None:
    """But for rounding, which goes up by less than one unit an answer."""
    found = used(slots, *times_ms)
    window_ms = HOUR_MS * max(1, -(-len(times_ms) // slots))
    whole = found.whole_nano(RATE, window_ms)
    together = found.carried_nano + found.unused_nano(RATE, window_ms)
    assert together == pytest.approx(whole, abs=3 * len(times_ms) + 2)
