"""What the engine is given and what it answers: jobs, tickets, and the events of a generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from backends.glm.answer.deltas import Delta
from backends.glm.answer.output import Output
from backends.glm.engine.adapters import Adapter
from backends.glm.types import Constraint, Prompt, Sampling

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """New text."""

    deltas: list[Delta]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The last event of a good generation. `completion_tokens` counts every generated token, the
    stop token too; `cached_tokens` those of the prompt that were not read again; times are
    milliseconds, queue and first token counted from admission."""

    deltas: list[Delta]
    reason: FinishReason
    completion_tokens: int
    reasoning_tokens: int
    queue_ms: int
    ttft_ms: int
    slot_ms: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a broken generation. `aborted`: nothing broke, the ticket was given up;
    `engine`: not this request is at fault, the engine itself is over."""

    detail: str
    aborted: bool = False
    engine: bool = False

    @classmethod
    def by(cls, error: Exception) -> Failed:
        """Broken by this."""
        return cls(f"{type(error).__name__}: {error}")


Event = Progress | Finished | Failed
ABORTED = Failed("aborted", aborted=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What to generate and where to report. `emit` is called from the engine's thread; `tenant`:
    whose turn and whose cached prefixes it shares; `priority`: lower goes first; `adapter`: None
    for the base."""

    prompt: Prompt
    sampling: Sampling
    stop_ids: frozenset[int]
    max_tokens: int
    output: Output
    emit: Callable[[Event], None]
    constraint: Constraint | None = None
    tenant: str = ""
    priority: int = 0
    adapter: Adapter | None = None

    @property
    def partition(self) -> str:
        """Whose kept beginnings it shares: what a token leaves in the cache depends on the adapter.
        The length keeps any two pairs of tenant and adapter apart, whatever they are called."""
        return f"{len(self.tenant)}:{self.tenant}:{self.adapter.key if self.adapter else ''}"


@dataclass(eq=False, slots=True)
class Ticket:
    """A place in the engine, from admission to the end."""

    admitted_s: float
    aborted: bool = False
    live: bool = True
