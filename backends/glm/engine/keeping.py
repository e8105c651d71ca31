"""Beginnings of prompts: found when a request starts, kept when it was read and when it ends.

Used by the engine's thread only. `prefix` says what is kept; the model copies it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import structlog

from backends.glm.engine.events import Event, Failed, Finished
from backends.glm.engine.prefix import BLOCK, SHARED_BLOCKS_MIN, PrefixIndex, block_keys
from backends.glm.engine.runs import Run
from backends.glm.engine.seam import BatchModel
from backends.glm.errors import place_of
from backends.glm.types import Drawn

_log = structlog.get_logger("glm.engine")


class Keeping:
    """What is kept, and the model that holds it."""

    def __init__(self, model: BatchModel, blocks: int) -> None:
        """`blocks`: how many there is room for."""
        self._model = model
        self._index = PrefixIndex(blocks)
        self.prompt_tokens = self.cached_tokens = 0  # of all who started; not read again

    def found(self, run: Run) -> list[int]:
        """The kept blocks that are the beginning of the prompt of one that starts. One token is
        left to be read at least, because its logits are wanted."""
        blocks = self._index.match(run.keys[: (run.entry.prompt_tokens - 1) // BLOCK])
        run.cached_tokens = len(blocks) * BLOCK
        self.prompt_tokens += run.entry.prompt_tokens
        self.cached_tokens += run.cached_tokens
        return blocks

    def better_later(self, run: Run, inside: Iterable[Run]) -> bool:
        """Whether somebody reads, at this moment, what this one would have to read as well."""
        reading = [one.keys for one in inside if one.entry.running and not one.entry.decoding]
        return self._index.soon(run.keys, reading) >= SHARED_BLOCKS_MIN

    def take(self, run: Run, drawn: Drawn | Exception, now_s: float) -> Event | None:
        """Add a drawn token to its answer, and keep what later prompts may begin with."""
        if isinstance(drawn, Exception):
            return Failed.by(drawn)
        try:
            event = run.take(drawn, now_s)
        except Exception as error:  # one request's failure must not end the engine for all others
            return Failed.by(error)
        if len(run.answer) == 1:
            self._keep(run, run.keys)
        if isinstance(event, Finished):
            # The next turn of this talk begins with it. The last token's entry was never computed.
            self._keep(run, block_keys(run.job.prompt, run.job.partition, run.answer[:-1]))
        return event

    def _keep(self, run: Run, keys: Sequence[bytes]) -> None:
        blocks = self._index.keep(keys)
        if not blocks:
            return
        try:
            self._model.keep(run.generation, blocks)
        except Exception as error:  # it costs a later prompt some reading, and nobody's answer
            self._index.forget(keys[index] for index, _ in blocks)
            _log.warning("prefix_not_kept", error=place_of(error))
