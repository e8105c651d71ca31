"""How much is held for an answer whose length nobody has said, and when a hold must grow.

Bound on the output, in this order: what the caller asked for; else what this caller's answers of
this model were like, times a safety factor; else the operator's default.

Who may grow. A local answer costs the time of a slot, and it ends when we say so: its hold starts
small and grows while it streams. A cloud answer cannot: Ark bills what it generated, also what we
have not read. Between its generator and us stand its own send buffer, whatever proxies there are
and our receive buffer, and a gateway that stalls reads nothing at all while tokens of a few hundred
bytes pile up by the thousand. No margin covers that, so for the cloud the limit that is sent
upstream is the limit that is held, always (tests/gateway/test_topup.py shows the difference).
"""

from __future__ import annotations

from collections.abc import Sequence

QUANTILE = 0.99
SAFETY = 2.0  # beyond the longest hundredth: answers have long tails, and a cut one helps nobody
SAMPLES_MIN = 20  # below that a quantile is an anecdote
BOUND_TOKENS_MIN = 64

MARGIN_MS = (
    2_000  # a hold grows so long before it is used up: a call to the books takes 1 s at most
)
CUT_MS = 100  # cancelling a worker takes this long


def output_bound(lengths: Sequence[int], *, most: int) -> int | None:
    """Tokens that an answer hardly exceeds, from earlier ones; None: too few are known.

    lengths: of the latest answers; one that was cut off at a limit counts as twice its length, or
             a bound that is too low would confirm itself
    """
    if len(lengths) < SAMPLES_MIN:
        return None
    ordered = sorted(lengths)
    quantile = ordered[min(len(ordered) - 1, int(QUANTILE * len(ordered)))]
    return max(1, min(most, max(BOUND_TOKENS_MIN, int(SAFETY * quantile))))


def grows_in_ms(covered_ms: float, elapsed_ms: float) -> float:
    """How long a hold that covers `covered_ms` of slot time may stay as it is."""
    return max(0.0, covered_ms - MARGIN_MS - elapsed_ms)


def cut_in_ms(covered_ms: float, elapsed_ms: float) -> float:
    """How long an answer may go on when its hold cannot grow."""
    return max(0.0, covered_ms - CUT_MS - elapsed_ms)


def grown_nano(held_nano: int, ceiling_nano: int) -> int:
    """The next size of a hold: doubled, so that a long answer asks a few times, not hundreds."""
    return min(2 * held_nano, ceiling_nano)
