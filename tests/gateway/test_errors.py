from __future__ import annotations

import json

import pytest

from backends.base import Failure, Fault, Kind
from gateway.errors import GatewayError, error_body, insufficient_quota, of_failure, of_refusal
from policies.types import Reason, Refusal, Why
from tests.policies.builders import label


def refusal(reason: Reason, wait_s: int | None = None) -> Refusal:
    why = Why(reason=reason, label=label())
    return Refusal(reason=reason, message="because", why=why, retry_after_s=wait_s)


# reason -> status, code, type, param, retry-after, x-should-retry
REFUSALS = {
    Reason.MODEL_UNKNOWN: (404, "model_not_found", "invalid_request_error", "model", None, None),
    Reason.SIDE_FORBIDDEN: (403, "sensitive_pinned", "permission_error", "model", None, None),
    Reason.UNFIT: (400, "unsupported_request", "invalid_request_error", None, None, None),
    Reason.TOO_LONG: (400, "context_length_exceeded", "invalid_request_error", None, None, None),
    Reason.BUDGET_EXHAUSTED: (
        429, "insufficient_quota", "insufficient_quota", None, None, "false"),
    Reason.SENSITIVE_LOCAL_UNAVAILABLE: (
        503, "sensitive_local_unavailable", "api_error", None, "2", None),
    Reason.NO_CAPACITY: (503, "no_capacity", "api_error", None, "2", None),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refused_plan(reason: Reason) -> None:
    status, code, kind, param, wait, retry = REFUSALS[reason]
    waits = status == 503
    error = of_refusal(refusal(reason, 2 if waits else None))
    assert (error.status, error.code, error.kind, error.param) == (status, code, kind, param)
    assert error.headers.get("retry-after") == wait
    assert error.headers.get("x-should-retry") == retry
    assert error.message == "because"


# kind -> status, code, retry-after; what the same is called when it had to stay here
FAILURES: dict[Kind, tuple[int, str, str | None]] = {
    Kind.BAD_REQUEST: (400, "invalid_value", None),
    Kind.CONTEXT: (400, "context_length_exceeded", None),
    Kind.CONTENT_FILTER: (400, "content_filter", None),
    Kind.RATE_LIMITED: (429, "rate_limit_exceeded", "1"),
    Kind.NOT_FOUND: (502, "upstream_not_found", None),
    Kind.AUTH: (502, "upstream_auth", None),
    Kind.QUOTA: (502, "upstream_quota", None),
    Kind.CONNECT: (503, "upstream_connect", "1"),
    Kind.SERVER_ERROR: (502, "upstream_server_error", None),
    Kind.BROKEN: (502, "upstream_broken", None),
    Kind.BUSY: (503, "upstream_busy", "1"),
    Kind.OVERLOADED: (503, "upstream_overloaded", "1"),
    Kind.TIMEOUT_FIRST: (504, "upstream_timeout_first", None),
    Kind.TIMEOUT_IDLE: (504, "upstream_timeout_idle", None),
    Kind.TIMEOUT_TOTAL: (504, "upstream_timeout_total", None),
}


@pytest.mark.parametrize("kind", Kind)
def test_a_failed_attempt(kind: Kind) -> None:
    status, code, wait = FAILURES[kind]
    error = of_failure(Failure(kind, "text"), pinned=False)
    assert (error.status, error.code, error.headers.get("retry-after")) == (status, code, wait)
    assert error.message == "text"


@pytest.mark.parametrize("kind", Kind)
def test_a_failed_attempt_of_what_must_stay_here(kind: Kind) -> None:
    """The caller's own mistake stays that; all else means that no worker could do it now."""
    error = of_failure(Failure(kind, "text"), pinned=True)
    if FAILURES[kind][0] == 400:
        assert (error.status, error.code) == FAILURES[kind][:2]
        assert "retry-after" not in error.headers
    else:
        assert (error.status, error.code) == (503, "sensitive_local_unavailable")
        assert error.headers["retry-after"] == "1"


def test_the_engines_own_code_is_for_the_caller_only_when_it_is_his_mistake() -> None:
    mine = Failure(Kind.BAD_REQUEST, "no", fault=Fault.CALLER, code="InvalidParameter")
    assert of_failure(mine, pinned=False).code == "InvalidParameter"
    theirs = Failure(Kind.SERVER_ERROR, "no", code="InternalServiceError")
    assert of_failure(theirs, pinned=False).code == "upstream_server_error"


def test_one_that_is_too_long_has_the_code_that_clients_know() -> None:
    """They shorten the history when they see it, whatever an engine or Ark calls it."""
    for code in ("OutofContextError", "context_length_exceeded", None):
        failure = Failure(Kind.CONTEXT, "no", fault=Fault.CALLER, code=code, param="messages")
        error = of_failure(failure, pinned=True)
        assert (error.code, error.param) == ("context_length_exceeded", "messages")


def test_the_field_at_fault_is_named_when_it_is_the_callers() -> None:
    mine = Failure(Kind.BAD_REQUEST, "no", fault=Fault.CALLER, param="tools[0]")
    assert of_failure(mine, pinned=False).param == "tools[0]"
    theirs = Failure(Kind.BROKEN, "no", param="tools[0]")
    assert of_failure(theirs, pinned=False).param is None
    planned = Refusal(
        reason=Reason.TOO_LONG,
        message="no",
        why=Why(reason=Reason.TOO_LONG, label=label()),
        param="messages",
    )
    assert of_refusal(planned).param == "messages"


@pytest.mark.parametrize(
    ("wait_s", "header"), [(0.0, "1"), (0.2, "1"), (2.4, "3"), (2.5, "3"), (30.0, "30")]
)
def test_who_waits_as_long_as_told_is_not_too_early(wait_s: float, header: str) -> None:
    failure = Failure(Kind.RATE_LIMITED, "later", retry_after_s=wait_s)
    assert of_failure(failure, pinned=False).headers["retry-after"] == header


def test_the_shape_of_openai() -> None:
    error = GatewayError(400, "invalid_value", 'text with "quotes" and 汉字', param="n", retry=True)
    assert json.loads(error.body()) == {
        "error": {
            "message": 'text with "quotes" and 汉字',
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_value",
        }
    }
    assert error.headers == {"x-should-retry": "true"}
    assert str(error) == error.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"),
        (404, "invalid_request_error"), (413, "invalid_request_error"), (418, "api_error"),
        (429, "rate_limit_error"), (500, "api_error"), (503, "api_error"),
    ],
)  # fmt: skip
def test_the_type_follows_from_the_status(status: int, kind: str) -> None:
    assert GatewayError(status, "x", "y").kind == kind


def test_headers_are_a_copy() -> None:
    shared = {"a": "b"}
    GatewayError(500, "x", "y", headers=shared).headers["c"] = "d"
    assert shared == {"a": "b"}


def test_an_exhausted_budget_stops_the_sdks_from_asking_again() -> None:
    error = insufficient_quota("spent")
    assert (error.status, error.kind) == (429, "insufficient_quota")
    assert error.headers == {"x-should-retry": "false"}


def test_an_error_inside_of_a_stream_has_the_same_shape() -> None:
    assert json.loads(error_body("m", "t", "c"))["error"]["param"] is None
