"""The answers to one request, put together from their deltas. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.glm.answer.deltas import Delta
from backends.glm.types import Drawn

LOGPROB_MIN = -9999.0  # OpenAI's number for what is not among the likeliest; JSON has no infinity


@dataclass(frozen=True, kw_only=True, slots=True)
class Naming:
    """Names within one reply. `reply_id`: unique, its calls' ids follow from it; `spelled`: the
    bytes of a token id."""

    reply_id: str
    spelled: Callable[[int], bytes]

    def call_id(self, choice: int, call: int) -> str:
        """The id of a tool call, which the tool's answer refers to."""
        return f"call_{self.reply_id[-24:]}{choice:02x}{call:02x}"

    def logprobs(self, tokens: Sequence[Drawn]) -> list[dict[str, Any]]:
        """`logprobs.content` for these tokens."""
        return [
            {
                **self._named(drawn.token_id, drawn.logprob or 0.0),
                "top_logprobs": [self._named(*pair) for pair in drawn.top],
            }
            for drawn in tokens
        ]

    def _named(self, token_id: int, logprob: float) -> dict[str, Any]:
        spelled = self.spelled(token_id)
        return {
            "token": spelled.decode(errors="replace"),
            "logprob": max(logprob, LOGPROB_MIN),
            "bytes": list(spelled),
        }


@dataclass(slots=True)
class Choice:
    """One answer so far."""

    index: int
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[tuple[str, list[str]]] = field(default_factory=list)  # name, pieces of arguments
    tokens: list[Drawn] = field(default_factory=list)

    def take(self, deltas: Sequence[Delta]) -> None:
        """Add what came."""
        for delta in deltas:
            self.tokens += delta.tokens
            match delta.channel:
                case "content":
                    self.content.append(delta.text)
                case "reasoning":
                    self.reasoning.append(delta.text)
                case "call":
                    self.calls.append((delta.text, []))
                case "arguments":
                    self.calls[delta.call][1].append(delta.text)

    def message(self, naming: Naming) -> dict[str, Any]:
        """The `message` of a whole reply."""
        content = "".join(self.content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not self.calls else None,
        }
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": naming.call_id(self.index, number),
                    "type": "function",
                    "function": {"name": name, "arguments": "".join(arguments)},
                }
                for number, (name, arguments) in enumerate(self.calls)
            ]
        return message


def delta_of(delta: Delta, choice: int, naming: Naming) -> dict[str, Any]:
    """The `delta` of one chunk of a stream."""
    if delta.channel == "content":
        return {"content": delta.text}
    if delta.channel == "reasoning":
        return {"reasoning_content": delta.text}
    if delta.channel == "arguments":
        return {"tool_calls": [{"index": delta.call, "function": {"arguments": delta.text}}]}
    call = {
        "index": delta.call,
        "id": naming.call_id(choice, delta.call),
        "type": "function",
        "function": {"name": delta.text, "arguments": ""},
    }
    return {"tool_calls": [call]}
