from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.glm.errors import WorkerError
from backends.glm.protocol import ChatRequest, ImagePart, TextPart, ToolCall, parse_chat

HELLO = {"role": "user", "content": "Hello"}


def parse(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [HELLO], **fields}
    return parse_chat(json.dumps(body).encode())


def refused(**fields: Any) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    return caught.value


def test_a_plain_request_leaves_everything_to_the_defaults() -> None:
    chat = parse()
    assert chat.messages[0].parts == (TextPart("Hello"),)
    assert (chat.stream, chat.include_usage, chat.max_tokens, chat.stop) == (False, False, None, ())
    assert chat.sampling.temperature is None
    assert chat.enable_thinking is None


def test_unknown_fields_are_ignored() -> None:
    assert parse(store=True, user="u", metadata={"a": 1}) == parse()


def test_developer_is_system_to_glm() -> None:
    assert parse(messages=[{"role": "developer", "content": "x"}]).messages[0].role == "system"


def test_both_spellings_of_the_output_limit() -> None:
    assert parse(max_tokens=5).max_tokens == 5
    assert parse(max_tokens=5, max_completion_tokens=7).max_tokens == 7


def test_image_parts_as_object_and_as_string() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:1", "detail": "low"}},
        {"type": "image_url", "image_url": "data:2"},
        {"type": "text", "text": "?"},
    ]
    message = parse(messages=[{"role": "user", "content": parts}]).messages[0]
    assert message.parts == (ImagePart("data:1"), ImagePart("data:2"), TextPart("?"))


def test_tool_call_arguments_are_decoded() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    message = parse(messages=[{"role": "assistant", "tool_calls": [call]}]).messages[0]
    assert message.tool_calls == (ToolCall(name="f", arguments={"a": [1]}),)
    assert message.parts == ()


@pytest.mark.parametrize("arguments", ["[1]", "{", "7", "[" * 100_000])
def test_tool_call_arguments_that_are_no_object(arguments: str) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    error = refused(messages=[{"role": "assistant", "tool_calls": [call]}])
    assert error.param == "messages[0].tool_calls[0].function.arguments"


def test_an_assistant_turn_with_an_unsplit_thought() -> None:
    content = "<think>\nhm\n</think>\nYes"
    message = parse(messages=[HELLO, {"role": "assistant", "content": content}]).messages[1]
    assert (message.reasoning, message.parts) == ("hm", (TextPart("Yes"),))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled"}}, True),
        ({"thinking": {"type": "auto"}}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"}, False),
        ({"thinking": {"type": "enabled"}, "reasoning_effort": "none"}, True),
        ({"chat_template_kwargs": {"other": 1}}, None),
    ],
)
def test_the_thinking_switch(fields: dict[str, Any], expected: bool | None) -> None:
    assert parse(**fields).enable_thinking is expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_this_worker_cannot_do_yet_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    error = refused(**fields)
    assert error.param == param
    assert "not supported yet" in error.message


def test_harmless_values_of_the_same_fields_pass() -> None:
    fields = {"n": 1, "logprobs": False, "response_format": {"type": "text"}, "tool_choice": "auto"}
    assert parse(**fields) == parse()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]},
         "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]},
         "messages[0].content[0].text"),
        ({"temperature": "hot"}, "temperature"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"chat_template_kwargs": {"enable_thinking": "yes"}},
         "chat_template_kwargs.enable_thinking"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_its_field(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


def test_tools_are_kept_unless_the_caller_says_none() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert parse(tools=[tool]).tools == (tool,)
    assert parse(tools=[tool], tool_choice="none").tools == ()


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["model", "messages", "role", "content", "stop", "seed", "tools"]), inner),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_bytes_are_a_request_or_a_400(raw: bytes) -> None:
    with contextlib.suppress(WorkerError):
        assert isinstance(parse_chat(raw), ChatRequest)
