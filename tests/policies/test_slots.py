from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.slots import Occupancy, occupy

TRAFFIC = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 500)), min_size=1, max_size=60
).map(lambda pairs: sorted(pairs))


def played(traffic: list[tuple[int, int]], slots: int, wait: int | None) -> Occupancy:
    return occupy([a for a, _ in traffic], [n for _, n in traffic], slots=slots, wait_ms_max=wait)


def test_by_hand() -> None:
    """Two slots, a second each, half a second of patience: the fifth comes back to a free slot."""
    seen = occupy([0, 0, 400, 600, 1000], [1000] * 5, slots=2, wait_ms_max=500)
    assert seen.overflowed == (False, False, True, False, False)
    assert seen.wait_ms == (0, 0, 0, 400)
    assert (seen.busy_ms, seen.end_ms) == (4000, 2000)
    assert seen.wait_at(0.99) == 400
    assert seen.wait_at(0.5) == 0


def test_without_patience_only_a_free_slot_will_do() -> None:
    assert occupy([0, 1], [10, 10], slots=1, wait_ms_max=0).overflowed == (False, True)
    assert occupy([0, 10], [10, 10], slots=1, wait_ms_max=0).overflowed == (False, False)


def test_without_slots_everything_overflows() -> None:
    seen = occupy([0, 5], [1, 1], slots=0, wait_ms_max=None)
    assert seen.overflowed == (True, True)
    assert seen.wait_at(0.5) == 0


def test_arrivals_out_of_order_are_refused() -> None:
    with pytest.raises(ValueError, match="in order"):
        occupy([5, 4], [1, 1], slots=1, wait_ms_max=0)


@given(traffic=TRAFFIC, slots=st.integers(1, 8), wait=st.integers(0, 300))
def test_what_must_hold(traffic: list[tuple[int, int]], slots: int, wait: int) -> None:
    seen = played(traffic, slots, wait)
    served = [need for (_, need), out in zip(traffic, seen.overflowed, strict=True) if not out]
    assert seen.busy_ms == sum(served)
    assert len(seen.wait_ms) == len(served)
    assert all(w <= wait for w in seen.wait_ms)
    assert not any(played(traffic, slots, None).overflowed)
    assert not any(played(traffic, len(traffic), 0).overflowed)
    assert seen.busy_ms <= slots * seen.end_ms
