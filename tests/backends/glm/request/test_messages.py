from __future__ import annotations

import json
from typing import Any

import pytest

from backends.glm.errors import WorkerError
from backends.glm.request.messages import ImagePart, TextPart, ToolCall
from backends.glm.request.protocol import ChatRequest, parse_chat

HELLO = {"role": "user", "content": "Hello"}


def parse(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [HELLO], **fields}
    return parse_chat(json.dumps(body).encode())


def refused(**fields: Any) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    return caught.value


def test_developer_is_system_to_glm() -> None:
    assert parse(messages=[{"role": "developer", "content": "x"}]).messages[0].role == "system"


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
    message = parse(messages=[{"role": "assistant", "tool_calls": [call]}, HELLO]).messages[0]
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


def test_a_thought_under_either_name() -> None:
    for name in ("reasoning_content", "reasoning"):
        turn = {"role": "assistant", "content": "Yes", name: "hm"}
        assert parse(messages=[HELLO, turn]).messages[1].reasoning == "hm"
