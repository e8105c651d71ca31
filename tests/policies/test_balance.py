from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.balance import COLDEST, load, order, warmth
from policies.latency import of_worker
from tests.policies.builders import facts, worker


def first_choices(scored: list[tuple[float, str, str]], draws: int = 3_000) -> Counter[str]:
    rng = Random(7)
    return Counter(order(scored, rng)[0] for _ in range(draws))


@given(
    st.lists(st.tuples(st.floats(0, 100), st.text(max_size=2)), max_size=7, unique_by=lambda r: r),
    st.integers(0, 2**32),
)
def test_everybody_is_in_it_once_and_after_the_first_by_load(
    rows: list[tuple[float, str]], seed: int
) -> None:
    scored = [(load_, name, (load_, name)) for load_, name in rows]
    found = order(scored, Random(seed))
    assert sorted(found) == sorted(rows)
    assert found[1:] == sorted(found[1:])
    assert found == order(scored, Random(seed)), "the same draw gives the same order"
    assert found == order(scored[::-1], Random(seed)), "whatever order they were listed in"


def test_one_or_none() -> None:
    assert order([], Random(0)) == []
    assert order([(3.0, "a", "a")], Random(0)) == ["a"]


def test_of_two_the_better_one_is_always_first() -> None:
    assert first_choices([(2.0, "a", "a"), (1.0, "b", "b")]) == {"b": 3_000}


def test_the_better_of_two_drawn_at_random() -> None:
    """Of four, the best is in half of all pairs, the next in a third, the third in a sixth."""
    drawn = first_choices([(float(i), name, name) for i, name in enumerate("abcd")])
    assert set(drawn) == {"a", "b", "c"}, "the worst is never the better of two"
    for name, share in (("a", 1 / 2), ("b", 1 / 3), ("c", 1 / 6)):
        assert drawn[name] / 3_000 == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_equal_ones_are_drawn_alike(count: int) -> None:
    drawn = first_choices([(1.0, f"w{i}", f"w{i}") for i in range(count)])
    assert len(drawn) == count
    assert max(drawn.values()) < 1.2 * 3_000 / count


def test_a_worker_is_the_more_loaded_the_more_of_its_slots_are_taken() -> None:
    asked = facts()
    idle, half, taken = (worker(running=n) for n in (0, 4, 8))
    loads = [load(w, of_worker(w, asked, 100)) for w in (idle, half, taken)]
    assert loads == sorted(loads)
    assert loads[1] == 1.5 * loads[0]


def test_gateways_that_do_not_see_each_other_do_not_all_take_the_same_worker() -> None:
    """Eight gateways decide at the same moment on the same reports, a hundred times. Were each to
    take the best, one worker would get all eight every time."""
    rng = Random(3)
    asked = facts()
    running = Counter({f"w{i}": 0 for i in range(4)})
    worst = 0
    for _ in range(100):
        reports = [worker(name, slots=64, running=n) for name, n in running.items()]
        scored = [(load(w, of_worker(w, asked, 100)), w.id, w.id) for w in reports]
        herd = Counter(order(scored, rng)[0] for _ in range(8))
        worst = max(worst, max(herd.values()))
        running.update(herd)
        for name in running:  # a quarter of them end before the next reports
            running[name] -= running[name] // 4
    assert worst < 8
    assert max(running.values()) - min(running.values()) <= 8


def test_a_favourite_is_compared_whoever_is_drawn_and_wins_only_if_it_has_less_to_do() -> None:
    rows = [(float(i), name, name) for i, name in enumerate("abcd")]
    assert {order(rows, Random(n), "a")[0] for n in range(50)} == {"a"}
    assert {order(rows, Random(n), "d")[0] for n in range(50)} == {"a", "b", "c"}
    assert {order(rows, Random(n), "gone")[0] for n in range(50)} == {"a", "b", "c"}


def test_a_newcomer_gets_its_load_little_by_little() -> None:
    assert [warmth(s, 10.0) for s in (0, 1, 5, 10, 99)] == [COLDEST, 0.1, 0.5, 1.0, 1.0]
    assert warmth(0.0, 0.0) == 1.0
    asked = facts()
    cold, warm = (load(worker(warmth=w), of_worker(worker(), asked, 100)) for w in (0.1, 1.0))
    assert cold == pytest.approx(10 * warm)


def test_of_two_equals_the_heavier_one_is_preferred() -> None:
    asked = facts()
    plain, heavy = (load(worker(weight=w), of_worker(worker(), asked, 100)) for w in (1.0, 2.0))
    assert heavy == plain / 2
