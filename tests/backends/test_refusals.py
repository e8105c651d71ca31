"""What an engine's error becomes: its kind, whose fault, is it tried elsewhere, who reads it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Billed, Failure, Fault, Kind
from backends.refusals import (
    RETRY_AFTER_S_MAX,
    SAID_CHARS_MAX,
    UpstreamError,
    failure_in_band,
    failure_of,
    read_error,
    retry_after_of,
)


@pytest.mark.parametrize(
    ("status", "error", "kind", "fault", "elsewhere"),
    [
        (400, {}, Kind.BAD_REQUEST, Fault.CALLER, False),
        (413, {}, Kind.BAD_REQUEST, Fault.CALLER, False),
        (422, {}, Kind.BAD_REQUEST, Fault.CALLER, False),
        (400, {"code": "context_length_exceeded"}, Kind.CONTEXT, Fault.CALLER, True),
        (
            400,
            {"message": "The input (9 tokens) is longer than the model's context length (5)"},
            Kind.CONTEXT,
            Fault.CALLER,
            True,
        ),
        (400, {"message": "Requested token count exceeds"}, Kind.CONTEXT, Fault.CALLER, True),
        (404, {}, Kind.NOT_FOUND, Fault.UPSTREAM, True),
        (401, {}, Kind.AUTH, Fault.GATEWAY, True),
        (429, {}, Kind.BUSY, Fault.UPSTREAM, True),
        (503, {"code": "worker_draining"}, Kind.BUSY, Fault.UPSTREAM, True),
        (500, {}, Kind.SERVER_ERROR, Fault.UPSTREAM, True),
        (302, {}, Kind.BROKEN, Fault.UPSTREAM, True),
        # not of the request, but of how it came: somewhere else it may be taken
        (408, {}, Kind.SERVER_ERROR, Fault.UPSTREAM, True),
        (425, {}, Kind.SERVER_ERROR, Fault.UPSTREAM, True),
    ],
)
def test_status_to_failure(
    status: int, error: dict[str, str], kind: Kind, fault: Fault, elsewhere: bool
) -> None:
    nested = read_error(json.dumps({"error": error}).encode())
    flat = read_error(json.dumps({"object": "error", **error}).encode())
    assert nested == flat
    failure = failure_of(status, nested, retry_after_s=2.0)
    assert (failure.kind, failure.fault, failure.elsewhere) == (kind, fault, elsewhere)
    assert (failure.billed, failure.status, failure.retry_after_s) == (Billed.NO, status, 2.0)


FOREIGN = UpstreamError(message="prompt", type="10.0.0.7 said", code="a secret", param="prompt!")


def test_the_text_of_a_foreign_engine_is_never_passed_on() -> None:
    for status in (400, 404, 422, 500, 503):
        failure = failure_of(status, FOREIGN)
        assert "prompt" not in failure.message
        assert "10.0" not in failure.message
        assert (failure.code, failure.param) == (None, None)
    named = failure_of(400, UpstreamError(code="invalid", param="messages[0].content"))
    assert "code invalid, param messages[0].content" in named.message
    assert (named.code, named.param) == ("invalid", "messages[0].content")


def test_our_own_workers_words_reach_the_caller_whose_mistake_it_is() -> None:
    error = UpstreamError(message="`a`\n  must not\tbe b.", param="tools[0].function.name")
    failure = failure_of(400, error, ours=True)
    assert (failure.message, failure.param) == ("`a` must not be b.", "tools[0].function.name")
    assert failure_of(400, UpstreamError(), ours=True).message == "the engine refuses the request"
    long = failure_of(400, UpstreamError(message="x" * 9_000), ours=True)
    assert len(long.message) == SAID_CHARS_MAX
    # what is nobody's mistake but the worker's own says nothing to the caller
    assert failure_of(500, error, ours=True).message == "the engine failed"
    # a text that speaks of contexts is no proof: our worker has a code for it
    words = UpstreamError(message="a schema that says maximum context length")
    assert failure_of(400, words, ours=True).kind is Kind.BAD_REQUEST
    assert failure_of(400, words).kind is Kind.CONTEXT


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ("temperature", "temperature"),
        ("messages[0].content[1].image_url", "messages[0].content[1].image_url"),
        ("messages[0].content is what I wrote", "messages"),
        ("logit_bias." + "x" * 64, "logit_bias"),
        ("input_tokens", None),  # no field of a request
        ("my prompt", None),
        ("", None),
    ],
)
def test_only_fields_that_requests_have_are_named(said: str, param: str | None) -> None:
    assert failure_of(400, UpstreamError(param=said)).param == param
    assert failure_of(503, UpstreamError(param=said)).param is None


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        ("This model's maximum context length is 4096 tokens. However, you requested 9000", 4096),
        ("The input (9000 tokens) is longer than the model's context length (4096 tokens).", 4096),
        ("Requested token count exceeds the model's maximum context length of 4096 tokens.", 4096),
        ("The input is longer than the maximum model length", None),
    ],
)
def test_too_long_for_a_foreign_engine(message: str, limit: int | None) -> None:
    """Its code is the HTTP status, which is none; what it says of its limit is a number."""
    failure = failure_of(400, UpstreamError(message=message, code="400", param="input_tokens"))
    assert (failure.kind, failure.code, failure.param) == (Kind.CONTEXT, None, "messages")
    assert ("4096 tokens" in failure.message) == (limit is not None)
    assert "9000" not in failure.message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("3", 3.0), (" 0.5", 0.5), ("99999", RETRY_AFTER_S_MAX), ("-1", None),
     ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("nan", None), ("9" * 400, None)],
)  # fmt: skip
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after_of(header) == seconds


@given(
    st.sampled_from([400, 401, 404, 408, 413, 429, 500, 503]),
    st.binary(max_size=80) | st.text(max_size=40).map(lambda t: json.dumps({"error": t}).encode()),
)
def test_any_bytes_are_a_failure(status: int, body: bytes) -> None:
    assert isinstance(failure_of(status, read_error(body)), Failure)
    assert failure_in_band(body).kind in Kind
