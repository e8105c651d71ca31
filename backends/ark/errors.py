"""What an error of Ark means: code -> Failure.

The code alone decides, never the message (docs 82379/1299023; the wording changes). A code that is
not known is judged by its HTTP status. For each code the table says what kind of failure it is and
what follows:

    U  the caller's fault: return it, ask nobody else
    F  another target may be asked
    A  an operator should know
    W  wait for the next minute before asking Ark again: quotas a minute have no other hint

The text that the caller sees is ours. Ark's own message may name the account, so only its request
id is taken from it: with that id the vendor's support finds the call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from backends.base import Billed, Failure, Fault, Kind
from backends.refusals import retry_after_of

MINUTE_S = 60.0
# After an overload Ark's own advice is to start again with 1 to 2 s.
OVERLOAD_WAIT_S = 2.0


class Meaning(msgspec.Struct, frozen=True, kw_only=True):
    """What one code means for the call and for what comes next."""

    kind: Kind
    said: str  # to the caller
    fault: Fault = Fault.UPSTREAM
    elsewhere: bool = True
    billed: Billed = Billed.NO
    alert: bool = False
    next_minute: bool = False
    wait_s: float | None = None


_BAD = Meaning(
    kind=Kind.BAD_REQUEST,
    said="the cloud refuses the request as not valid",
    fault=Fault.CALLER,
    elsewhere=False,
)
_IMAGE = msgspec.structs.replace(_BAD, said="the cloud cannot read a picture of the request")
_CONTEXT = Meaning(
    kind=Kind.CONTEXT,
    said="the request is longer than the context of the cloud model",
    fault=Fault.CALLER,
)
_INPUT = Meaning(
    kind=Kind.CONTENT_FILTER,
    said="the cloud's content check refuses the request",
    fault=Fault.CALLER,
    elsewhere=False,
)
# The answer, or part of it, had been generated: that part is charged.
_OUTPUT = msgspec.structs.replace(
    _INPUT, said="the cloud's content check withholds the answer", billed=Billed.MAYBE
)
_CHECKER = Meaning(kind=Kind.SERVER_ERROR, said="the cloud's content check failed")
_KEY = Meaning(
    kind=Kind.AUTH,
    said="the cloud does not accept the gateway's key or account",
    fault=Fault.GATEWAY,
    alert=True,
)
_DENIED = msgspec.structs.replace(_KEY, said="the cloud denies the gateway this operation")
_OVERDUE = Meaning(
    kind=Kind.QUOTA,
    said="the gateway's cloud account is out of money",
    fault=Fault.GATEWAY,
    alert=True,
)
_QUOTA = msgspec.structs.replace(_OVERDUE, said="the gateway's cloud allowance is used up")
_UNKNOWN_MODEL = Meaning(
    kind=Kind.NOT_FOUND,
    said="the cloud does not offer the model to the gateway",
    fault=Fault.GATEWAY,
    alert=True,
)
_RATE = Meaning(
    kind=Kind.RATE_LIMITED,
    said="the cloud's limit a minute is reached",
    next_minute=True,
)
_OVERLOAD = Meaning(kind=Kind.OVERLOADED, said="the cloud is overloaded", wait_s=OVERLOAD_WAIT_S)
_TOO_MANY = Meaning(
    kind=Kind.OVERLOADED, said="too many cloud requests at once", wait_s=OVERLOAD_WAIT_S
)
_SERVER = Meaning(
    kind=Kind.SERVER_ERROR,
    said="the cloud failed",
    billed=Billed.MAYBE,  # it may have generated before it failed
)
_UNREACHED = Meaning(kind=Kind.OVERLOADED, said="the cloud cannot reach its model")
_TIMED_OUT = Meaning(
    kind=Kind.SERVER_ERROR, said="the cloud did not answer in time", billed=Billed.MAYBE
)

EXACT: Mapping[str, Meaning] = {
    "OutofContextError": _CONTEXT,
    "InvalidEndpoint.ClosedEndpoint": _UNKNOWN_MODEL,
    "ContentSecurityDetectionError": _CHECKER,
    "InvalidSubscription": _KEY,
    "AuthenticationError": _KEY,
    "InvalidAccountStatus": _KEY,
    "AccountOverdueError": _OVERDUE,
    "OperationDenied.ServiceOverdue": _OVERDUE,
    "AccessDenied": _DENIED,
    "ModelNotOpen": _UNKNOWN_MODEL,
    "UnsupportedModel": _UNKNOWN_MODEL,
    "ModelAccountRpmRateLimitExceeded": _RATE,
    "ModelAccountTpmRateLimitExceeded": _RATE,
    "ModelAccountIpmRateLimitExceeded": _RATE,
    "APIAccountRpmRateLimitExceeded": _RATE,
    "AccountRateLimitExceeded": _RATE,
    "ServerOverloaded": _OVERLOAD,
    "RequestBurstTooFast": _OVERLOAD,
    "InflightBatchsizeExceeded": _TOO_MANY,
    "SetLimitExceeded": _QUOTA,
    "QuotaExceeded": _QUOTA,  # three meanings, told apart by the message only: the strictest
    "RequestTooLarge": _BAD,
    "RequestBodyTooLarge": _BAD,
    "InternalServiceError": _SERVER,
    # Names of the API before this one; still met in old code, no longer documented.
    "InferenceServiceConnetionTimeout": _TIMED_OUT,  # spelt so
    "InferenceServiceConnectionTimeout": _TIMED_OUT,
    "RequestTimeout": _TIMED_OUT,
    "EndpointAccountRpmRateLimitExceeded": _RATE,
    "EndpointAccountTpmRateLimitExceeded": _RATE,
    "EndpointRateLimitExceeded": _RATE,
    "ServiceConnectionRefused": _UNREACHED,
    "ServiceConnectionClosed": _TIMED_OUT,
    "EndpointIsNotEnable": _UNKNOWN_MODEL,
    "EndpointIsPending": _UNREACHED,
    "ModelLoadingError": _UNREACHED,
    "ServiceResourceWaitQueueFull": _OVERLOAD,
}

# Codes with a part after the dot, and codes that come in families; the longest prefix wins.
PREFIXES: tuple[tuple[str, Meaning], ...] = (
    ("InvalidEndpointOrModel", _UNKNOWN_MODEL),
    ("RateLimitExceeded.", _RATE),
    ("InvalidArgumentError", _BAD),
    ("InvalidParameter", _BAD),
    ("MissingParameter", _BAD),
    ("InvalidImageURL", _IMAGE),
    ("OperationDenied", _DENIED),
    ("NotFound", _UNKNOWN_MODEL),
)

# InputTextSensitiveContentDetected.PolicyViolation, OutputImageRiskDetection, ...
_MODERATION = re.compile(
    r"(?P<side>Input|Output|)(Text|Image|Video|Audio)?(SensitiveContentDetected|RiskDetection)\b"
)
_BY_STATUS: Mapping[int, Meaning] = {
    401: _KEY,
    403: _DENIED,
    404: _UNKNOWN_MODEL,
    408: _TIMED_OUT,
    429: _RATE,
    503: _OVERLOAD,
}
_SERVER_ID = re.compile(r"Request id: ?(0[0-9A-Za-z]{15,63})\b", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_ID = re.compile(r"[A-Za-z0-9_-]{8,64}", re.ASCII)


class _Error(msgspec.Struct):
    code: object = None
    message: object = None


class _Body(msgspec.Struct):
    error: _Error | None = None


_DECODER = msgspec.json.Decoder(_Body)


def meaning_of(code: str, status: int) -> Meaning:
    """What a code means; by the HTTP status when the code is new."""
    exact = EXACT.get(code)
    if exact is not None:
        return exact
    moderation = _MODERATION.match(code)
    if moderation is not None:
        return _OUTPUT if moderation["side"] == "Output" else _INPUT
    for prefix, meaning in PREFIXES:
        if code.startswith(prefix):
            return meaning
    known = _BY_STATUS.get(status)
    if known is not None:
        return known
    if status >= 500:
        return _SERVER
    return _BAD if status >= 400 else _SERVER


def failure_of(status: int, headers: Mapping[str, str], body: bytes, *, now_s: float) -> Failure:
    """An error answer -> Failure.

    headers: lower-case names. now_s: wall clock; the limits of Ark go by the minute.
    """
    code, message = _read(body)
    return failure_from(
        code,
        status=status,
        server_id=_server_id(message, headers),
        retry_after_s=retry_after_of(headers.get("retry-after")),
        now_s=now_s,
    )


def failure_from(
    code: str,
    *,
    status: int,
    server_id: str | None,
    retry_after_s: float | None,
    now_s: float,
) -> Failure:
    """A code -> Failure. What Ark says about waiting counts before what we would guess."""
    meaning = meaning_of(code, status)
    wait_s = retry_after_s
    if wait_s is None:
        wait_s = MINUTE_S - now_s % MINUTE_S if meaning.next_minute else meaning.wait_s
    hints = [f"code {code}"] if code else []
    if server_id is not None:
        hints.append(f"Ark request id {server_id}")
    return Failure(
        meaning.kind,
        f"{meaning.said} ({', '.join(hints)})" if hints else meaning.said,
        fault=meaning.fault,
        billed=meaning.billed,
        elsewhere=meaning.elsewhere,
        status=status,
        code=code or None,
        retry_after_s=wait_s,
        alert=meaning.alert,
    )


def in_band(failure: Failure, data: bytes, *, now_s: float) -> Failure:
    """An error inside of an answer whose status was good: what was generated is charged.

    failure: what the generic reader made of it; it stays when `data` (JSON) names no code.
    """
    code, message = _read(data)
    if not code:
        return failure
    mapped = failure_from(
        code, status=500, server_id=_server_id(message, {}), retry_after_s=None, now_s=now_s
    )
    mapped.billed = Billed.MAYBE
    mapped.status = None  # the answer's status was good
    return mapped


def _read(body: bytes) -> tuple[str, str]:
    """Code and message of an error body; empty when there are none. Never fails."""
    try:
        error = _DECODER.decode(body).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", ""
    if error is None:
        return "", ""
    code = error.code if isinstance(error.code, str) and _WORD.fullmatch(error.code) else ""
    return code, error.message if isinstance(error.message, str) else ""


def _server_id(message: str, headers: Mapping[str, str]) -> str | None:
    """Ark's id of the request: a header if there is one, else the tail of the message."""
    header = headers.get("x-request-id", "")
    if _ID.fullmatch(header):
        return header
    found = _SERVER_ID.search(message)
    return found[1] if found is not None else None
