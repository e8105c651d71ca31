from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backends.chat import ChatRequest, ImagePart, TextPart
from backends.limits import FORM_BYTES_MAX
from gateway.errors import GatewayError
from gateway.wire.base import Asked
from gateway.wire.chat import JSON_DEPTH_MAX, MESSAGES_MAX, ChatDialect
from policies.sensitivity import LabelRules, resolve
from policies.types import Sensitivity
from tests.policies.builders import principal

DIALECT = ChatDialect()
HI = [{"role": "user", "content": "hi"}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "glm-4.6v", "messages": HI, **fields}).encode()


def raw(members: str) -> bytes:
    """A body with members exactly as written."""
    return body()[:-1] + b"," + members.encode() + b"}"


def read(data: bytes) -> Asked:
    return DIALECT.read(data)


def refused(data: bytes) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        read(data)
    assert caught.value.status == 400
    return caught.value


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


# ------------------------------------------------------------------ good requests

GOOD: dict[str, dict[str, Any]] = {
    "plain": {},
    "a system text and a turn": {
        "messages": [
            {"role": "system", "content": "be brief"},
            *HI,
            {"role": "assistant", "content": "ok", "reasoning_content": "hm"},
            {"role": "developer", "content": "x", "name": "dev"},
        ]
    },
    "pictures": {
        "messages": [{"role": "user", "content": [PICTURE, {"type": "text", "text": "what?"}]}]
    },
    "a tool call and its result": {
        "messages": [
            *HI,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
        ],
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    },
    "every number at its bound": {
        "max_tokens": 65_536, "temperature": 2, "top_p": 0, "top_k": -1, "min_p": 1, "n": 8,
        "repetition_penalty": 0.01, "frequency_penalty": -2, "presence_penalty": 2.0,
        "seed": -(2**63), "top_logprobs": 20, "logprobs": True, "logit_bias": {"15": -100},
    },
    "stops": {"stop": ["a", "b", "c", "d"]},
    "one stop": {"stop": "\n"},
    "a schema": {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
    "thinking": {"thinking": {"type": "disabled"}, "reasoning_effort": "low"},
    "a tree of the allowed depth": {"tools": [{"x": json.loads(nested(JSON_DEPTH_MAX - 2))}]},
    "a pattern": {"response_format": {"type": "regex", "pattern": "a+"}},
    "a form, and none": {
        "response_format": {"type": "text"}, "structured_outputs": {"choice": ["a"]},
    },
}  # fmt: skip


@pytest.mark.parametrize("fields", GOOD.values(), ids=GOOD)
def test_what_was_read_is_what_is_sent_on(fields: dict[str, Any]) -> None:
    """Encoding again gives the caller's JSON, and reading that gives the same values."""
    asked = read(body(**fields))
    sent = msgspec.json.encode(asked.chat)
    assert _without_nulls(json.loads(sent)) == _without_nulls(json.loads(body(**fields)))
    assert read(sent).chat == asked.chat


def _without_nulls(value: Any) -> Any:
    """None is not sent, nor the type of a call, which has only one."""
    if isinstance(value, dict):
        gone = {"type"} if value.get("type") == "function" and "id" in value else set()
        return {k: _without_nulls(v) for k, v in value.items() if v is not None and k not in gone}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value


def test_nulls_of_the_sdks_mean_nothing_was_said() -> None:
    optional = [f.name for f in msgspec.structs.fields(ChatRequest) if f.default is None]
    assert len(optional) > 20
    asked = read(body(**dict.fromkeys([*optional, "metadata", "unknown"])))
    assert asked == read(body())


@pytest.mark.parametrize(
    ("name", "value"),
    [("chat_template", "{{ 1 }}"), ("prompt_embeds", "AAAA"), ("functions", [{"name": "f"}]),
     ("echo", True), ("min_tokens", 5), ("guided_json", {}), ("modalities", ["audio"])],
)  # fmt: skip
def test_what_would_change_the_answer_and_is_not_honoured_is_refused(
    name: str, value: object
) -> None:
    error = refused(body(**{name: value}))
    assert (error.code, error.param) == ("unsupported_parameter", name)
    assert name in error.message


def test_the_same_fields_switched_off_pass_and_are_not_sent_on() -> None:
    off = {"chat_template": None, "functions": None, "echo": False, "modalities": ["text"]}
    assert msgspec.json.encode(read(body(**off)).chat) == msgspec.json.encode(read(body()).chat)


FORM_BOUNDS: list[tuple[dict[str, Any], str]] = [
    ({"reasoning_effort": "banana"}, "reasoning_effort"),
    ({"response_format": "json"}, "response_format.type"),
    ({"response_format": {"type": "banana"}}, "response_format.type"),
    ({"response_format": {"type": []}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
    ({"response_format": {"type": "regex"}}, "response_format.pattern"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
    ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
    ({"structured_outputs": {"json": []}}, "structured_outputs.json"),
    (
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        "structured_outputs",
    ),
    ({"structured_outputs": {"ebnf": "x"}}, "structured_outputs"),
    (
        {"structured_outputs": {"json": json.loads(nested(JSON_DEPTH_MAX + 1))}},
        "structured_outputs",
    ),
    ({"structured_outputs": {"regex": "a" * FORM_BYTES_MAX}}, "structured_outputs"),
    ({"response_format": {"type": "json_schema", "x": "a" * FORM_BYTES_MAX}}, "response_format"),
    ({"chat_template_kwargs": {"anything": 1}}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"enable_thinking": "x"}}, "chat_template_kwargs.enable_thinking"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"stop_token_ids": [1] * 65}, "stop_token_ids"),
    ({"stop": ["x" * 1001]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
    ({"n": 10**9}, "n"),
]


@pytest.mark.parametrize(("fields", "param"), FORM_BOUNDS)
def test_what_engines_compile_and_count_is_bounded(fields: dict[str, Any], param: str) -> None:
    assert refused(body(**fields)).param == param


def test_half_a_surrogate_pair_is_named_for_what_it_is() -> None:
    error = refused(b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}')
    assert (error.code, "half of a character" in error.message) == ("invalid_json", True)
    whole = read(b'{"model":"m","messages":[{"role":"user","content":"\\ud83d\\ude00"}]}')
    assert whole.chat.messages[0].content == "\U0001f600"
    assert "half of a character" not in refused(b"{").message


def test_a_schema_may_be_given_as_text() -> None:
    asked = read(body(structured_outputs={"json": '{"type":"object"}'}))
    assert asked.chat.structured_outputs is not None
    assert asked.chat.structured_outputs.json == {"type": "object"}


def test_what_workers_understand_is_sent_on_as_it_came() -> None:
    fields: dict[str, Any] = {
        "stop_token_ids": [7], "ignore_eos": True, "logit_bias": {"5": -100.0}, "n": 3,
        "structured_outputs": {"choice": ["a", "b"]}, "logprobs": True, "top_logprobs": 2,
        "chat_template_kwargs": {"enable_thinking": False}, "continue_final_message": True,
        "add_generation_prompt": False, "min_p": 0.1, "tools": [TOOL], "tool_choice": "required",
        "parallel_tool_calls": False,
    }  # fmt: skip
    sent = json.loads(msgspec.json.encode(read(body(**fields)).chat))
    assert {name: sent[name] for name in fields} == fields


def test_unknown_fields_never_reach_an_engine() -> None:
    unknown = {
        "api_base": "http://169.254.169.254/", "extra_body": {"a": 1},
        "mm_processor_kwargs": {}, "messages_extra": [], "cache_salt": "x",
    }  # fmt: skip
    message = {**HI[0], "prefix": True, "cache_control": {"type": "ephemeral"}}
    asked = read(body(**unknown, messages=[message], metadata={"sensitivity": "public", "k": "v"}))
    assert json.loads(msgspec.json.encode(asked.chat)) == {"model": "glm-4.6v", "messages": HI}


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, False),
        ({"stream_options": None}, False),
        ({"stream_options": {}}, False),
        ({"stream_options": {"include_usage": False}}, False),
        ({"stream_options": {"include_usage": None}}, False),
        ({"stream_options": {"include_usage": True, "chunk_include_usage": True}}, True),
    ],
)
def test_whether_a_usage_chunk_is_wanted(fields: dict[str, Any], wanted: bool) -> None:
    assert read(body(stream=True, **fields)).wants_usage is wanted


def test_content_parts_are_typed() -> None:
    asked = read(
        body(messages=[{"role": "user", "content": [PICTURE, {"type": "text", "text": ""}]}])
    )
    parts = asked.chat.messages[0].content
    assert isinstance(parts, list)
    assert [type(part) for part in parts] == [ImagePart, TextPart]


def test_an_answer_is_passed_on_as_it_is() -> None:
    assert DIALECT.answer(b" {not even json") == b" {not even json"


# ------------------------------------------------------------------ labels

LABELS: dict[str, tuple[str, object]] = {
    "none": ('"stream":false', None),
    "no metadata": ('"metadata":null', None),
    "empty": ('"metadata":{}', None),
    "other keys": ('"metadata":{"trace":"sensitivity"}', None),
    "said": ('"metadata":{"sensitivity":"public"}', "public"),
    "null is nothing said": ('"metadata":{"sensitivity":null}', None),
    "a number": ('"metadata":{"sensitivity":0}', 0),
    "a list": ('"metadata":{"sensitivity":["public"]}', ["public"]),
    "escaped": ('"metadata":{"s\\u0065nsitivity":"sensitive"}', "sensitive"),
    "also in a schema": (
        '"metadata":{"sensitivity":"public"},"tools":[{"sensitivity":"sensitive"}]', "public"),
    "only in a schema": (
        '"metadata":{},"response_format":{"type":"text","sensitivity":"sensitive"}', None),
    "deeper in": ('"metadata":{"a":{"sensitivity":"public"}}', None),
    "repeated alike": ('"metadata":{"sensitivity":"public","sensitivity":"public"}', "public"),
    "repeated": (
        '"metadata":{"sensitivity":"sensitive","sensitivity":"public"}', ["sensitive", "public"]),
    "repeated with null": (
        '"metadata":{"sensitivity":"sensitive","sensitivity":null}', ["sensitive", None]),
    "metadata repeated": (
        '"metadata":{"sensitivity":"sensitive"},"metadata":{"sensitivity":"public"}',
        ["sensitive", "public"]),
    "metadata repeated without it": (
        '"metadata":{"sensitivity":"sensitive"},"metadata":{}', "sensitive"),
    "metadata repeated as null": (
        '"metadata":{"sensitivity":"sensitive"},"metadata":null', "sensitive"),
    "repeated, in what only msgspec can read": (
        '"metadata":{"sensitivity":"a","sensitivity":"b"},"zzz":' + "9" * 5_000, []),
}  # fmt: skip


@pytest.mark.parametrize(("members", "label"), LABELS.values(), ids=LABELS)
def test_the_label_in_the_body(members: str, label: object) -> None:
    assert read(raw(members)).label == label


@pytest.mark.parametrize("name", [name for name, (_, label) in LABELS.items() if label is not None])
def test_a_repeated_label_is_never_read_as_the_lesser_one(name: str) -> None:
    members, label = LABELS[name]
    counts = resolve(principal(), (), label, has_images=False, rules=LabelRules()).level
    if "sensitive" in members.split('"tools"')[0]:
        assert counts is Sensitivity.SENSITIVE


@pytest.mark.parametrize("metadata", ['"sensitive"', "[]", '["sensitivity"]', "1", "true"])
def test_metadata_that_is_no_object_is_refused_and_not_overlooked(metadata: str) -> None:
    assert refused(raw(f'"metadata":{metadata}')).param == "metadata"


# ------------------------------------------------------------------ bad requests

CALL = '"tool_calls":[{"id":"c","function":{"name":1}}]'
BAD: dict[str, tuple[bytes, str | None]] = {
    # not JSON
    "nothing": (b"", None),
    "cut off": (body()[:-1], None),
    "two": (body() + b"{}", None),
    "not UTF-8": (body().replace(b"hi", b"\xff"), None),
    "NaN": (raw('"temperature":NaN'), None),
    "Infinity": (raw('"temperature":-Infinity'), None),
    "lone surrogate": (body().replace(b"hi", b"\\ud800 x"), None),
    "surrogates swapped": (body().replace(b"hi", b"\\udc00\\ud800"), None),
    "control character": (body().replace(b"hi", b"\x00"), None),
    "deep, known field": (raw(f'"tools":{nested(100_000)}'), None),
    "deep, unknown field": (raw(f'"zzz":{nested(100_000)}'), None),
    "deep, opened only": (b'{"a":' * 100_000, None),
    # JSON, and not a request
    "null": (b"null", None),
    "array": (b"[]", None),
    "string": (b'"hi"', None),
    "no model": (json.dumps({"messages": HI}).encode(), "model"),
    "no messages": (b'{"model":"m"}', "messages"),
    # wrong types
    "model": (body(model=None), "model"),
    "messages": (body(messages="hi"), "messages"),
    "message": (body(messages=["hi"]), "messages[0]"),
    "role": (body(messages=[{"role": "robot", "content": "x"}]), "messages[0].role"),
    "role of another type": (body(messages=[{"role": 1}]), "messages[0].role"),
    "content": (body(messages=[*HI, {"role": "user", "content": 1}]), "messages[1].content"),
    "part": (body(messages=[{"role": "user", "content": ["x"]}]), "messages[0].content[0]"),
    "kind of part": (
        body(messages=[{"role": "user", "content": [{"type": "video_url"}]}]),
        "messages[0].content[0].type",
    ),
    "picture": (
        body(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
        "messages[0].content[0].image_url",
    ),
    "call": (
        body().replace(b'"content": "hi"', CALL.encode()),
        "messages[0].tool_calls[0].function.name",
    ),
    "stream": (body(stream="yes"), "stream"),
    "stream_options": (body(stream_options=[]), "stream_options"),
    "temperature as text": (body(temperature="1"), "temperature"),
    "max_tokens with a fraction": (body(max_tokens=1.5), "max_tokens"),
    "n as a truth": (body(n=True), "n"),
    "stop": (body(stop=[1]), "stop[0]"),
    "logit_bias": (body(logit_bias={"a": "b"}), "logit_bias[...]"),
    "tools": (body(tools={}), "tools"),
    "thinking": (body(thinking={"type": "perhaps"}), "thinking.type"),
    # out of range
    "no message": (body(messages=[]), "messages"),
    "too many messages": (body(messages=HI * (MESSAGES_MAX + 1)), "messages"),
    "max_tokens 0": (body(max_tokens=0), "max_tokens"),
    "max_tokens below": (body(max_tokens=-1), "max_tokens"),
    "max_tokens above": (body(max_tokens=65_537), "max_tokens"),
    "max_tokens 2^63": (body(max_tokens=2**63), "max_tokens"),
    "max_tokens of 5,000 digits": (raw(f'"max_tokens":{"9" * 5_000}'), "max_tokens"),
    "max_completion_tokens": (body(max_completion_tokens=0), "max_completion_tokens"),
    "both limits": (body(max_tokens=5, max_completion_tokens=5), "max_tokens"),
    "temperature above": (body(temperature=2.001), "temperature"),
    "temperature of any size": (raw('"temperature":1e999'), "temperature"),
    "temperature, a long integer": (raw(f'"temperature":{10**30}'), "temperature"),
    "top_p": (body(top_p=-0.1), "top_p"),
    "top_k": (body(top_k=-2), "top_k"),
    "min_p": (body(min_p=1.1), "min_p"),
    "repetition_penalty": (body(repetition_penalty=0), "repetition_penalty"),
    "frequency_penalty": (body(frequency_penalty=-2.1), "frequency_penalty"),
    "presence_penalty": (body(presence_penalty=3), "presence_penalty"),
    "seed": (body(seed=2**63), "seed"),
    "n 0": (body(n=0), "n"),
    "n of a billion": (body(n=10**9), "n"),
    "top_logprobs": (body(top_logprobs=21, logprobs=True), "top_logprobs"),
    "five stops": (body(stop=list("abcde")), "stop"),
    "no role": (body(messages=[{"content": "x"}]), "messages[0].role"),
    "129 tools": (body(tools=[TOOL] * 129), "tools"),
    "deep tool": (raw(f'"tools":{nested(JSON_DEPTH_MAX + 1)}'), "tools"),
    "deep choice": (raw('"tool_choice":' + '{"a":' * 99 + "1" + "}" * 99), "tool_choice"),
    "deep schema": (raw(f'"response_format":{nested(900)}'), "response_format"),
}


@pytest.mark.parametrize(("data", "param"), BAD.values(), ids=BAD)
def test_a_bad_request_names_its_field(data: bytes, param: str | None) -> None:
    error = refused(data)
    assert error.param == param
    if param is not None:
        assert param.split("[")[0].split(".")[0] in error.message
    inner = json.loads(error.body())["error"]
    assert set(inner) == {"message", "type", "param", "code"}
    assert (inner["type"], inner["param"]) == ("invalid_request_error", param)
    assert len(error.message) < 300, "an error does not repeat a megabyte"


# ------------------------------------------------------------------ anything

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
names = st.sampled_from([f.name for f in msgspec.structs.fields(ChatRequest)] + ["metadata", "x"])


@settings(max_examples=300)
@given(
    st.binary(max_size=60)
    | st.dictionaries(names, json_values, max_size=4).map(lambda d: body(**d))
    | st.tuples(st.sampled_from([body(), body(tools=[TOOL])]), st.integers(0, 60), st.binary()).map(
        lambda t: t[0][: t[1]] + t[2] + t[0][t[1] :]
    )
)
@example(b"\xef\xbb\xbf{}")
def test_anything_is_a_request_or_a_400(data: bytes) -> None:
    found = _outcome(data)
    if isinstance(found, Asked):
        again = read(msgspec.json.encode(found.chat))
        assert again.chat == found.chat, "what is sent on means the same"
    else:
        assert found == 400


def _outcome(data: bytes) -> Asked | int:
    try:
        return read(data)
    except GatewayError as error:
        return error.status
