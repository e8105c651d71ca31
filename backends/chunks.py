"""chat.completion and chat.completion.chunk: JSON -> the little that the gateway needs of it.

read_event   one raw event of a stream -> Event
read_body    a whole answer -> usage and finish reason

What an engine writes is foreign input: it is read, or it is a Failure, and nothing else. A usage
that makes no sense (negative, not a number, beyond any counter) counts as none reported, so that
whoever keeps the books falls back on the upper bound that was reserved. Errors: see `refusals`.
"""

from __future__ import annotations

import msgspec

from backends.base import Billed, Event, Failure, Kind
from backends.refusals import UNREADABLE, failure_in_band, word
from backends.sse import data_of
from policies.types import Usage

# More tokens than any context holds, and far inside of what a 64-bit counter takes.
USAGE_TOKENS_MAX = 1_000_000_000
# A day. A slot that was held for longer was not held by one request.
SLOT_MS_MAX = 86_400_000

_ABSENT = msgspec.Raw(b"")
_NOTHING = (b"", b"null", b'""', b"[]", b"{}")


class _Delta(msgspec.Struct, gc=False):
    content: msgspec.Raw = _ABSENT
    reasoning_content: msgspec.Raw = _ABSENT
    reasoning: msgspec.Raw = _ABSENT  # vLLM's name for it
    tool_calls: msgspec.Raw = _ABSENT
    refusal: msgspec.Raw = _ABSENT


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    model: msgspec.Raw = _ABSENT
    service_tier: msgspec.Raw = _ABSENT
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT
    yuzui: msgspec.Raw = _ABSENT
    object: msgspec.Raw = _ABSENT


class _BodyChoice(msgspec.Struct, gc=False):
    message: msgspec.Raw = _ABSENT
    finish_reason: str | None = None


class _Body(msgspec.Struct, gc=False):
    model: msgspec.Raw = _ABSENT
    service_tier: msgspec.Raw = _ABSENT
    choices: list[_BodyChoice] | None = None
    usage: msgspec.Raw = _ABSENT
    error: msgspec.Raw = _ABSENT
    yuzui: msgspec.Raw = _ABSENT
    object: msgspec.Raw = _ABSENT


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    image_tokens: int | None = None  # SGLang
    multimodal_tokens: msgspec.Raw = _ABSENT  # vLLM: {"image": n, ...}


class _Multimodal(msgspec.Struct, gc=False):
    image: int | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int = 0
    reasoning_tokens: int | None = None  # SGLang puts it here
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Yuzui(msgspec.Struct, gc=False):
    slot_ms: float = 0.0


_CHUNK = msgspec.json.Decoder(_Chunk)
_BODY = msgspec.json.Decoder(_Body)
_USAGE = msgspec.json.Decoder(_Usage)
_MULTIMODAL = msgspec.json.Decoder(_Multimodal)
_YUZUI = msgspec.json.Decoder(_Yuzui)
_STR = msgspec.json.Decoder(str)


def read_event(raw: bytes) -> Event:
    """One raw event of a stream. Raises Failure: the error it names, or BROKEN for nonsense.

    Events are UTF-8 by their definition, and SDKs fail on what is not. An engine that writes such
    bytes is as broken as one whose JSON cannot be read.
    """
    if not raw.isascii():
        _expect_text(raw)  # all of it is passed on, comments and what is not looked at as well
    data = data_of(raw)
    if data is None:
        return Event(raw=raw)
    if data == b"[DONE]":
        return Event(raw=raw, done=True)
    try:
        chunk = _CHUNK.decode(data)
    except UNREADABLE:
        raise _broken("the engine sent an event that cannot be read") from None
    choices = chunk.choices
    error = bytes(chunk.error)
    if error and error != b"null":
        raise failure_in_band(error)
    usage = None
    if chunk.usage and bytes(chunk.usage) != b"null":
        usage = _usage_of(chunk)
    elif choices is None:
        raise _nonsense(data, chunk.object)
    if not choices:
        return Event(raw=raw, usage=usage, choices_empty=True)
    has_delta = False
    finish_reason = None
    finished: tuple[int, ...] = ()
    for choice in choices:
        if choice.finish_reason:
            finish_reason = choice.finish_reason
            finished += (choice.index,)
        if not has_delta and (delta := choice.delta) is not None:
            has_delta = _carries(delta)
    return Event(
        raw=raw,
        has_delta=has_delta,
        finish_reason=finish_reason,
        finished=finished,
        usage=usage,
    )


def _expect_text(raw: bytes) -> None:
    try:
        raw.decode()
    except UnicodeDecodeError:
        raise _broken("the engine sent bytes that are no UTF-8") from None


def read_body(body: bytes) -> tuple[Usage | None, str | None]:
    """Usage and finish reason (of the first choice) of a whole answer. Raises Failure."""
    if not body.isascii():
        _expect_text(body)
    try:
        answer = _BODY.decode(body)
    except UNREADABLE:
        raise _broken("the engine sent an answer that cannot be read") from None
    error = bytes(answer.error)
    if error and error != b"null":
        raise failure_in_band(error)
    said = [choice for choice in answer.choices or () if choice.message or choice.finish_reason]
    if not answer.choices or not said:
        raise _nonsense(body, answer.object)
    return _usage_of(answer), answer.choices[0].finish_reason


def _carries(delta: _Delta) -> bool:
    for part in (delta.content, delta.reasoning_content, delta.tool_calls, delta.reasoning):
        if part and bytes(part) not in _NOTHING:
            return True
    return bool(delta.refusal) and bytes(delta.refusal) not in _NOTHING


def _usage_of(said: _Chunk | _Body) -> Usage | None:
    try:
        usage = _USAGE.decode(said.usage)
    except UNREADABLE:
        return None
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if not (0 <= prompt <= USAGE_TOKENS_MAX and 0 <= completion <= USAGE_TOKENS_MAX):
        return None
    cached = image = 0
    if (details := usage.prompt_tokens_details) is not None:
        cached = details.cached_tokens or 0
        image = details.image_tokens or _image_tokens(details.multimodal_tokens)
    reasoning = usage.reasoning_tokens or 0
    if (output := usage.completion_tokens_details) is not None:
        reasoning = output.reasoning_tokens or reasoning
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        cached_tokens=_within(cached, prompt),
        image_tokens=_within(image, prompt),
        reasoning_tokens=_within(reasoning, completion),
        slot_ms=_slot_ms(said.yuzui),
        served_model=_name(said.model),
        service_tier=_name(said.service_tier),
    )


def _name(raw: msgspec.Raw) -> str:
    """A model or a tier as the engine names it; nothing when it is no plain word."""
    if not raw:
        return ""
    try:
        return word(_STR.decode(raw))
    except UNREADABLE:
        return ""


def _image_tokens(raw: msgspec.Raw) -> int:
    if not raw:
        return 0
    try:
        return _MULTIMODAL.decode(raw).image or 0
    except UNREADABLE:
        return 0


def _slot_ms(raw: msgspec.Raw) -> int:
    if not raw:
        return 0
    try:
        return _within(round(_YUZUI.decode(raw).slot_ms), SLOT_MS_MAX)
    except (*UNREADABLE, OverflowError):
        return 0


def _within(value: int, limit: int) -> int:
    return max(0, min(value, limit))


def _broken(message: str) -> Failure:
    return Failure(Kind.BROKEN, message, billed=Billed.MAYBE)


def _nonsense(data: bytes, kind: msgspec.Raw) -> Failure:
    """An answer without choices: a flat error that arrived with a good status, or noise."""
    if bytes(kind) == b'"error"':
        return failure_in_band(data)
    return _broken("the engine sent something that is not a chat answer")
