"""The clock of one outgoing call: one timer that keeps the limits of `Timeouts` once it is sent.

    sent ... first ... idle, idle, idle ...     and the total over all of them

The timer stands at the nearest limit. When it fires and the limit has moved meanwhile (bytes
came), it is set again: a chunk costs two looks at the loop's clock and no timer. While the caller
is busy with what it got, the engine owes nothing: silence counts only while somebody waits.
The limit of connecting is not kept here: before there is a connection there is nothing to cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from backends.base import Kind, Timeouts

# Where the loop itself stood still, a limit seems to be over although the bytes are here, only not
# yet read (uvloop runs its timers first). So a limit is looked at twice, this far apart.
SECOND_LOOK_S = 0.002


class Watch:
    """The clock of one call: first -> idle, and the total over both."""

    __slots__ = (
        "_doubt",
        "_due",
        "_first_due",
        "_handle",
        "_late",
        "_loop",
        "_times",
        "_total_due",
        "_waiting",
    )

    def __init__(self, times: Timeouts, began_s: float, late: Callable[[Kind], None]) -> None:
        """`began_s`: when the call began, by the loop's clock. `late` is told which limit broke,
        once. The time to the first byte runs from here: the request is being written."""
        self._loop = asyncio.get_running_loop()
        self._times = times
        self._late: Callable[[Kind], None] | None = late
        self._total_due = began_s + times.total_s
        self._first_due = self._due = self._loop.time() + times.first_s
        self._waiting = True
        self._doubt = False
        self._handle: asyncio.TimerHandle | None = None
        self._arm()

    def written(self) -> None:
        """The time to the first byte starts anew: the request is out to its last byte."""
        if self._first_due:
            self._first_due = self._due = self._loop.time() + self._times.first_s

    def rest(self) -> None:
        """Nobody waits: the head of the answer is in, its body is not yet asked for."""
        self._waiting = False

    def wait(self) -> None:
        """Somebody waits for the next bytes: the clock of silence runs."""
        idle_due = self._loop.time() + self._times.idle_s
        first_due = self._first_due
        self._due = idle_due if idle_due > first_due else first_due
        self._waiting = True

    def arrived(self) -> None:
        """Bytes came. While the caller is busy with them the engine owes nothing."""
        self._waiting = self._doubt = False
        if self._first_due:
            self._first_due = 0.0
            self._due = self._loop.time() + self._times.idle_s
            if self._handle is None or self._handle.when() > self._due:
                self._arm()  # only if the timer would come too late

    def done(self) -> None:
        """The call is over: nothing is left to be cut."""
        self._late = None
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        due = self._due if self._due < self._total_due else self._total_due
        self._handle = self._loop.call_at(due, self._fire)

    def _fire(self) -> None:
        self._handle = None
        now = self._loop.time()
        if now < self._total_due:
            if not self._waiting:
                self._due = now + self._times.idle_s
            if now < self._due:
                self._doubt = False
                self._arm()
                return
        if not self._doubt:
            self._doubt = True
            self._handle = self._loop.call_later(SECOND_LOOK_S, self._fire)
        elif self._late is not None:
            kind = Kind.TIMEOUT_FIRST if self._first_due else Kind.TIMEOUT_IDLE
            self._late(Kind.TIMEOUT_TOTAL if now >= self._total_due else kind)
