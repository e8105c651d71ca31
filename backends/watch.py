"""The clock of one outgoing call: one timer that keeps all four limits of `Timeouts`.

    connect ... first ... idle, idle, idle ...     and the total over all of them

The timer stands at the nearest limit. When it fires and the limit has moved meanwhile (bytes
came), it is set again: a chunk costs two looks at the loop's clock and no timer. While the caller
is busy with what it got, the engine owes nothing: silence counts only while somebody waits.
The limit of connecting is not kept here: before there is a connection there is nothing to cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from backends.base import Billed, Failure, Kind, Timeouts


class Connection(Protocol):
    """What the client library lends to a call: its transport is None once it was given back."""

    @property
    def transport(self) -> asyncio.Transport | None: ...


class Watch:
    """The clock of one call: phases connect -> first -> idle, and the total over all of them."""

    __slots__ = (
        "__weakref__",
        "_due",
        "_fired",
        "_first_due",
        "_handle",
        "_loop",
        "_times",
        "_total_due",
        "_transport",
        "_waiting",
        "_wake",
        "connection",
        "reused",
        "sent",
    )

    def __init__(self, times: Timeouts) -> None:
        self._loop = asyncio.get_running_loop()
        self._times = times
        now = self._loop.time()
        self._total_due = now + times.total_s
        self._first_due = self._due = self._total_due
        self._waiting = False
        self._fired: Kind | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self.connection: Connection | None = None
        self._wake: Callable[[], None] | None = None
        self.reused = False
        self.sent = False  # a byte of the request may have left

    def answered(self, wake: Callable[[], None]) -> None:
        """The head of the answer is in. `wake` ends the wait for its body when it is cut."""
        self._wake = wake

    def connected(self, connection: Connection, *, reused: bool) -> None:
        self.connection = connection
        self._transport = connection.transport
        self.reused = reused
        self.written()
        self._waiting = True
        self._arm()

    def writing(self) -> None:
        """A byte of the request is about to leave. Raises if it provably cannot."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError
        self.sent = True

    def written(self) -> None:
        """The time to the first byte starts anew: the request is out to its last byte."""
        if self._wake is None:  # else the engine has answered before it had read everything
            self._first_due = self._due = self._loop.time() + self._times.first_s

    def wait(self) -> None:
        """Somebody waits for the next bytes: the clock of silence runs."""
        idle_due = self._loop.time() + self._times.idle_s
        first_due = self._first_due
        self._due = idle_due if idle_due > first_due else first_due
        self._waiting = True

    def arrived(self) -> None:
        """Bytes came. While the caller is busy with them the engine owes nothing."""
        self._waiting = False
        if self._first_due:
            self._first_due = 0.0
            self._due = self._loop.time() + self._times.idle_s
            if self._handle is None or self._handle.when() > self._due:
                self._arm()  # only if the timer would come too late

    def done(self) -> None:
        """The answer was received to its end: nothing is left to be cut."""
        self._stop()
        self._transport = self.connection = self._wake = None

    def cut(self) -> None:
        """Closes the socket now, whatever is still in its buffers.

        A connection that went back to the pool (its body has ended) may serve another call already:
        it is left alone, unless it is being closed anyway and waits for its buffers.
        """
        transport, connection, wake = self._transport, self.connection, self._wake
        self.done()
        if transport is not None and connection is not None:
            if connection.transport is transport or transport.is_closing():
                transport.abort()
        if wake is not None:
            wake()

    def failure(self) -> Failure | None:
        """The limit that was broken, if one was."""
        if self._fired is None:
            return None
        return Failure(self._fired, _LATE[self._fired], billed=Billed.MAYBE)

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _arm(self) -> None:
        self._stop()
        due = self._due if self._due < self._total_due else self._total_due
        self._handle = self._loop.call_at(due, self._fire)

    def _fire(self) -> None:
        self._handle = None
        now = self._loop.time()
        if now >= self._total_due:
            self._fired = Kind.TIMEOUT_TOTAL
        elif not self._waiting:
            self._due = now + self._times.idle_s
        elif now >= self._due:
            self._fired = Kind.TIMEOUT_FIRST if self._first_due else Kind.TIMEOUT_IDLE
        if self._fired is None:
            self._arm()
        else:
            self.cut()  # whoever waits for bytes wakes with an error and asks `failure`


_LATE = {
    Kind.TIMEOUT_FIRST: "the engine did not begin to answer in time",
    Kind.TIMEOUT_IDLE: "the engine fell silent in the middle of its answer",
    Kind.TIMEOUT_TOTAL: "the engine did not finish its answer in time",
}
