"""What a dialect is, and what they have in common.

The common form is that of our own worker: OpenAI's chat completions with `reasoning_content` in
messages and deltas, `stop_reason` beside `finish_reason`, and every count of tokens in the details
of `usage`. A final message of role assistant is the beginning of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from backends.base import Call
from backends.chat import EFFORTS, ChatRequest, StreamOptions

_USAGE_ASKED = StreamOptions(include_usage=True)
_encoder = msgspec.json.Encoder()
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class Dialect(Protocol):
    """How one kind of engine is spoken to.

    encode:  the body of the request
    even:    a JSON object of its answer (whole, or one chunk of a stream) in the common form; the
             very same bytes when there is nothing to change, which is nearly always
    ours:    its refusals are written by this project: they name fields and limits, and callers
             may read them
    """

    name: str
    ours: bool

    def encode(self, call: Call) -> bytes: ...

    def even(self, data: bytes) -> bytes: ...


def sent(call: Call) -> ChatRequest:
    """What any engine is asked: usage is always wanted in streams, and the output limit that money
    was reserved for is the one that is sent."""
    chat = call.chat
    limited_newly = chat.max_completion_tokens is not None
    asked: ChatRequest = replace(
        chat,
        stream=call.stream,
        stream_options=_USAGE_ASKED if call.stream else None,
        max_tokens=None if limited_newly else call.output_tokens_max,
        max_completion_tokens=call.output_tokens_max if limited_newly else None,
    )
    return asked


def with_members(body: bytes, members: dict[str, Any]) -> bytes:
    """A JSON object that is not empty, with further members, none of which it has already."""
    if not members:
        return body
    return body[:-1] + b"," + _encoder.encode(members)[1:]


def encoded(chat: ChatRequest) -> bytes:
    return _encoder.encode(chat)


def as_members(chat: ChatRequest) -> dict[str, Any]:
    """The request as a dict that may be changed. Pictures are not copied."""
    members: dict[str, Any] = msgspec.to_builtins(chat)
    return members


def from_members(members: dict[str, Any]) -> bytes:
    return _encoder.encode(members)


def continues(chat: ChatRequest) -> bool:
    """Whether the last message is the beginning of the answer: one of the assistant is, unless it
    calls tools (then the tool's answer is missing), or the caller says otherwise."""
    last = chat.messages[-1]
    if last.role != "assistant" or last.tool_calls:
        return False
    wanted = getattr(chat, "continue_final_message", None)
    return bool(wanted) if wanted is not None else not getattr(chat, "add_generation_prompt", None)


# The efforts that vLLM and SGLang know. They say nothing to GLM's template beyond on and off, and
# are passed on for a model that can tell them apart.
_EFFORTS_ELSEWHERE = ("low", "medium", "high")


def switch_thinking(members: dict[str, Any]) -> None:
    """Whether the model thinks, in the one variable that GLM's chat template has for it.

    The most specific spelling wins, as in our own worker: the variable itself, Ark's `thinking`
    (`auto` is the template's default), `reasoning_effort`.
    """
    thinking = members.pop("thinking", None)
    effort = members.pop("reasoning_effort", None)
    kwargs = dict(members.get("chat_template_kwargs") or {})
    if kwargs.get("enable_thinking") is None:
        if thinking and thinking.get("type") != "auto":
            kwargs["enable_thinking"] = thinking["type"] == "enabled"
        elif effort is not None:
            kwargs["enable_thinking"] = EFFORTS.get(effort, True)
    if kwargs:
        members["chat_template_kwargs"] = kwargs
    if effort in _EFFORTS_ELSEWHERE and kwargs.get("enable_thinking"):
        members["reasoning_effort"] = effort


def pattern_asked(members: dict[str, Any]) -> str | None:
    """Takes a `response_format` of type regex out and gives its pattern: neither vLLM nor SGLang
    has that form under this name."""
    asked = members.get("response_format")
    if not isinstance(asked, dict) or asked.get("type") != "regex":
        return None
    del members["response_format"]
    pattern: str | None = asked.get("pattern")
    return pattern


def changed(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """A JSON object with a change made to it; as it was when it cannot be read (whoever reads it
    next says so)."""
    try:
        value = msgspec.json.decode(data)
    except _UNREADABLE:
        return data
    if not isinstance(value, dict):
        return data
    change(value)
    return _encoder.encode(value)


def choices_of(value: dict[str, Any]) -> Iterator[dict[str, Any]]:
    choices = value.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            yield choice


def rename(value: object, old: str, new: str) -> None:
    """Gives a member another name, unless it has that name too."""
    if isinstance(value, dict) and old in value:
        found = value.pop(old)
        if value.get(new) is None:
            value[new] = found
