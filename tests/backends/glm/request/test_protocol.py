from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.glm.errors import WorkerError
from backends.glm.request.messages import TextPart
from backends.glm.request.protocol import ChatRequest, parse_chat
from backends.glm.types import SamplingOverrides
from backends.limits import LOGIT_BIAS_MAX, STOP_CHARS_MAX, STOP_IDS_MAX

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


def test_both_spellings_of_the_output_limit() -> None:
    assert parse(max_tokens=5).max_tokens == 5
    assert parse(max_completion_tokens=7).max_tokens == 7


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
        ({"reasoning_effort": "minimal"}, False),
        ({"reasoning_effort": "xhigh"}, True),
        ({"chat_template_kwargs": {}}, None),
    ],
)
def test_the_thinking_switch(fields: dict[str, Any], expected: bool | None) -> None:
    assert parse(**fields).enable_thinking is expected


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
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"chat_template_kwargs": {"other": 1}}, "chat_template_kwargs.other"),
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"structured_outputs": {"ebnf": "x"}}, "structured_outputs"),
        ({"min_p": 1.1}, "min_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"7": 101}}, "logit_bias.7"),
        ({"logit_bias": {str(i): 1 for i in range(LOGIT_BIAS_MAX + 1)}}, "logit_bias"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"stop": "x" * (STOP_CHARS_MAX + 1)}, "stop"),
        ({"stop": ["a", ""]}, "stop[1]"),
        ({"stop_token_ids": [5, -1]}, "stop_token_ids[1]"),
        ({"stop_token_ids": [1] * (STOP_IDS_MAX + 1)}, "stop_token_ids"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"chat_template_kwargs": {"enable_thinking": "yes"}},
         "chat_template_kwargs.enable_thinking"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_its_field(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


def test_sampling_as_the_caller_spelled_it() -> None:
    chat = parse(
        temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, repetition_penalty=1.1, seed=7,
        frequency_penalty=0.25, presence_penalty=-0.5, logit_bias={"5": -100, "6": 1.5},
        logprobs=True, top_logprobs=4,
    )  # fmt: skip
    assert chat.sampling == SamplingOverrides(
        temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, repetition_penalty=1.1, seed=7,
        frequency_penalty=0.25, presence_penalty=-0.5, logit_bias=((5, -100.0), (6, 1.5)),
        logprobs=4,
    )  # fmt: skip
    assert parse(logprobs=True).sampling.logprobs == 0
    assert parse(logprobs=False).sampling.logprobs is None


def test_stops_and_choices() -> None:
    chat = parse(stop_token_ids=[3, 4], ignore_eos=True, n=3, stop=["a"])
    assert (chat.stop_ids, chat.ignore_eos, chat.n, chat.stop) == ((3, 4), True, 3, ("a",))
    assert (parse().n, parse(n=1)) == (1, parse())


@pytest.mark.parametrize(
    ("name", "value"),
    [("functions", [{"name": "f"}]), ("min_tokens", 3), ("guided_json", {}), ("echo", True),
     ("chat_template", "{{ x }}"), ("prompt_logprobs", 1), ("modalities", ["text", "audio"])],
)  # fmt: skip
def test_what_would_change_the_answer_and_is_not_done_is_refused(name: str, value: Any) -> None:
    error = refused(**{name: value})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert f"`{name}`" in error.message
    assert parse(**{name: None}) == parse()


PREFIX = [HELLO, {"role": "assistant", "content": "Well, "}]


@pytest.mark.parametrize(
    ("fields", "continues"),
    [
        ({}, True),
        ({"continue_final_message": True, "add_generation_prompt": False}, True),
        ({"continue_final_message": True}, True),
        ({"add_generation_prompt": False}, True),
        ({"add_generation_prompt": True}, False),
        ({"continue_final_message": False}, False),
    ],
)
def test_a_last_message_of_the_assistant_is_continued(
    fields: dict[str, Any], continues: bool
) -> None:
    assert parse(messages=PREFIX, **fields).continues is continues
    assert parse(**{k: v for k, v in fields.items() if v is (k != "continue_final_message")})


def test_what_cannot_be_continued() -> None:
    both = {"continue_final_message": True, "add_generation_prompt": True}
    assert refused(messages=PREFIX, **both).param == "continue_final_message"
    call = {"function": {"name": "f", "arguments": "{}"}}
    calling = [HELLO, {"role": "assistant", "tool_calls": [call]}]
    assert refused(messages=calling).param == "messages[1].tool_calls"
    assert not parse(messages=calling, add_generation_prompt=True).continues


@given(st.binary(max_size=60) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["model", "messages", "role", "content", "stop", "seed", "tools"]), inner),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_bytes_are_a_request_or_a_400(raw: bytes) -> None:
    with contextlib.suppress(WorkerError):
        assert isinstance(parse_chat(raw), ChatRequest)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": "m", "messages": [{"content": "a"}]}, "messages[0].role"),
        ({"model": "m", "messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ([], None),
    ],
)
def test_a_field_that_is_missing_is_named(body: Any, param: str | None) -> None:
    with pytest.raises(WorkerError) as caught:
        parse_chat(json.dumps(body).encode())
    assert caught.value.param == param


def test_what_is_wrong_with_a_stop_is_said() -> None:
    assert "at most 4 strings, not 5" in refused(stop=list("abcde")).message
    assert "this one has 0" in refused(stop=["a", ""]).message
    assert "below 0" in refused(stop_token_ids=[-1]).message


def test_half_a_character_is_not_called_broken_json() -> None:
    with pytest.raises(WorkerError) as caught:
        parse_chat(b'{"model": "m", "messages": [{"role": "user", "content": "a \\ud83d"}]}')
    assert caught.value.code == "invalid_text"
    assert "half of a character" in caught.value.message
    whole = b'{"model": "m", "messages": [{"role": "user", "content": "a \\ud83d\\ude42"}]}'
    assert parse_chat(whole).messages[0].parts == (TextPart("a 🙂"),)
    with pytest.raises(WorkerError) as caught:
        parse_chat(whole[:-3])
    assert "not valid JSON" in caught.value.message
