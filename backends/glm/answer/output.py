"""One answer: generated ids -> deltas of thought, text and tool calls, and when to stop.

The chain is ids -> bytes -> text -> thought or answer -> tool calls -> stop strings (on the
answer's text only: a thought or an argument that happens to contain one must not cost the caller
the answer).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from backends.glm.answer.deltas import Delta
from backends.glm.answer.detokenize import StopStrings, Utf8Stream
from backends.glm.answer.reasoning import ReasoningSplitter
from backends.glm.answer.toolcalls import ToolCallParser
from backends.glm.types import Drawn, Thinking


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolReading:
    """How tool calls are found. `markers`: toolcalls.MARKERS by token id; `parameters`: each tool's
    JSON Schema by name; `single`: the answer ends after its first call."""

    markers: Mapping[int, str]
    parameters: Mapping[str, Mapping[str, Any]]
    single: bool = False


class Output:
    """Pure and single-threaded: the engine pushes every generated id that is no stop id."""

    def __init__(
        self,
        bytes_of: Callable[[int], bytes],
        *,
        think_ids: tuple[int | None, int | None],
        thinking: Thinking,
        stops: tuple[str, ...] = (),
        tools: ToolReading | None = None,
        continued: bool = False,
        keeps_tokens: bool = False,
    ) -> None:
        """`bytes_of`: a token's text bytes; `think_ids`: the ids of `<think>` and `</think>`;
        `continued`: the answer goes on where the prompt stopped, so that a leading space is text;
        `keeps_tokens`: deltas name the tokens they came from."""
        self._bytes_of = bytes_of
        self._open_id, self._close_id = think_ids
        self._utf8 = Utf8Stream()
        # A tokenizer without `</think>` cannot close a thought: all its text is answer.
        start: Thinking = "closed" if self._close_id is None else thinking
        self._splitter = ReasoningSplitter(start, continued=continued)
        self._tools = tools
        self._calls = ToolCallParser(tools.parameters) if tools is not None else None
        self._stops = StopStrings(stops)
        self._keeps_tokens = keeps_tokens
        self._tokens: list[tuple[int, Drawn]] = []  # with where in the content they begin
        self._fed = self._emitted = 0  # characters of the content before and after stop strings

    @property
    def stopped(self) -> bool:
        """A stop string or the one call that was wanted has ended the answer."""
        if self._stops.matched is not None:
            return True
        return bool(
            self._tools and self._tools.single and self._calls is not None and self._calls.closed
        )

    @property
    def called(self) -> bool:
        """The answer calls a tool."""
        return self._calls is not None and self._calls.calls > 0

    @property
    def reasoning_tokens(self) -> int:
        """Generated tokens that belong to the thought, without its markers."""
        return self._splitter.reasoning_tokens

    def push(self, drawn: Drawn) -> list[Delta]:
        """The text that this token makes certain; often none (half a character, held back text)."""
        token_id = drawn.token_id
        if token_id in (self._open_id, self._close_id):
            opens = token_id == self._open_id
            shown = self._splitter.push(self._utf8.flush())
            turned = self._splitter.open() if opens else self._splitter.close()
            return self._answered(shown + turned)
        self._splitter.count_token()
        marker = self._tools.markers.get(token_id) if self._tools is not None else None
        if marker is not None and self._calls is not None and self._splitter.state != "reasoning":
            shown = self._splitter.push(self._utf8.flush()) + self._splitter.answer()
            return self._answered(shown) + self._shown(self._calls.mark(marker))
        self._record(drawn)
        text = self._utf8.push(self._bytes_of(token_id))
        return self._answered(self._splitter.push(text)) if text else []

    def finish(self, *, cut: bool = False) -> list[Delta]:
        """Everything still held back, when no further token will come. `cut`: the length limit was
        reached; then a character that is not whole is left out, for the caller may have the answer
        go on where it ends."""
        text = "" if cut else self._utf8.flush()
        deltas = self._answered(self._splitter.push(text) + self._splitter.finish())
        if self._calls is not None:
            deltas += self._shown(self._calls.finish(cut=cut))
        rest = self._stops.flush()
        tokens = () if self._stops.matched is not None else tuple(d for _, d in self._tokens)
        return [*deltas, Delta("content", rest, tokens=tokens)] if rest or tokens else deltas

    def _record(self, drawn: Drawn) -> None:
        """Remember a token of the answer's text, and where in that text it begins."""
        if not self._keeps_tokens or self._splitter.state == "reasoning":
            return
        if not self._bytes_of(drawn.token_id):
            return  # a control token without text
        if self._calls is not None and not self._calls.in_content:
            return
        held = self._splitter.held + (self._calls.held if self._calls is not None else 0)
        self._tokens.append((self._fed + held, drawn))

    def _answered(self, deltas: list[Delta]) -> list[Delta]:
        """What the splitter let through, its content read for tool calls."""
        passed: list[Delta] = []
        for delta in deltas:
            if delta.channel == "content" and self._calls is not None:
                passed += self._calls.push(delta.text)
            else:
                passed.append(delta)
        if not self._splitter.begun and self._splitter.state != "undecided":
            self._tokens.clear()  # those of a thought, and of the white space before the answer
        return self._shown(passed)

    def _shown(self, deltas: list[Delta]) -> list[Delta]:
        """What may leave: stop strings looked for, neighbours of one call joined."""
        passed: list[Delta] = []
        for delta in deltas:
            if delta.channel == "content":
                delta = self._stopped_at(delta.text)
            elif delta.channel == "arguments" and passed and passed[-1].channel == "arguments":
                if passed[-1].call == delta.call:
                    passed[-1] = passed[-1]._replace(text=passed[-1].text + delta.text)
                    continue
            if delta.text or delta.tokens:
                passed.append(delta)
        return passed

    def _stopped_at(self, text: str) -> Delta:
        shown = self._stops.push(text)
        self._fed += len(text)
        self._emitted += len(shown)
        at = 0
        while at < len(self._tokens) and self._tokens[at][0] < self._emitted:
            at += 1
        tokens = tuple(drawn for _, drawn in self._tokens[:at])
        del self._tokens[:at]
        return Delta("content", shown, tokens=tokens)
