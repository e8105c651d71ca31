"""A model that plays a list of token ids, and can be held at every step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from backends.glm.engine.events import Job
from backends.glm.engine.prefix import BLOCK
from backends.glm.engine.scheduler import CacheRows, Scheduler
from backends.glm.engine.seam import Opened, Pictures
from backends.glm.types import Drawn

QUEUE_LIMIT = 2
ROWS, ROW_TOKENS = 1, 4096


def scheduler(
    slots: int = 1, *, rows: int = ROWS, row_tokens: int = ROW_TOKENS, step_tokens: int = 4096
) -> Scheduler:
    """Room for as many requests as a test wants to run at once."""
    return Scheduler(
        rows=CacheRows(max(rows, slots), row_tokens),
        slots=slots,
        step_tokens=step_tokens,
        beside_tokens=step_tokens,
    )


class Script:
    """A `BatchModel`. With `gated`, each step waits for one `allow()`; `steps` counts those taken.

    Every request plays the script from its start, and again at its end. `fail_at`: the token of a
    request at which the model breaks; `sizes`: how many tokens of each member every step took.
    """

    def __init__(self, ids: Sequence[int], *, gated: bool = False, fail_at: int = -1) -> None:
        self.ids = ids
        self.fail_at = fail_at
        self.steps = self.closed = self.kept = 0
        self.stopped = False
        self.broken: dict[str, BaseException] = {}  # what a call of this name raises
        self.blind = False  # whether requests wait until the test calls what it finds in `on_ready`
        self.on_ready: list[Callable[[Exception | None], None]] = []
        self.sizes: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self._gate = threading.Semaphore(0) if gated else None

    def allow(self, steps: int = 1) -> None:
        assert self._gate is not None
        self._gate.release(steps)

    def open(
        self,
        job: Job,
        row: int,
        blocks: Sequence[int],
        on_ready: Callable[[Exception | None], None],
    ) -> Opened:
        if self.blind:
            self.on_ready.append(on_ready)
        return Opened(Play(len(job.prompt.ids) - BLOCK * len(blocks)), ready=not self.blind)

    def keep(self, generation: Play, blocks: Sequence[tuple[int, int]]) -> None:
        self._break("keep")
        self.kept += len(blocks)

    def stop(self, timeout_s: float) -> None:
        self.stopped = True

    def pictures(self) -> Pictures:
        return Pictures(waiting=len(self.on_ready))

    def step(self, work: Sequence[tuple[Play, int]]) -> list[Drawn | Exception | None]:
        self.entered.release()
        if self._gate is not None and not self._gate.acquire(timeout=20):
            raise RuntimeError("the test never allowed this step")
        self._break("step")
        self.steps += 1
        self.sizes.append([tokens for _, tokens in work])
        for play, tokens in work:
            if play.left <= tokens and play.index == self.fail_at:
                raise RuntimeError("the device caught fire")
        return [self._next(play, tokens) for play, tokens in work]

    def close(self, generation: Play) -> None:
        self._break("close")
        self.closed += 1

    def _break(self, name: str) -> None:
        if name in self.broken:
            raise self.broken[name]

    def _next(self, play: Play, tokens: int) -> Drawn | None:
        play.left = max(0, play.left - tokens)
        if play.left:
            return None
        play.index += 1
        return Drawn(self.ids[(play.index - 1) % len(self.ids)])


class Play:
    """One play of the script. `left`: prompt tokens not read yet; `index`: tokens given."""

    def __init__(self, prompt_tokens: int) -> None:
        self.left = prompt_tokens
        self.index = 0
