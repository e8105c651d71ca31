"""chat.completion and chat.completion.chunk: JSON -> the little that the gateway needs of it.

read_event   one raw event of a stream -> Event
read_body    a whole answer -> usage and finish reason
read_error   an error body, in either of the two shapes in use -> UpstreamError
failure_of   HTTP status and UpstreamError -> Failure

What an engine writes is foreign input: it is read, or it is a Failure, and nothing else. A usage
that makes no sense (negative, not a number, beyond any counter) counts as none reported, so that
whoever keeps the books falls back on the upper bound that was reserved. The text of an upstream's
error message may repeat the prompt or name an internal address: it is looked at, never passed on.
"""

from __future__ import annotations

import re

import msgspec

from backends.base import Billed, Event, Failure, Fault, Kind
from backends.sse import data_of
from policies.types import Usage

# More tokens than any context holds, and far inside of what a 64-bit counter takes.
USAGE_TOKENS_MAX = 1_000_000_000
# A day. A slot that was held for longer was not held by one request.
SLOT_MS_MAX = 86_400_000
# A longer wait than this is not obeyed: the engine is as good as gone.
RETRY_AFTER_S_MAX = 300.0

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


class _Error(msgspec.Struct, gc=False):
    message: object = None
    type: object = None
    code: object = None
    param: object = None


class _ErrorBody(msgspec.Struct, gc=False):
    error: msgspec.Raw = _ABSENT


class UpstreamError(msgspec.Struct, frozen=True, kw_only=True):
    """What an error body says. `message` stays inside: it may repeat the prompt."""

    message: str = ""
    type: str = ""
    code: str = ""
    param: str = ""


_CHUNK = msgspec.json.Decoder(_Chunk)
_BODY = msgspec.json.Decoder(_Body)
_USAGE = msgspec.json.Decoder(_Usage)
_MULTIMODAL = msgspec.json.Decoder(_Multimodal)
_PLAIN = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_YUZUI = msgspec.json.Decoder(_Yuzui)
_STR = msgspec.json.Decoder(str)
_ERROR = msgspec.json.Decoder(_Error)
_ERROR_BODY = msgspec.json.Decoder(_ErrorBody)

# RecursionError: nesting deeper than the interpreter allows. ValueError: bad UTF-8.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def read_event(raw: bytes) -> Event:
    """One raw event of a stream. Raises Failure: the error it names, or BROKEN for nonsense."""
    data = data_of(raw)
    if data is None:
        return Event(raw=raw)
    if data == b"[DONE]":
        return Event(raw=raw, done=True)
    try:
        chunk = _CHUNK.decode(data)
    except _UNREADABLE:
        raise _broken("the engine sent an event that cannot be read") from None
    choices = chunk.choices
    error = bytes(chunk.error)
    if error and error != b"null":
        raise _in_band(error)
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


def read_body(body: bytes) -> tuple[Usage | None, str | None]:
    """Usage and finish reason (of the first choice) of a whole answer. Raises Failure."""
    try:
        answer = _BODY.decode(body)
        if not body.isascii():
            body.decode()  # what is not looked at is passed on, and must be text as well
    except _UNREADABLE:
        raise _broken("the engine sent an answer that cannot be read") from None
    error = bytes(answer.error)
    if error and error != b"null":
        raise _in_band(error)
    said = [choice for choice in answer.choices or () if choice.message or choice.finish_reason]
    if not answer.choices or not said:
        raise _nonsense(body, answer.object)
    return _usage_of(answer), answer.choices[0].finish_reason


def read_error(body: bytes) -> UpstreamError:
    """An error body: `{"error": {...}}`, or flat as SGLang writes it. Never fails."""
    try:
        inner = bytes(_ERROR_BODY.decode(body).error)
        return _error_of(inner if inner and inner != b"null" else body)
    except _UNREADABLE:
        return UpstreamError()


def failure_of(status: int, error: UpstreamError, *, retry_after_s: float | None = None) -> Failure:
    """The Failure of an OpenAI-compatible engine's refusal with this HTTP status."""
    said = _said(error)
    code = _word(error.code) or _word(error.type) or None

    def failure(kind: Kind, message: str, fault: Fault, elsewhere: bool, **more: object) -> Failure:
        return Failure(
            kind,
            message + said,
            fault=fault,
            elsewhere=elsewhere,
            status=status,
            code=code,
            retry_after_s=retry_after_s,
            alert=bool(more.get("alert")),
        )

    if status in (429, 503):
        return failure(Kind.BUSY, "the engine is busy", Fault.UPSTREAM, True)
    if status in (401, 403):
        # The caller was let in by us; it is our key that this engine does not take.
        return failure(
            Kind.AUTH, "the engine refuses the gateway's key", Fault.GATEWAY, True, alert=True
        )
    if status == 404:
        # Another worker may serve it: the pool's list was older than this engine's.
        return failure(Kind.NOT_FOUND, "the engine does not know the model", Fault.UPSTREAM, True)
    if 400 <= status < 500:
        if _is_context(error):
            # Too long for this engine: one with a longer context may still take it.
            return failure(
                Kind.CONTEXT,
                "the request is longer than the engine's context",
                Fault.CALLER,
                True,
            )
        return failure(Kind.BAD_REQUEST, "the engine refuses the request", Fault.CALLER, False)
    if status >= 500:
        return failure(Kind.SERVER_ERROR, "the engine failed", Fault.UPSTREAM, True)
    return failure(Kind.BROKEN, f"the engine answered with status {status}", Fault.UPSTREAM, True)


def retry_after_of(value: str | None) -> float | None:
    """A Retry-After header in seconds, at most RETRY_AFTER_S_MAX. A date counts as absent."""
    if value is None or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value.strip()):
        return None
    return min(float(value), RETRY_AFTER_S_MAX)


def _carries(delta: _Delta) -> bool:
    for part in (delta.content, delta.reasoning_content, delta.tool_calls, delta.reasoning):
        if part and bytes(part) not in _NOTHING:
            return True
    return bool(delta.refusal) and bytes(delta.refusal) not in _NOTHING


def _usage_of(said: _Chunk | _Body) -> Usage | None:
    try:
        usage = _USAGE.decode(said.usage)
    except _UNREADABLE:
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
        return _word(_STR.decode(raw))
    except _UNREADABLE:
        return ""


def _image_tokens(raw: msgspec.Raw) -> int:
    if not raw:
        return 0
    try:
        return _MULTIMODAL.decode(raw).image or 0
    except _UNREADABLE:
        return 0


def _slot_ms(raw: msgspec.Raw) -> int:
    if not raw:
        return 0
    try:
        return _within(round(_YUZUI.decode(raw).slot_ms), SLOT_MS_MAX)
    except (*_UNREADABLE, OverflowError):
        return 0


def _within(value: int, limit: int) -> int:
    return max(0, min(value, limit))


def _broken(message: str) -> Failure:
    return Failure(Kind.BROKEN, message, billed=Billed.MAYBE)


def _nonsense(data: bytes, kind: msgspec.Raw) -> Failure:
    """An answer without choices: a flat error that arrived with a good status, or noise."""
    if bytes(kind) == b'"error"':
        return _in_band(data)
    return _broken("the engine sent something that is not a chat answer")


def _in_band(raw: bytes) -> Failure:
    """An error inside of an answer whose status was good. Its code may be an HTTP status."""
    try:
        error = _error_of(raw)
    except _UNREADABLE:
        error = UpstreamError()
    status = int(error.code) if re.fullmatch(r"[45]\d\d", error.code) else 500
    failure = failure_of(status, error)
    if failure.kind is Kind.SERVER_ERROR:
        failure.billed = Billed.MAYBE  # the engine had taken the request and may have worked
    return failure


def _error_of(raw: bytes) -> UpstreamError:
    error = _ERROR.decode(raw)
    return UpstreamError(
        message=_text(error.message),
        type=_text(error.type),
        code=_text(error.code),
        param=_text(error.param),
    )


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) else ""


def _word(text: str) -> str:
    """A code or a field name that is safe to pass on; anything else is dropped."""
    return text if _PLAIN.fullmatch(text) else ""


def _said(error: UpstreamError) -> str:
    words = [
        f"{name} {word}" for name in ("code", "param") if (word := _word(getattr(error, name)))
    ]
    return f" ({', '.join(words)})" if words else ""


# What the engines write when prompt and output limit do not fit. Only vLLM and our worker give a
# code for it; the rest is known by its wording.
_CONTEXT = re.compile(
    r"context_length_exceeded|maximum context length|model's context length"
    r"|requested token count exceeds|longer than the maximum model length"
    r"|exceeds the (model's )?maximum context",
    re.IGNORECASE,
)


def _is_context(error: UpstreamError) -> bool:
    return bool(_CONTEXT.search(error.code) or _CONTEXT.search(error.message[:2000]))
