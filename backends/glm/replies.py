"""JSON of the OpenAI chat dialect: the whole reply, the chunks of a stream, usage. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from backends.glm.engine import Finished
from backends.glm.reasoning import Delta
from backends.glm.types import Prompt

DONE = b"data: [DONE]\n\n"

_FIELD = {"reasoning": "reasoning_content", "content": "content"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyHead:
    """What all JSON objects of one reply share. `created_s`: Unix time in seconds."""

    reply_id: str
    created_s: int
    model: str

    def completion(self, text: dict[str, str], *, prompt: Prompt, end: Finished) -> dict[str, Any]:
        """A `chat.completion`; `text` holds the whole text of each channel."""
        message: dict[str, Any] = {"role": "assistant", "content": text.get("content", "")}
        if text.get("reasoning"):
            message["reasoning_content"] = text["reasoning"]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.reason}
        return {
            **self._object("chat.completion"),
            "choices": [choice],
            "usage": usage(prompt, end),
            "yuzui": timings(end),
        }

    def role_chunk(self) -> dict[str, Any]:
        """The first chunk of a stream."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def delta_chunk(self, delta: Delta) -> dict[str, Any]:
        """A piece of text."""
        return self._chunk({_FIELD[delta.channel]: delta.text}, None)

    def finish_chunk(self, end: Finished) -> dict[str, Any]:
        """The last chunk with a choice."""
        return self._chunk({}, end.reason)

    def usage_chunk(self, prompt: Prompt, end: Finished) -> dict[str, Any]:
        """The chunk without choices that `stream_options.include_usage` asks for."""
        return {
            **self._object("chat.completion.chunk"),
            "choices": [],
            "usage": usage(prompt, end),
            "yuzui": timings(end),
        }

    def _chunk(self, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._object("chat.completion.chunk"), "choices": [choice]}

    def _object(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.reply_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
        }


def usage(prompt: Prompt, end: Finished) -> dict[str, Any]:
    """Exact token counts: what the model read and what it generated, stop token included."""
    return {
        "prompt_tokens": len(prompt.ids),
        "completion_tokens": end.completion_tokens,
        "total_tokens": len(prompt.ids) + end.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": prompt.image_tokens},
        "completion_tokens_details": {"reasoning_tokens": end.reasoning_tokens},
    }


def timings(end: Finished) -> dict[str, int]:
    """Milliseconds: slot held, wait for it, first token; the last two count from admission."""
    return {"slot_ms": end.slot_ms, "queue_ms": end.queue_ms, "ttft_ms": end.ttft_ms}


def collect(text: dict[str, str], deltas: Sequence[Delta]) -> None:
    """Append deltas to the whole text of their channels."""
    for delta in deltas:
        text[delta.channel] = text.get(delta.channel, "") + delta.text


def sse(payload: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"
