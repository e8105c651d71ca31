"""What the gateway reads of an answer, and that foreign bytes never cause another exception."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Billed, Event, Failure, Kind
from backends.chunks import read_body, read_event
from backends.refusals import read_error
from backends.sse import encode
from policies.types import Usage


def event_of(value: Any) -> Event:
    return read_event(encode(json.dumps(value).encode()))


def chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": delta, **more}]}


@pytest.mark.parametrize(
    ("delta", "carries"),
    [
        ({"content": "x"}, True),
        ({"reasoning_content": "x"}, True),
        ({"reasoning": "x"}, True),
        ({"tool_calls": [{"index": 0}]}, True),
        ({"refusal": "no"}, True),
        ({"role": "assistant"}, False),
        ({"role": "assistant", "content": ""}, False),
        ({"content": None, "tool_calls": []}, False),
        ({}, False),
    ],
)
def test_has_delta(delta: dict[str, Any], carries: bool) -> None:
    assert event_of(chunk(delta)).has_delta is carries


NO_TEXT = [b"\xff", b"\xe4\xbd", b"\xc0\xaf", b"\xed\xa0\x80", "é".encode("latin-1")]


@pytest.mark.parametrize("wrong", NO_TEXT)
@pytest.mark.parametrize(
    "event",
    [b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n', b": alive %b\n\n",
     b'data: {"id":"%b","choices":[{"index":0,"delta":{}}]}\n\n', b"id: %b\ndata: [DONE]\n\n"],
    ids=["content", "comment", "unread", "done"],
)  # fmt: skip
def test_an_event_is_text_in_every_part(event: bytes, wrong: bytes) -> None:
    with pytest.raises(Failure) as caught:
        read_event(event % wrong)
    assert (caught.value.kind, caught.value.billed) == (Kind.BROKEN, Billed.MAYBE)
    for right in (b"a", "é你👋".encode()):  # the positive control
        assert read_event(event % right).raw == event % right


def test_finish_reason_and_a_null_usage() -> None:
    event = event_of({**chunk({}, finish_reason="stop"), "usage": None})
    assert (event.finish_reason, event.usage, event.choices_empty) == ("stop", None, False)


def test_the_usage_chunk_of_each_engine() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 9, "total_tokens": 109}
    ours = event_of({"choices": [], "usage": usage, "yuzui": {"slot_ms": 12.6, "queue_ms": 3}})
    assert ours.choices_empty
    assert ours.usage == Usage(prompt_tokens=100, completion_tokens=9, slot_ms=13)
    vllm = {
        **usage,
        "prompt_tokens_details": {"cached_tokens": 64, "multimodal_tokens": {"image": 20}},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
    assert event_of({"choices": [], "usage": vllm}).usage == Usage(
        prompt_tokens=100,
        completion_tokens=9,
        cached_tokens=64,
        image_tokens=20,
        reasoning_tokens=4,
    )
    sglang = {**usage, "reasoning_tokens": 5, "prompt_tokens_details": {"image_tokens": 30}}
    assert event_of({"choices": [], "usage": sglang}).usage == Usage(
        prompt_tokens=100, completion_tokens=9, image_tokens=30, reasoning_tokens=5
    )


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": 2**63, "completion_tokens": 1},
        {"prompt_tokens": 10**30, "completion_tokens": 1},
        {"prompt_tokens": "7", "completion_tokens": 1},
        {"prompt_tokens": 1.5, "completion_tokens": 1},
        {"completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": None},
        "many",
        [],
        7,
    ],
)
def test_a_usage_that_makes_no_sense_counts_as_none(usage: Any) -> None:
    assert event_of({"choices": [], "usage": usage}).usage is None


def test_nan_in_a_usage() -> None:
    raw = b'data: {"choices":[],"usage":{"prompt_tokens":NaN,"completion_tokens":1}}\n\n'
    with pytest.raises(Failure) as caught:
        read_event(raw)
    assert caught.value.kind is Kind.BROKEN


def test_parts_of_a_usage_never_exceed_the_whole() -> None:
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 99, "image_tokens": -3},
        "completion_tokens_details": {"reasoning_tokens": 99},
    }
    found = event_of({"choices": [], "usage": usage}).usage
    assert found == Usage(
        prompt_tokens=10, completion_tokens=5, cached_tokens=10, reasoning_tokens=5
    )


def test_done_and_comments() -> None:
    assert read_event(b"data: [DONE]\n\n").done
    assert read_event(b": ping\n\n") == Event(raw=b": ping\n\n")


@pytest.mark.parametrize(
    "raw",
    [b"{", b"7", b"null", b"[]", b"{}", b'{"object":"chat.completion.chunk"}', b"\xff",
     b'{"choices":7}', b'{"choices":[7]}', b"[" * 100_000, b'{"x":' * 100_000],
)  # fmt: skip
def test_nonsense_is_broken_and_perhaps_billed(raw: bytes) -> None:
    with pytest.raises(Failure) as caught:
        read_event(encode(raw))
    assert (caught.value.kind, caught.value.billed) == (Kind.BROKEN, Billed.MAYBE)
    with pytest.raises(Failure) as caught:
        read_body(raw)
    assert caught.value.kind is Kind.BROKEN


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        ({"error": {"message": "boom", "code": "internal"}}, Kind.SERVER_ERROR, "internal"),
        ({"error": {"object": "error", "message": "m", "code": 400}}, Kind.BAD_REQUEST, None),
        ({"error": {"message": "too busy", "code": 503}}, Kind.BUSY, None),
        ({"error": "boom"}, Kind.SERVER_ERROR, None),
        ({"object": "error", "message": "x", "code": 500}, Kind.SERVER_ERROR, None),
        (
            {"error": {"message": "maximum context length is 5", "code": 400}},
            Kind.CONTEXT,
            None,
        ),
    ],
)
def test_an_error_inside_of_a_good_answer(error: Any, kind: Kind, code: str | None) -> None:
    for read in (lambda: event_of(error), lambda: read_body(json.dumps(error).encode())):
        with pytest.raises(Failure) as caught:
            read()
        assert (caught.value.kind, caught.value.code) == (kind, code)


def test_body() -> None:
    body = {
        "choices": [{"message": {"content": "hi"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
        "yuzui": {"slot_ms": 8},
    }
    usage, finish = read_body(json.dumps(body).encode())
    assert usage == Usage(prompt_tokens=3, completion_tokens=1, slot_ms=8)
    assert finish == "length"
    del body["usage"]
    assert read_body(json.dumps(body).encode()) == (None, "length")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["choices", "delta", "content", "usage", "prompt_tokens", "completion_tokens",
             "error", "code", "finish_reason", "prompt_tokens_details", "yuzui", "slot_ms"]
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.one_of(json_values.map(lambda v: json.dumps(v).encode()), st.binary(max_size=80)))
def test_read_or_failure_and_nothing_else(raw: bytes) -> None:
    for read in (read_event, lambda r: read_event(encode(r)), read_body, read_error):
        try:
            found = read(raw)
        except Failure:
            continue
        msgspec.to_builtins(found)


@pytest.mark.parametrize(
    ("model", "tier", "read"),
    [
        ("doubao-seed-2-1-lite-260915", "fast", ("doubao-seed-2-1-lite-260915", "fast")),
        ("/models/a b", "x" * 65, ("", "")),  # no plain words
        (7, ["fast"], ("", "")),
        (None, None, ("", "")),
    ],
)
def test_who_answered_and_how_comes_with_the_usage(
    model: object, tier: object, read: tuple[str, str]
) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    body = {"model": model, "service_tier": tier, "choices": [{"message": {}}], "usage": usage}
    whole, _ = read_body(json.dumps(body).encode())
    for found in (whole, event_of({**body, "choices": []}).usage):
        assert found is not None
        assert (found.served_model, found.service_tier) == read
