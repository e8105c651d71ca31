from __future__ import annotations

import pytest

from policies.drift import PICTURES_MIN, Drift


def seen(expected: int, counted: int, answers: int = PICTURES_MIN) -> Drift:
    found = Drift(target="cloud:m")
    for _ in range(answers):
        found = found.plus(expected, counted)
    return found


@pytest.mark.parametrize(
    ("expected", "counted", "alarming"),
    [(1_000, 1_000, False), (1_000, 1_020, False), (1_000, 1_021, True), (1_000, 979, True),
     (1_280, 697, True)],
)  # fmt: skip
def test_two_in_a_hundred_are_too_many(expected: int, counted: int, alarming: bool) -> None:
    found = seen(expected, counted)
    assert found.alarming is alarming
    assert found.share == pytest.approx(counted / expected - 1)


def test_a_few_answers_are_no_alarm() -> None:
    assert not seen(1_000, 5_000, PICTURES_MIN - 1).alarming
    assert seen(1_000, 5_000).alarming


def test_what_has_no_rule_or_no_count_tells_nothing() -> None:
    one = Drift(target="t")
    assert one.plus(0, 500) is one
    assert one.plus(500, 0) is one
    assert (one.share, one.alarming) == (0.0, False)
