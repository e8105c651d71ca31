"""What the engine asks of a model. Nothing here knows torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from backends.glm.engine.events import Job
from backends.glm.types import Drawn


@dataclass(frozen=True, slots=True)
class Opened:
    """`ready`: nothing has to be waited for before its prompt is read."""

    generation: Any
    ready: bool = True


class Pictures(NamedTuple):
    """`asked`: looked at since the start; `remembered`: those of them that were not encoded again;
    `waiting`: requests whose pictures are not encoded yet; `batches`: encoded since the start."""

    asked: int = 0
    remembered: int = 0
    waiting: int = 0
    batches: int = 0


class BatchModel(Protocol):
    """The model. Only the engine's thread calls it. A generation is the model's own value."""

    def open(
        self,
        job: Job,
        row: int,
        blocks: Sequence[int],
        on_ready: Callable[[Exception | None], None],
    ) -> Opened:
        """A request whose cache begins at this row, with kept blocks as its beginning. If it cannot
        begin at once, `on_ready` is called when it can (None) or never will, from any thread."""
        ...

    def step(self, work: Sequence[tuple[Any, int]]) -> list[Drawn | Exception | None]:
        """One forward pass over so many further tokens of each: of its prompt, or the one drawn
        last. The token drawn for each, None where the prompt is not read to its end yet; what went
        wrong with one that cannot go on. A step that raises has changed nothing, and may be taken
        again."""
        ...

    def keep(self, generation: Any, blocks: Sequence[tuple[int, int]]) -> None:
        """Copy blocks of its cache, counted from its beginning, to where kept blocks lie."""
        ...

    def close(self, generation: Any) -> None:
        """It is over; its rows may be another's from now on."""
        ...

    def stop(self, timeout_s: float) -> None:
        """End threads of its own; a thread inside torch must not outlive the interpreter."""
        ...

    def pictures(self) -> Pictures:
        """Counts of this moment; from any thread, and without waiting for the model."""
        ...
