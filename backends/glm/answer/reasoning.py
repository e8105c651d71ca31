"""Splits a generation into its thought and its answer, as it comes.

GLM thinks between `<think>` and `</think>`. When thinking is on, the prompt does not open the
thought: the model writes `<think>` itself, and sometimes leaves it out. So the rule is: everything
up to the first `</think>` is the thought, a leading `<think>` is optional. A text that begins
without `<think>` is therefore held until it is known what it was, up to HOLD_CHARS: a model that
has written that much without closing a thought is answering.

The markers arrive as token ids, never as text: what a model spells out in ordinary letters is text.
"""

from __future__ import annotations

from typing import Literal

from backends.glm.answer.deltas import Delta
from backends.glm.types import Thinking

# About 300 tokens. Shorter would show a long thought as an answer when the model forgot `<think>`;
# longer would delay the stream of a model that answers directly.
HOLD_CHARS = 1024

State = Literal["undecided", "reasoning", "content"]


class ReasoningSplitter:
    """A small machine with three states: undecided, reasoning, content.

    White space around a thought and before an answer is layout of the chat format and is dropped.
    """

    def __init__(self, thinking: Thinking, *, continued: bool = False) -> None:
        """`thinking`: how the prompt left it (see `Prompt.thinking`); `continued`: in the middle of
        a text, so that white space at the beginning is part of it."""
        start: dict[Thinking, State] = {
            "model": "undecided",
            "open": "reasoning",
            "closed": "content",
        }
        self.state: State = start[thinking]
        self._held = ""  # undecided: everything; reasoning: trailing white space
        self.begun = continued  # the current channel has had a character that is not white space
        self._undecided_tokens = 0
        self.reasoning_tokens = 0  # tokens of the thought, its markers not counted

    @property
    def held(self) -> int:
        """Characters of the answer that are held back because it may yet be a thought."""
        return len(self._held) if self.state == "undecided" else 0

    def answer(self) -> list[Delta]:
        """Something came that only an answer has: a text that was undecided is one."""
        return self.finish()

    def count_token(self) -> None:
        """Count one generated token that is no marker, before its text is pushed."""
        if self.state == "undecided":
            self._undecided_tokens += 1
        elif self.state == "reasoning":
            self.reasoning_tokens += 1

    def push(self, text: str) -> list[Delta]:
        """Text between markers -> what can be shown now."""
        if self.state == "undecided":
            self._held += text
            if len(self._held) <= HOLD_CHARS:
                return []
            text, self._held = self._held, ""
            self._enter("content")
        return self._show(text)

    def open(self) -> list[Delta]:
        """`<think>` was generated."""
        return self._to_reasoning() if self.state == "undecided" else []

    def close(self) -> list[Delta]:
        """`</think>` was generated. A second one means nothing."""
        if self.state == "content":
            return []
        shown = self._to_reasoning() if self.state == "undecided" else []
        self._enter("content")
        return shown

    def finish(self) -> list[Delta]:
        """The generation is over: a text that never closed a thought was an answer."""
        if self.state != "undecided":
            return []
        text, self._held = self._held, ""
        self._enter("content")
        return self._show(text)

    def _to_reasoning(self) -> list[Delta]:
        text, self._held = self._held, ""
        self.reasoning_tokens += self._undecided_tokens
        self._enter("reasoning")
        return self._show(text)

    def _enter(self, state: State) -> None:
        self.state, self._held, self.begun = state, "", False

    def _show(self, text: str) -> list[Delta]:
        if not self.begun:
            text = text.lstrip()
            self.begun = bool(text)
        if self.state == "reasoning":
            text = self._held + text
            whole = text.rstrip()
            text, self._held = whole, text[len(whole) :]
            return [Delta("reasoning", text)] if text else []
        return [Delta("content", text)] if text else []
