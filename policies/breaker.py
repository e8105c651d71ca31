"""Circuit breaker of one target: closed, open, half-open, as pure transitions.

Three signals trip it: several failures in a row, too large a share of failures in a window (the
combination is linkerd's; `policies.outlier`), or one failure that says by itself that repeating is
useless (account overdue, key refused). A rate-limit answer is no
sign of illness: it blocks the target until its window ends and leaves the count alone. A caller's
own mistake (4xx) is neither.
"""

from __future__ import annotations

from msgspec.structs import replace

from policies.types import BreakerState, Value

FAILURES_IN_A_ROW = 5  # Envoy's outlier detection default
OPEN_FIRST_S = 2.0  # short: a local worker restarts in seconds
OPEN_MAX_S = 60.0
FATAL_OPEN_S = 60.0  # an overdue account is not cured by asking every two seconds
TRIPS_MAX = 6  # counted no further: the sixth is open for OPEN_MAX_S already
PROBE_PATIENCE_S = 30.0  # a probe that reports nothing for so long is given up


class Breaker(Value, frozen=True, kw_only=True):
    """State of one target. Times are of the clock that is passed in, in seconds."""

    failures: int = 0  # in a row
    trips: int = 0  # in a row, without a success between them; at most TRIPS_MAX
    open_until_s: float = 0.0
    probing_since_s: float | None = None  # a half-open probe is under way


def state(breaker: Breaker, now_s: float) -> BreakerState:
    """Closed: ask freely. Open: do not ask. Half-open: one request may try."""
    if breaker.trips == 0:
        return BreakerState.CLOSED
    if now_s < breaker.open_until_s:
        return BreakerState.OPEN
    since = breaker.probing_since_s
    if since is not None and now_s - since < PROBE_PATIENCE_S:
        return BreakerState.OPEN
    return BreakerState.HALF_OPEN


def sent(breaker: Breaker, now_s: float) -> Breaker:
    """A request goes to the target. When half-open it is the probe."""
    if state(breaker, now_s) is not BreakerState.HALF_OPEN:
        return breaker
    return replace(breaker, probing_since_s=now_s)


def at_most_until(breaker: Breaker, until_s: float) -> Breaker:
    """Open for no longer than that: the last worker of all is tried again soon."""
    return replace(breaker, open_until_s=min(breaker.open_until_s, until_s))


def unproven(breaker: Breaker) -> Breaker:
    """The probe ended and proved nothing (its client left, say): the next request is one."""
    return replace(breaker, probing_since_s=None)


def succeeded(breaker: Breaker) -> Breaker:
    """The target answered well: everything is forgiven.

    Not so while it is open and unprobed: then the answer is to a request from before the trip, and
    a long stream that ends well does not tell how a new one would fare.
    """
    if breaker.trips > 0 and breaker.probing_since_s is None:
        return breaker
    return breaker if breaker.failures == 0 else Breaker()


def failed(
    breaker: Breaker, now_s: float, *, fatal: bool = False, failing: bool = False
) -> Breaker:
    """The target failed. `fatal`: asking again soon is useless. `failing`: too many of its last
    answers were failures (policies.outlier), though not all.

    Requests from before a trip fail after it. They say what is known already, so they do not make
    it longer.
    """
    if now_s < breaker.open_until_s:
        until_s = now_s + FATAL_OPEN_S if fatal else breaker.open_until_s
        return replace(breaker, open_until_s=max(until_s, breaker.open_until_s))
    failures = breaker.failures + 1
    probe_failed = breaker.trips > 0
    if not (fatal or failing or probe_failed or failures >= FAILURES_IN_A_ROW):
        return replace(breaker, failures=failures)
    trips = min(breaker.trips + 1, TRIPS_MAX)
    open_s = FATAL_OPEN_S if fatal else min(OPEN_FIRST_S * 2 ** (trips - 1), OPEN_MAX_S)
    return Breaker(failures=failures, trips=trips, open_until_s=now_s + open_s)
