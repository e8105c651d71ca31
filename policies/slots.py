"""What a number of slots would have done with requests that came when they came.

The replay is simple on purpose, so that its answer can be checked by hand: requests are taken in
the order of arrival; one goes into the slot that is free first and stays there for its slot time;
if even that slot is free only after the request would have waited longer than it may, it overflows
and occupies nothing. A slot time is taken as it was measured: it holds the slowing down by whatever
ran beside it, and is not made shorter for an emptier server or longer for a fuller one.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from policies.types import Value


class Occupancy(Value, frozen=True, kw_only=True):
    """overflowed: for each request, in the order given. busy_ms: of all slots together. wait_ms:
    of the requests that were served, sorted. end_ms: when the last slot was left."""

    overflowed: tuple[bool, ...]
    busy_ms: int
    wait_ms: tuple[int, ...]
    end_ms: int

    def wait_at(self, share: float) -> int:
        """The wait below which this share of the served requests stayed; 0 when none was."""
        if not self.wait_ms:
            return 0
        return self.wait_ms[min(len(self.wait_ms) - 1, int(share * len(self.wait_ms)))]


def occupy(
    at_ms: Sequence[int], slot_ms: Sequence[int], *, slots: int, wait_ms_max: int | None
) -> Occupancy:
    """Replays requests through slots.

    at_ms: arrivals, ascending. slot_ms: how long each occupies a slot. wait_ms_max: how long one
    may wait before it overflows; None: for ever. Raises ValueError for arrivals out of order or
    lengths that differ.
    """
    free = [0] * slots  # when each slot is free, as a heap
    overflowed: list[bool] = []
    waits: list[int] = []
    busy_ms, end_ms, before = 0, 0, at_ms[0] if at_ms else 0
    for at, need in zip(at_ms, slot_ms, strict=True):
        if at < before:
            raise ValueError("arrivals must be in order")
        before = at
        wait = max(0, free[0] - at) if slots else None
        if wait is None or (wait_ms_max is not None and wait > wait_ms_max):
            overflowed.append(True)
            continue
        overflowed.append(False)
        waits.append(wait)
        busy_ms += need
        done = at + wait + need
        end_ms = max(end_ms, done)
        heapq.heapreplace(free, done)
    return Occupancy(
        overflowed=tuple(overflowed),
        busy_ms=busy_ms,
        wait_ms=tuple(sorted(waits)),
        end_ms=end_ms,
    )
