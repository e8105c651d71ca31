"""A stream's hold, kept ahead of what the stream costs; and the end of a stream that cannot pay.

Only local streams have one (policies/topup.py says why). A timer, not the stream, drives it: a slot
costs money also while no token comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from gateway.ledger.ledger import (
    Exhausted,
    HoldClosed,
    Ledger,
    LedgerFault,
    LedgerUnavailable,
    Reserved,
)
from gateway.run import Run
from gateway.tasks import spawn
from policies.topup import cut_in_ms, grown_nano, grows_in_ms
from policies.weigh import Rules, slot_ms_of

RETRY_S = 0.25  # while the books cannot be reached
HALVINGS_MAX = 4  # of the growth that is asked for, while a budget has no room for it


class TopUp:
    """Use it as `async with` around the reading of a stream.

    cut: ends the stream (the reader then sees a broken one). `cut_by` says afterwards that it was
    us, and which budget had no room; `cut` alone: the books could not be reached in time.
    choices: answers that are wanted, each of which takes a slot.
    """

    def __init__(
        self,
        ledger: Ledger,
        rules: Rules,
        run: Run,
        cut: Callable[[], Awaitable[None]],
        *,
        choices: int = 1,
    ) -> None:
        self._ledger = ledger
        self._rules = rules
        self._run = run
        self._end = cut
        self._choices = choices
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.cut = False
        self.cut_by: Exhausted | None = None

    async def __aenter__(self) -> TopUp:
        if self._run.attempt.hold_max_nano > self._run.attempt.hold_nano:
            self._later(grows_in_ms(self._covered_ms, self._run.elapsed_ms))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def _covered_ms(self) -> float:
        attempt = self._run.attempt
        return slot_ms_of(self._rules, attempt.slots, attempt.hold_nano) / self._choices

    def _later(self, delay_ms: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(delay_ms / 1000.0, self._due)

    def _due(self) -> None:
        self._task = spawn(self._tend(), name="top up")

    async def _tend(self) -> None:
        """Grows the hold, or ends the stream at the last moment that is paid for."""
        attempt = self._run.attempt
        wanted = grown_nano(attempt.hold_nano, attempt.hold_max_nano)
        if wanted > attempt.hold_nano:
            if await self._grow(wanted):
                if self._run.attempt.hold_nano < attempt.hold_max_nano:
                    self._later(grows_in_ms(self._covered_ms, self._run.elapsed_ms))
                return
            left_ms = cut_in_ms(self._covered_ms, self._run.elapsed_ms)
            if left_ms > 0:  # somebody else's hold may be settled until then
                self._later(min(1000 * RETRY_S, left_ms))
                return
        self.cut = True
        await self._end()

    async def _grow(self, wanted_nano: int) -> bool:
        """Asks for the growth, then for less of it: what is left of a budget shall be usable."""
        attempt = self._run.attempt
        for _ in range(HALVINGS_MAX):
            try:
                found = await self._ledger.grow(self._run.hold_id, wanted_nano)
            except (LedgerUnavailable, LedgerFault, HoldClosed):
                return False
            if isinstance(found, Reserved):
                self._run.attempt = replace(attempt, hold_nano=wanted_nano)
                return True
            self.cut_by = found
            wanted_nano = attempt.hold_nano + (wanted_nano - attempt.hold_nano) // 2
            if wanted_nano <= attempt.hold_nano:
                break
        return False
