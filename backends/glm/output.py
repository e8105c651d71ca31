"""One request's output: generated ids -> deltas of thought and answer, and when to stop.

The chain is ids -> bytes -> text -> thought or answer -> stop strings (on the answer only: a
thought that happens to contain a stop string must not cost the caller the answer).
"""

from __future__ import annotations

from collections.abc import Callable

from backends.glm.detokenize import StopStrings, Utf8Stream
from backends.glm.reasoning import Delta, ReasoningSplitter
from backends.glm.types import Drawn, Thinking


class Output:
    """Pure and single-threaded: the engine pushes every generated id that is no stop id."""

    def __init__(
        self,
        bytes_of: Callable[[int], bytes],
        *,
        think_ids: tuple[int | None, int | None],
        thinking: Thinking,
        stops: tuple[str, ...] = (),
    ) -> None:
        """`bytes_of`: a token's text bytes; `think_ids`: the ids of `<think>` and `</think>`."""
        self._bytes_of = bytes_of
        self._open_id, self._close_id = think_ids
        self._utf8 = Utf8Stream()
        # A tokenizer without `</think>` cannot close a thought: all its text is answer.
        self._splitter = ReasoningSplitter("closed" if self._close_id is None else thinking)
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        """A stop string has ended the answer."""
        return self._stops.matched is not None

    @property
    def reasoning_tokens(self) -> int:
        """Generated tokens that belong to the thought, without its markers."""
        return self._splitter.reasoning_tokens

    def push(self, drawn: Drawn) -> list[Delta]:
        """The text that this token makes certain; often none (half a character, held back text)."""
        token_id = drawn.token_id
        if token_id == self._open_id:
            return self._filtered(self._splitter.push(self._utf8.flush()) + self._splitter.open())
        if token_id == self._close_id:
            return self._filtered(self._splitter.push(self._utf8.flush()) + self._splitter.close())
        self._splitter.count_token()
        text = self._utf8.push(self._bytes_of(token_id))
        return self._filtered(self._splitter.push(text)) if text else []

    def finish(self) -> list[Delta]:
        """Everything still held back, when no further token will come."""
        deltas = self._filtered(self._splitter.push(self._utf8.flush()) + self._splitter.finish())
        rest = self._stops.flush()
        return [*deltas, Delta("content", rest)] if rest else deltas

    def _filtered(self, deltas: list[Delta]) -> list[Delta]:
        passed: list[Delta] = []
        for delta in deltas:
            text = self._stops.push(delta.text) if delta.channel == "content" else delta.text
            if text:
                passed.append(Delta(delta.channel, text))
        return passed
