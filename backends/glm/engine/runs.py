"""A submitted job on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from backends.glm.answer.deltas import Delta
from backends.glm.engine.events import Finished, FinishReason, Job, Ticket
from backends.glm.engine.scheduler import Entry


@dataclass(eq=False, slots=True)
class Run:
    """A submitted job on its way. Times are seconds of the engine's clock."""

    ticket: Ticket
    job: Job
    entry: Entry
    keys: list[bytes]
    answer: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    failure: Exception | None = None
    generation: Any = None
    started_s: float = 0.0
    first_s: float = 0.0

    def finished(self, reason: FinishReason, deltas: list[Delta], now_s: float) -> Finished:
        """Its last event; `deltas`: the text that was held back."""
        return Finished(
            deltas=deltas,
            reason=reason,
            completion_tokens=len(self.answer),
            reasoning_tokens=self.job.output.reasoning_tokens,
            queue_ms=_ms(self.started_s - self.ticket.admitted_s),
            ttft_ms=_ms(self.first_s - self.ticket.admitted_s),
            slot_ms=_ms(now_s - self.started_s),
            cached_tokens=self.cached_tokens,
        )


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
