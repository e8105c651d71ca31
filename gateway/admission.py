"""How many requests one process takes on at once; the rest is shed before its body is read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gateway.errors import GatewayError

RETRY_AFTER_S = 1.0


class Admission:
    """Counts the requests inside this process.

    in_flight_max: more than so many are refused. A bound on memory, not on the pool: twenty
    megabytes of body times this number must fit into the machine.
    """

    def __init__(self, in_flight_max: int) -> None:
        self._max = in_flight_max
        self.in_flight = 0
        self.draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Raises GatewayError (503) when the process is full or about to stop."""
        if self.draining:
            text = "this gateway is shutting down; repeat the request"
            raise GatewayError(503, "draining", text, retry_after_s=RETRY_AFTER_S)
        if self.in_flight >= self._max:
            text = f"{self._max} requests are in flight, the most that limits.in_flight_max allows"
            raise GatewayError(503, "overloaded", text, retry_after_s=RETRY_AFTER_S)
        self.in_flight += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._empty.set()

    async def drained(self, patience_s: float) -> None:
        """From now on takes nothing more; returns when all have left, or after `patience_s`."""
        self.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), patience_s)
