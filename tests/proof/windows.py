"""Two windows of the same arrivals beside each other: what became of the slowest in a hundred.

A p99 of some hundred answers hangs on its five or ten slowest. Three things make the ratio of two
of them a measure of the fault and not of chance, as far as that goes:

- *The same arrivals* on both sides: each request of the one window is compared with the one that
  was due at the same moment of the other. Whoever was made again, or broke off, is the dead
  worker's and not one of the others; its twin is left out as well, so that both sides stay alike.
- *Several rounds*, of which each gives a ratio; told is their median, and all of them.
- *What nothing does to it*: the same ratio between calm windows and the calm windows before them.
  Where that spreads from 0.9 to 1.1, a ratio of 1.1 says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.proof.callers import Answered


def p99(values: Sequence[float]) -> float:
    """Not a number when there are none."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))] if ranked else float("nan")


def median(values: Sequence[float]) -> float:
    """Of an even number: the mean of the two in the middle. Not a number when there are none."""
    ranked = sorted(values)
    if not ranked:
        return float("nan")
    return (ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]) / 2


def twins(answers: Sequence[Answered], window: str, beside: str) -> tuple[list[float], list[float]]:
    """Times in ms of the arrivals that had an answer at the first attempt in both windows, as far
    as the shorter one goes."""
    one, other = (
        {a.number: a.total_ms for a in answers if a.window == name and a.how == "ok"
         and a.attempts == 1}
        for name in (window, beside)
    )  # fmt: skip
    both = sorted(one.keys() & other.keys())
    return [one[number] for number in both], [other[number] for number in both]


def ratio(answers: Sequence[Answered], window: str, beside: str) -> float:
    """p99 of the one over p99 of the other."""
    one, other = twins(answers, window, beside)
    return round(p99(one) / p99(other), 2) if one else float("nan")
