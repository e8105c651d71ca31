"""Every refusal that a client can see, in the shape of the OpenAI API.

    GatewayError      status, code, message; `retry` says whether repeating can help

`x-should-retry: false` stops the OpenAI SDKs from repeating what cannot succeed (an exhausted
budget) and `Retry-After` tells when it can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from backends.base import Failure, Kind
from policies.types import Reason, Refusal

_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class GatewayError(Exception):
    """An answer that is not the wanted one. `message` is shown to the caller."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        kind: str | None = None,
        retry_after_s: float | None = None,
        retry: bool | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.kind = kind or _TYPES.get(status, "api_error")
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
        if retry is not None:
            self.headers["x-should-retry"] = "true" if retry else "false"

    def body(self) -> bytes:
        return error_body(self.message, self.kind, self.code, self.param)


def error_body(message: str, kind: str, code: str, param: str | None = None) -> bytes:
    """The JSON object `{"error": {...}}` of the OpenAI API, also used inside a stream."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return msgspec.json.encode({"error": error})


def of_refusal(refusal: Refusal) -> GatewayError:
    """The answer to a plan that found no place to send the request."""
    match refusal.reason:
        case Reason.MODEL_UNKNOWN:
            return GatewayError(404, "model_not_found", refusal.message, param="model")
        case Reason.SIDE_FORBIDDEN:
            return GatewayError(403, "sensitive_pinned", refusal.message, param="model")
        case Reason.UNFIT:
            return GatewayError(400, "unsupported_request", refusal.message, param=refusal.param)
        case Reason.TOO_LONG:
            return GatewayError(
                400, "context_length_exceeded", refusal.message, param=refusal.param
            )
        case Reason.BUDGET_EXHAUSTED:
            return insufficient_quota(refusal.message)
        case Reason.SENSITIVE_LOCAL_UNAVAILABLE:
            return GatewayError(
                503,
                "sensitive_local_unavailable",
                refusal.message,
                retry_after_s=refusal.retry_after_s,
            )
        case _:
            return GatewayError(
                503, "no_capacity", refusal.message, retry_after_s=refusal.retry_after_s
            )


def insufficient_quota(message: str) -> GatewayError:
    """A budget is spent: repeating the request cannot help before it resets."""
    return GatewayError(429, "insufficient_quota", message, kind="insufficient_quota", retry=False)


_STATUS: Mapping[Kind, int] = {
    Kind.BAD_REQUEST: 400,
    Kind.CONTEXT: 400,
    Kind.CONTENT_FILTER: 400,
    Kind.NOT_FOUND: 502,
    Kind.AUTH: 502,
    Kind.QUOTA: 502,
    Kind.BUSY: 503,
    Kind.OVERLOADED: 503,
    Kind.RATE_LIMITED: 429,
    Kind.CONNECT: 503,
    Kind.TIMEOUT_FIRST: 504,
    Kind.TIMEOUT_IDLE: 504,
    Kind.TIMEOUT_TOTAL: 504,
}
_CODES: Mapping[Kind, str] = {
    Kind.CONTEXT: "context_length_exceeded",
    Kind.CONTENT_FILTER: "content_filter",
    Kind.BAD_REQUEST: "invalid_value",
    Kind.RATE_LIMITED: "rate_limit_exceeded",
}


def of_failure(failure: Failure, *, pinned: bool) -> GatewayError:
    """The answer when the last attempt of a plan failed before anything reached the client.

    pinned: the request may only be answered on the premises; a client that can wait is told so.
    """
    status = _STATUS.get(failure.kind, 502)
    caller = status == 400
    code = _CODES.get(failure.kind, f"upstream_{failure.kind.value}")
    if pinned and not caller:
        status, code = 503, Reason.SENSITIVE_LOCAL_UNAVAILABLE.value
    # Of one that is too long clients know the code that OpenAI has for it, and cut their history.
    if caller and failure.code and failure.kind is not Kind.CONTEXT:
        code = failure.code
    wait_s = failure.retry_after_s
    if wait_s is None and status in (429, 503):
        wait_s = 1.0
    return GatewayError(
        status,
        code,
        failure.message,
        param=failure.param if caller else None,
        retry_after_s=None if caller else wait_s,
    )
