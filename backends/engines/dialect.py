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
from backends.chat import ChatRequest, StreamOptions

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


def switch_thinking(members: dict[str, Any]) -> None:
    """Ark's `thinking` in the words of GLM's chat template. `auto` is the template's default."""
    thinking = members.pop("thinking", None)
    if not thinking or thinking.get("type") == "auto":
        return
    kwargs = dict(members.get("chat_template_kwargs") or {})
    kwargs.setdefault("enable_thinking", thinking["type"] == "enabled")
    members["chat_template_kwargs"] = kwargs


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
