from __future__ import annotations

import pytest

from policies.outlier import ANSWERS_MIN, WINDOW_S, Window, add, failing


def answers(*well: bool, apart_s: float = 0.0) -> Window:
    window = Window()
    for number, good in enumerate(well):
        window = add(window, number * apart_s, well=good)
    return window


def test_every_other_failure_is_noticed_though_none_follows_another() -> None:
    assert failing(answers(*[False, True] * 5))
    assert not failing(answers(*[False, True, True] * 5))


def test_few_answers_prove_nothing() -> None:
    assert not failing(answers(*[False] * (int(ANSWERS_MIN) - 1)))
    assert failing(answers(*[False] * int(ANSWERS_MIN)))


def test_what_is_long_ago_is_forgotten() -> None:
    ill = answers(*[False] * 20)
    assert failing(ill)
    later = add(ill, 4 * WINDOW_S, well=True)
    assert not failing(later)
    assert later.bad == pytest.approx(20 * 2.718281828**-4, rel=1e-6)


def test_a_clock_that_stands_still_or_goes_back_does_no_harm() -> None:
    window = add(Window(good=1.0, at_s=100.0), 50.0, well=False)
    assert (window.good, window.bad) == (1.0, 1.0)
