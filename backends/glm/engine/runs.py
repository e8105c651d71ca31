"""A submitted job on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from backends.glm.answer.deltas import Delta
from backends.glm.engine.events import Finished, FinishReason, Job, Progress, Ticket
from backends.glm.engine.prefix import block_keys
from backends.glm.engine.scheduler import Entry
from backends.glm.types import Drawn


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

    @classmethod
    def of(cls, ticket: Ticket, job: Job, order: int) -> Run:
        """One that waits; `order`: of its arrival."""
        entry = Entry(
            key=ticket,
            tenant=job.tenant,
            priority=job.priority,
            order=order,
            prompt_tokens=len(job.prompt.ids),
            max_tokens=job.max_tokens,
        )
        return cls(ticket, job, entry, block_keys(job.prompt, job.partition))

    def take(self, drawn: Drawn, now_s: float) -> Progress | Finished | None:
        """Add a drawn token to the answer: its last event if the answer ends with it, new text if
        there is some."""
        job = self.job
        self.answer.append(drawn.token_id)
        if len(self.answer) == 1:
            self.first_s = now_s
        reason: FinishReason | None = None
        deltas: list[Delta] = []
        if drawn.token_id in job.stop_ids:
            reason = "stop"
        else:
            deltas = job.output.push(drawn)
            if job.output.stopped:
                reason = "stop"
            elif len(self.answer) >= job.max_tokens:
                reason = "length"
        if reason is None:
            return Progress(deltas=deltas) if deltas else None
        deltas += job.output.finish(cut=reason == "length")
        return self.finished(reason, deltas, now_s)

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
