"""What an engine's error means: HTTP status and JSON -> Failure.

read_error        an error body, in either of the two shapes in use -> UpstreamError
failure_of        HTTP status and UpstreamError -> Failure
failure_in_band   an error inside of an answer whose status was good -> Failure
retry_after_of    a Retry-After header -> seconds

The text of a foreign engine's error message may repeat the prompt or name an internal address: it
is looked at, never passed on. What our own worker says to a caller's mistake names fields and
limits (glm.errors), and he needs it to mend his request: it is passed on to him, and goes into no
log.
"""

from __future__ import annotations

import re

import msgspec

from backends.base import Billed, Failure, Fault, Kind
from backends.chat import ChatRequest

# A longer wait than this is not obeyed: the engine is as good as gone.
RETRY_AFTER_S_MAX = 300.0
# Of a message of our own worker. The longest says what a schema asks for that cannot be followed.
SAID_CHARS_MAX = 500

_ABSENT = msgspec.Raw(b"")
# RecursionError: nesting deeper than the interpreter allows. ValueError: bad UTF-8.
UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
_PLAIN = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")
_FIELDS = frozenset(ChatRequest.__struct_fields__)
# Statuses below 500 that say nothing of the request: it came too slowly, too early, or not whole.
_NOT_THE_CALLERS = frozenset({408, 425, 499})
# What the engines write when prompt and output limit do not fit. Only vLLM and our worker give a
# code for it; the rest is known by its wording.
_CONTEXT = re.compile(
    r"context_length_exceeded|maximum context length|model's context length"
    r"|requested token count exceeds|longer than the maximum model length"
    r"|exceeds the (model's )?maximum context",
    re.IGNORECASE,
)

_CONTEXT_TOKENS = re.compile(r"context length (?:is |of |\()(\d{1,9}) tokens", re.IGNORECASE)


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


_ERROR = msgspec.json.Decoder(_Error)
_ERROR_BODY = msgspec.json.Decoder(_ErrorBody)


def read_error(body: bytes) -> UpstreamError:
    """An error body: `{"error": {...}}`, or flat as SGLang writes it. Never fails."""
    try:
        inner = bytes(_ERROR_BODY.decode(body).error)
        return _error_of(inner if inner and inner != b"null" else body)
    except UNREADABLE:
        return UpstreamError()


def failure_of(
    status: int, error: UpstreamError, *, retry_after_s: float | None = None, ours: bool = False
) -> Failure:
    """The Failure of an OpenAI-compatible engine's refusal with this HTTP status.

    ours: it is our own worker, whose words to a caller's mistake are passed on
    """
    code = _code(error.code)
    param = _param(error.param)

    def failure(
        kind: Kind, message: str, fault: Fault, elsewhere: bool, *, alert: bool = False
    ) -> Failure:
        return Failure(
            kind,
            message,
            fault=fault,
            elsewhere=elsewhere,
            status=status,
            code=code or None,
            param=param if fault is Fault.CALLER else None,
            retry_after_s=retry_after_s,
            alert=alert,
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
    if status in _NOT_THE_CALLERS:
        text = "the engine did not take the request in time"
        return failure(Kind.SERVER_ERROR, text, Fault.UPSTREAM, True)
    if 400 <= status < 500:
        said = _said(error) if ours else ""
        if _is_context(error, ours=ours):
            # Too long for this engine: one with a longer context may still take it.
            param = param or "messages"
            return failure(Kind.CONTEXT, said or _too_long(error), Fault.CALLER, True)
        said = said or "the engine refuses the request" + _hints(code, param)
        return failure(Kind.BAD_REQUEST, said, Fault.CALLER, False)
    if status >= 500:
        return failure(Kind.SERVER_ERROR, "the engine failed", Fault.UPSTREAM, True)
    return failure(Kind.BROKEN, f"the engine answered with status {status}", Fault.UPSTREAM, True)


def failure_in_band(raw: bytes) -> Failure:
    """An error inside of an answer whose status was good. Its code may be an HTTP status."""
    try:
        error = _error_of(raw)
    except UNREADABLE:
        error = UpstreamError()
    status = int(error.code) if re.fullmatch(r"[45]\d\d", error.code) else 500
    failure = failure_of(status, error)
    if failure.kind is Kind.SERVER_ERROR:
        failure.billed = Billed.MAYBE  # the engine had taken the request and may have worked
    return failure


def retry_after_of(value: str | None) -> float | None:
    """A Retry-After header in seconds, at most RETRY_AFTER_S_MAX. A date counts as absent."""
    if value is None or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value.strip()):
        return None
    return min(float(value), RETRY_AFTER_S_MAX)


def word(text: str) -> str:
    """A code or a field name that is safe to pass on; anything else is dropped."""
    return text if _PLAIN.fullmatch(text) else ""


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


def _code(text: str) -> str:
    """An engine's own code. vLLM and SGLang repeat the HTTP status there, which is none."""
    return "" if text.isdecimal() else word(text)


def _param(text: str) -> str | None:
    """A field of a request as an engine names it, if requests have such a field; of a path that is
    no plain word the field at its root."""
    root = re.split(r"[.\[]", text, maxsplit=1)[0]
    if root not in _FIELDS:
        return None
    return word(text) or root


def _hints(code: str, param: str | None) -> str:
    hints = [f"{name} {said}" for name, said in (("code", code), ("param", param)) if said]
    return f" ({', '.join(hints)})" if hints else ""


def _said(error: UpstreamError) -> str:
    """What our own worker says, on one line."""
    text = " ".join(error.message.split())
    return text if len(text) <= SAID_CHARS_MAX else text[: SAID_CHARS_MAX - 3] + "..."


def _too_long(error: UpstreamError) -> str:
    """Of a foreign engine's text only the number counts."""
    found = _CONTEXT_TOKENS.search(error.message[:2000])
    limit = f" of {found[1]} tokens" if found else ""
    return f"the request is longer than the engine's maximum context length{limit}"


def _is_context(error: UpstreamError, *, ours: bool) -> bool:
    if _CONTEXT.search(error.code):
        return True
    return not ours and _CONTEXT.search(error.message[:2000]) is not None
