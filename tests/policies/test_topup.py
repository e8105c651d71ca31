from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from policies.topup import (
    BOUND_TOKENS_MIN,
    CUT_MS,
    MARGIN_MS,
    SAMPLES_MIN,
    cut_in_ms,
    grown_nano,
    grows_in_ms,
    output_bound,
)


def test_a_few_answers_are_an_anecdote() -> None:
    assert output_bound([100] * (SAMPLES_MIN - 1), most=9_999) is None
    assert output_bound([100] * SAMPLES_MIN, most=9_999) == 200
    assert output_bound([1] * SAMPLES_MIN, most=9_999) == BOUND_TOKENS_MIN
    assert output_bound([1] * SAMPLES_MIN, most=10) == 10


@given(st.lists(st.integers(1, 10_000), min_size=SAMPLES_MIN, max_size=256))
def test_the_bound_covers_all_but_the_longest_hundredth_twice(lengths: list[int]) -> None:
    bound = output_bound(lengths, most=10**6)
    assert bound is not None
    assert sum(2 * length > bound for length in lengths) <= 0.01 * len(lengths)


def test_the_longest_hundredth_does_not_decide() -> None:
    """Of a hundred the second longest, and of fewer the longest of all."""
    assert output_bound([*range(101, 200), 9_000], most=10**6) == 2 * 9_000
    assert output_bound([*range(1, 200), 9_000], most=10**6) == 2 * 199
    assert output_bound([100] * 19 + [300], most=10**6) == 600


def test_the_figures_that_the_books_and_a_worker_need() -> None:
    """A call to the books takes a second at most, and a hold must not be used up by then."""
    assert MARGIN_MS > 1_000 > CUT_MS > 0
    assert output_bound([0] * SAMPLES_MIN, most=0) == 1, "an answer has a token"


def test_a_hold_grows_before_it_is_used_up_and_a_stream_ends_before_it_is() -> None:
    assert grows_in_ms(10_000, 3_000) == 10_000 - 3_000 - MARGIN_MS
    assert grows_in_ms(1_000, 0) == 0
    assert cut_in_ms(10_000, 9_000) == 1_000 - CUT_MS
    assert cut_in_ms(10_000, 9_950) == 0
    assert grown_nano(5, 100) == 10
    assert grown_nano(60, 100) == 100
