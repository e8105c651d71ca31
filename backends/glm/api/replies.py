"""JSON of the OpenAI chat dialect: the whole reply, the chunks of a stream, usage. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from backends.glm.answer.choices import Choice, Naming, delta_of
from backends.glm.answer.deltas import Delta
from backends.glm.engine.events import Finished
from backends.glm.types import Prompt

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyHead:
    """What all JSON objects of one reply share. `created_s`: Unix time in seconds."""

    naming: Naming
    created_s: int
    model: str
    logprobs: bool = False

    def completion(
        self, choices: Sequence[Choice], ends: Sequence[Finished], prompt: Prompt
    ) -> dict[str, Any]:
        """A `chat.completion`; `ends[i]` is the end of `choices[i]`."""
        return {
            **self._object("chat.completion"),
            "choices": [
                {
                    "index": choice.index,
                    "message": choice.message(self.naming),
                    "logprobs": self._logprobs(choice.tokens),
                    "finish_reason": finish_reason(end, called=bool(choice.calls)),
                }
                for choice, end in zip(choices, ends, strict=True)
            ],
            "usage": usage(prompt, ends),
            "yuzui": timings(ends),
        }

    def role_chunk(self, choice: int) -> dict[str, Any]:
        """The first chunk of a choice in a stream."""
        return self._chunk(choice, {"role": "assistant", "content": ""}, None)

    def delta_chunk(self, choice: int, delta: Delta) -> dict[str, Any]:
        """A piece of an answer."""
        chunk = self._chunk(choice, delta_of(delta, choice, self.naming), None)
        if delta.channel == "content":
            chunk["choices"][0]["logprobs"] = self._logprobs(delta.tokens)
        return chunk

    def finish_chunk(self, choice: int, end: Finished, *, called: bool) -> dict[str, Any]:
        """The last chunk of a choice."""
        return self._chunk(choice, {}, finish_reason(end, called=called))

    def usage_chunk(self, prompt: Prompt, ends: Sequence[Finished]) -> dict[str, Any]:
        """The chunk without choices that `stream_options.include_usage` asks for."""
        return {
            **self._object("chat.completion.chunk"),
            "choices": [],
            "usage": usage(prompt, ends),
            "yuzui": timings(ends),
        }

    def _logprobs(self, tokens: Sequence[Any]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return {"content": self.naming.logprobs(tokens), "refusal": None}

    def _chunk(
        self, choice: int, delta: dict[str, Any], finish_reason: str | None
    ) -> dict[str, Any]:
        made = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._object("chat.completion.chunk"), "choices": [made]}

    def _object(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.naming.reply_id,
            "object": kind,
            "created": self.created_s,
            "model": self.model,
        }


def finish_reason(end: Finished, *, called: bool) -> str:
    """OpenAI's word for why an answer ended. One that was cut is `length`, whatever it called."""
    return "tool_calls" if called and end.reason == "stop" else end.reason


def usage(prompt: Prompt, ends: Sequence[Finished]) -> dict[str, Any]:
    """Exact token counts: what the model read, once, and what it generated for all choices, stop
    tokens included."""
    completion = sum(end.completion_tokens for end in ends)
    return {
        "prompt_tokens": len(prompt.ids),
        "completion_tokens": completion,
        "total_tokens": len(prompt.ids) + completion,
        "prompt_tokens_details": {
            # Of the first to read the prompt; the others find what that one has read.
            "cached_tokens": min(end.cached_tokens for end in ends),
            "image_tokens": prompt.image_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(end.reasoning_tokens for end in ends)
        },
    }


def timings(ends: Sequence[Finished]) -> dict[str, int]:
    """Milliseconds: slots held, all together; wait for the first, first token; the last two count
    from admission."""
    return {
        "slot_ms": sum(end.slot_ms for end in ends),
        "queue_ms": min(end.queue_ms for end in ends),
        "ttft_ms": min(end.ttft_ms for end in ends),
    }


def sse(payload: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(payload) + b"\n\n"
