"""One attempt under way: where it is in its life, and what was measured."""

from __future__ import annotations

import time

from msgspec.structs import replace

from gateway.ledger.ledger import Exhausted
from gateway.ledger.rows import Row
from policies.exchange import Event, Phase, Step, step
from policies.types import Attempt, Usage


class Run:
    """See above. `attempt` is what is held for at present: its hold may shrink or grow."""

    def __init__(self, number: int, attempt: Attempt, *, hold_id: str) -> None:
        self.number = number
        self.attempt = attempt
        self.hold_id = hold_id
        self.draft: Row | None = None
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.ttft_ms: float | None = None
        self.spooled = False  # the books were away when it began
        self.limited_by: Exhausted | None = None  # a budget that shortened the answer
        self._phase = Phase.RESERVED
        self._started_s = time.monotonic()

    @property
    def over(self) -> bool:
        return self._phase is Phase.OVER

    @property
    def elapsed_ms(self) -> float:
        return 1000.0 * (time.monotonic() - self._started_s)

    def advance(self, event: Event, *, more: bool = False) -> Step:
        taken = step(self._phase, event, more=more)
        self._phase = taken.phase
        return taken

    def tighten(self, found: Exhausted) -> None:
        """A budget has no room for the usual bound: a shorter answer must do."""
        attempt = self.attempt
        self.limited_by = found
        self.attempt = replace(
            attempt,
            hold_nano=attempt.tight_nano,
            output_tokens_max=attempt.tight_tokens,
            tight_nano=0,
        )

    def first_token(self) -> None:
        if self.ttft_ms is None:
            self.ttft_ms = self.elapsed_ms

    def finished(self, usage: Usage | None, finish_reason: str | None = None) -> Step:
        """The whole answer is here."""
        self.usage = usage
        self.finish_reason = finish_reason
        self.first_token()
        return self.advance(Event.FINISHED if usage is not None else Event.UNMETERED)
