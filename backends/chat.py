"""The OpenAI chat dialect as typed values: what every backend is asked in.

Decoding is an allow-list: a field that is not named here never reaches an engine. Requests are sent
on by encoding these values again, not by relaying the caller's bytes, so that what was checked is
what is sent (a repeated key or an unknown field cannot mean one thing here and another upstream).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Json = Any  # a JSON value that is passed on as it is: tools, schemas


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of the parts of a message's content."""


class TextPart(Part, tag_field="type", tag="text", frozen=True, omit_defaults=True):
    text: str


class ImageUrl(msgspec.Struct, frozen=True, omit_defaults=True):
    url: str
    detail: str | None = None


class ImagePart(Part, tag_field="type", tag="image_url", frozen=True, omit_defaults=True):
    image_url: ImageUrl


ContentPart = TextPart | ImagePart


class FunctionCall(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    include_usage: bool | None = None


class Thinking(msgspec.Struct, frozen=True, omit_defaults=True):
    type: Literal["enabled", "disabled", "auto"]


class ChatRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One chat request; `None` means the caller said nothing. `gateway.wire` checks the ranges."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[Json] | None = None
    tool_choice: Json | None = None
    parallel_tool_calls: bool | None = None
    response_format: Json | None = None
    reasoning_effort: str | None = None
    thinking: Thinking | None = None
    service_tier: str | None = None
    user: str | None = None
