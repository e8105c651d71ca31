"""One test for each row of the table of differences between OpenAI's dialect and Ark's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.ark.dialect import BODY_KEYS, encode, translate
from backends.ark.models import CATALOGUE, UNKNOWN, model_of
from backends.base import Billed, Failure, Fault, Kind
from tests.backends.ark.kit import (
    GLM_5_2,
    GLM_5_3,
    SEED_1_5,
    SEED_1_6,
    SEED_1_8,
    SEED_2_0,
    SEED_2_1,
    VISION_1_5,
    call,
    data_url,
)

AUTO = "doubao-seed-1-6-250615"
FIXED = "doubao-seed-2-0-pro-260215"
CODE = "doubao-seed-2-0-code-preview-260215"
DEEPSEEK = "deepseek-v4-pro-ga-260813"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def body(model: str = SEED_2_0, **fields: Any) -> dict[str, Any]:
    return translate(call(model, **fields), model_of(model))


def refused(model: str, **fields: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        body(model, **fields)
    failure = caught.value
    assert (failure.kind, failure.fault) == (Kind.BAD_REQUEST, Fault.CALLER)
    assert failure.elsewhere
    assert failure.billed is Billed.NO
    return failure


def pictured(detail: str | None) -> list[dict[str, Any]]:
    image = {"url": data_url(20, 20)} | ({"detail": detail} if detail else {})
    return [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]


def test_a_plain_request_says_only_what_it_must() -> None:
    assert body() == {
        "model": SEED_2_0,
        "messages": [{"role": "user", "content": "Hello there, emulator"}],
        "max_completion_tokens": 4096,
        "thinking": {"type": "disabled"},
        "top_p": 1.0,
    }


def test_a_caller_who_says_nothing_gets_no_thinking_where_it_can_be_switched_off() -> None:
    for model in (SEED_2_0, SEED_1_6):
        assert body(model)["thinking"] == {"type": "disabled"}
    for model in (GLM_5_3, SEED_1_5):
        assert "thinking" not in body(model)
    assert "thinking" not in body(SEED_2_0, reasoning_effort="low")


def test_developer_becomes_system() -> None:
    sent = body(messages=[{"role": "developer", "content": "Be kind."}])
    assert sent["messages"] == [{"role": "system", "content": "Be kind."}]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("model", [SEED_2_1, SEED_1_6, GLM_5_3, DEEPSEEK, "ep-1"])
def test_a_model_that_thinks_gets_one_limit_over_reasoning_and_answer(
    model: str, field: str
) -> None:
    sent = body(model, limit=99, **{field: 50})
    assert sent["max_completion_tokens"] == 99
    assert "max_tokens" not in sent


def test_a_model_that_does_not_think_gets_max_tokens() -> None:
    sent = body(SEED_1_5, limit=99, max_completion_tokens=50)
    assert sent["max_tokens"] == 99
    assert "max_completion_tokens" not in sent


@pytest.mark.parametrize(("limit", "sent"), [(0, 1), (65_536, 65_536), (10**9, 65_536)])
def test_the_limit_is_clamped(limit: int, sent: int) -> None:
    assert body(SEED_2_1, limit=limit)["max_completion_tokens"] == sent


def test_the_limit_is_clamped_to_what_the_model_can_write() -> None:
    assert body(SEED_1_6, limit=10**9)["max_completion_tokens"] == 32_000
    assert body(SEED_1_5, limit=10**9)["max_tokens"] == 12_000


@pytest.mark.parametrize(
    ("model", "asked", "sent"),
    [
        (SEED_2_1, "none", "minimal"),
        (SEED_2_1, "xhigh", "high"),
        (SEED_2_0, "max", "high"),
        (SEED_1_8, "low", "low"),
        (GLM_5_2, "none", "minimal"),
        (GLM_5_2, "low", "high"),
        (GLM_5_2, "xhigh", "max"),
        (GLM_5_3, "low", "low"),
        (GLM_5_3, "medium", "high"),
        (DEEPSEEK, "medium", "low"),
        (DEEPSEEK, "xhigh", "high"),
    ],
)
def test_reasoning_effort_is_mapped_for_each_model(model: str, asked: str, sent: str) -> None:
    assert body(model, reasoning_effort=asked)["reasoning_effort"] == sent


@pytest.mark.parametrize("asked", ["none", "minimal"])
def test_no_thinking_is_refused_by_a_model_that_always_thinks(asked: str) -> None:
    assert "reasoning_effort" in refused(GLM_5_3, reasoning_effort=asked).message


def test_an_unknown_effort_is_refused() -> None:
    refused(SEED_2_0, reasoning_effort="enormous")


def test_an_effort_is_only_a_wish_where_there_is_none() -> None:
    assert "reasoning_effort" not in body(SEED_1_5, reasoning_effort="high")
    assert body(SEED_1_6, reasoning_effort="none")["thinking"] == {"type": "disabled"}
    assert (
        body(SEED_1_6, reasoning_effort="high").keys() & {"thinking", "reasoning_effort"} == set()
    )


def test_thinking_passes() -> None:
    assert body(thinking={"type": "disabled"})["thinking"] == {"type": "disabled"}
    assert body(GLM_5_3, thinking={"type": "enabled"})["thinking"] == {"type": "enabled"}
    refused(GLM_5_3, thinking={"type": "disabled"})
    refused(SEED_1_5, thinking={"type": "enabled"})
    assert "thinking" not in body(SEED_1_5, thinking={"type": "disabled"})


def test_auto_thinking_goes_only_where_it_exists() -> None:
    assert body(AUTO, thinking={"type": "auto"})["thinking"] == {"type": "auto"}
    assert "thinking" not in body(SEED_2_0, thinking={"type": "auto"})


def test_thinking_disabled_and_an_effort_contradict_each_other() -> None:
    refused(SEED_2_0, thinking={"type": "disabled"}, reasoning_effort="high")
    body(SEED_2_0, thinking={"type": "disabled"}, reasoning_effort="minimal")


def test_top_p_is_said_so_that_the_cloud_samples_as_the_pool_does() -> None:
    assert body()["top_p"] == 1.0
    assert body(top_p=0.5)["top_p"] == 0.5
    assert "top_p" not in body(SEED_1_8, top_p=0.5)
    assert "top_p" not in body(FIXED)


def test_temperature() -> None:
    assert body(temperature=0.0)["temperature"] == 0.0
    assert "temperature" not in body(FIXED, temperature=0.5)


@pytest.mark.parametrize(
    "field",
    [
        {"seed": 1},
        {"top_k": 5},
        {"min_p": 0.1},
        {"repetition_penalty": 1.1},
        {"user": "u-1"},
        {"n": 1},
        {"logprobs": False},
        {"stop": []},
        {"logit_bias": {}},
        {"frequency_penalty": 1.0},
        {"presence_penalty": -1.0},
        {"tool_choice": "auto"},
        {"parallel_tool_calls": False},
        {"response_format": {"type": "text"}},
        {"service_tier": "auto"},
        {"service_tier": "flex"},
        {"service_tier": "priority"},
    ],
    ids=str,
)
def test_what_does_not_change_the_answer_is_stripped(field: dict[str, Any]) -> None:
    assert body(**field) == body()


@pytest.mark.parametrize(
    "field",
    [
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"logit_bias": {"7": 1}},
        {"stop": "END"},
        {"stop": ["a", "b"]},
        {"tools": [{"type": "web_search"}]},
        {"response_format": {"type": "grammar"}},
    ],
    ids=str,
)
def test_what_would_change_the_answer_is_refused(field: dict[str, Any]) -> None:
    assert next(iter(field)) in refused(SEED_2_0, **field).message


def test_a_model_that_does_not_think_takes_stop_and_logprobs() -> None:
    sent = body(SEED_1_5, stop="END", logprobs=True, top_logprobs=3, logit_bias={"7": 1})
    assert sent["stop"] == ["END"]
    assert (sent["logprobs"], sent["top_logprobs"], sent["logit_bias"]) == (True, 3, {"7": 1})
    refused(SEED_1_5, stop=list("abcde"))


def test_penalties_go_to_older_models_and_only_with_text() -> None:
    sent = body(SEED_1_6, frequency_penalty=0.5, presence_penalty=0.25)
    assert (sent["frequency_penalty"], sent["presence_penalty"]) == (0.5, 0.25)
    assert "frequency_penalty" not in body(SEED_1_8, frequency_penalty=0.5)
    sent = body(VISION_1_5, frequency_penalty=0.5, messages=pictured(None))
    assert "frequency_penalty" not in sent


def test_service_tier_default_passes() -> None:
    assert body(service_tier="default")["service_tier"] == "default"


@pytest.mark.parametrize(
    ("model", "detail", "sent"),
    [
        (SEED_2_0, None, None),
        (SEED_2_0, "auto", None),
        (SEED_2_0, "low", "low"),
        (SEED_2_0, "xhigh", "xhigh"),
        (SEED_1_6, "high", "high"),
    ],
)
def test_image_detail(model: str, detail: str | None, sent: str | None) -> None:
    image = body(model, messages=pictured(detail))["messages"][0]["content"][0]["image_url"]
    assert image.get("detail") == sent
    assert image["url"].startswith("data:image/png;base64,")


def test_a_detail_or_a_picture_that_the_model_does_not_know_is_refused() -> None:
    refused(SEED_1_6, messages=pictured("xhigh"))
    refused(SEED_2_0, messages=pictured("ultra"))
    refused(GLM_5_2, messages=pictured(None))
    refused("ep-1", messages=pictured(None))


def test_tools() -> None:
    named = {"type": "function", "function": {"name": "look"}}
    sent = body(tools=[TOOL], tool_choice=named, parallel_tool_calls=False)
    assert sent["tools"] == [TOOL]
    assert sent["tool_choice"] == named
    assert sent["parallel_tool_calls"] is False
    assert "parallel_tool_calls" not in body(tools=[TOOL], parallel_tool_calls=True)
    assert body(GLM_5_2, tools=[TOOL], tool_choice="auto")["tool_choice"] == "auto"
    refused(GLM_5_2, tools=[TOOL], tool_choice="required")
    refused(GLM_5_2, tools=[TOOL], parallel_tool_calls=False)


def test_response_format_goes_where_it_is_supported() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    assert body(response_format=schema)["response_format"] == schema
    refused(CODE, response_format={"type": "json_object"})


def test_a_stream_always_asks_for_its_usage() -> None:
    assert body(stream=True)["stream_options"] == {"include_usage": True}
    sent = body(stream=True, stream_options={"include_usage": False})
    assert (sent["stream"], sent["stream_options"]) == (True, {"include_usage": True})
    assert "stream" not in body(stream=False)


def test_a_turn_with_tools_keeps_what_the_loop_needs() -> None:
    used = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": " {}"}}
    sent = body(
        messages=[
            {"role": "user", "content": "Look", "name": "ada"},
            {"role": "assistant", "reasoning_content": "hm", "tool_calls": [used]},
            {"role": "tool", "tool_call_id": "call_1", "content": "a door"},
        ]
    )["messages"]
    assert sent == [
        {"role": "user", "content": "Look"},
        {"role": "assistant", "reasoning_content": "hm", "tool_calls": [used]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a door"},
    ]


_number = st.floats(0, 1)
_wishes = st.fixed_dictionaries(
    {},
    optional={
        "stream": st.booleans(),
        "max_tokens": st.integers(1, 10**6),
        "max_completion_tokens": st.integers(1, 10**6),
        "temperature": _number,
        "top_p": _number,
        "top_k": st.integers(0, 100),
        "min_p": _number,
        "repetition_penalty": _number,
        "frequency_penalty": _number,
        "presence_penalty": _number,
        "seed": st.integers(0, 2**31),
        "stop": st.one_of(st.text(max_size=3), st.lists(st.text(max_size=3), max_size=5)),
        "n": st.integers(1, 2),
        "logprobs": st.booleans(),
        "top_logprobs": st.integers(0, 20),
        "logit_bias": st.dictionaries(st.text(max_size=2), _number, max_size=1),
        "tools": st.lists(st.just(TOOL), max_size=2),
        "tool_choice": st.sampled_from(["none", "auto", "required"]),
        "parallel_tool_calls": st.booleans(),
        "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
        "reasoning_effort": st.sampled_from(["none", "low", "medium", "high", "max", "?"]),
        "thinking": st.sampled_from([{"type": "enabled"}, {"type": "disabled"}, {"type": "auto"}]),
        "service_tier": st.sampled_from(["auto", "default", "flex", "priority", "fast"]),
        "user": st.text(max_size=5),
    },
)


@given(model=st.sampled_from([*CATALOGUE, "ep-1"]), wishes=_wishes, limit=st.integers(-1, 10**6))
def test_only_documented_names_are_ever_sent(
    model: str, wishes: dict[str, Any], limit: int
) -> None:
    """Either a body with names of the whitelist alone, or a Failure that blames the caller."""
    try:
        raw = encode(call(model, limit=limit, **wishes), model_of(model))
    except Failure as failure:
        fault = failure.fault
        raw = None
    if raw is None:
        assert fault is Fault.CALLER
        return
    sent = msgspec.json.decode(raw)
    assert sent.keys() <= BODY_KEYS
    assert None not in sent.values()
    assert len(sent.keys() & {"max_tokens", "max_completion_tokens"}) == 1
    assert 1 <= sent.get("max_completion_tokens", 1) <= 65_536
    if wishes.get("stream"):
        assert sent["stream_options"] == {"include_usage": True}


def test_unknown_models_are_bounded_like_those_that_think() -> None:
    assert translate(call("ep-1"), UNKNOWN)["max_completion_tokens"] == 4096


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [({"enable_thinking": False}, "disabled"), ({"enable_thinking": True}, "enabled"),
     ({"enable_thinking": None}, "disabled")],
)  # fmt: skip
def test_the_template_switch_of_local_engines_is_the_thinking_switch(
    fields: dict[str, Any], thinking: str
) -> None:
    sent = body(SEED_2_0, chat_template_kwargs=fields)
    assert sent["thinking"] == {"type": thinking}
    assert "chat_template_kwargs" not in sent
    if fields["enable_thinking"] is not None:  # then it counts, whatever else is said
        both = body(SEED_2_0, chat_template_kwargs=fields, reasoning_effort="none")
        assert both["thinking"] == {"type": thinking}


def test_structured_outputs_become_response_format_where_they_can() -> None:
    schema = {"type": "object"}
    assert body(SEED_2_0, structured_outputs={"json": schema})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema},
    }
    assert body(SEED_2_0, structured_outputs={"json_object": True})["response_format"] == {
        "type": "json_object"
    }
    for form in ({"regex": "a"}, {"choice": ["a"]}):
        assert "structured_outputs" in refused(SEED_2_0, structured_outputs=form).message
    regex = {"type": "regex", "pattern": "a"}
    assert "response_format" in refused(SEED_2_0, response_format=regex).message


def test_a_last_message_of_the_assistant_is_continued_there_too() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    assert body(messages=messages) == body(messages=messages, **flags)
    for flag in ({"continue_final_message": False}, {"add_generation_prompt": True}):
        assert "continue_final_message" in refused(SEED_2_0, messages=messages, **flag).message
        assert "messages" in body(**flag)  # after a turn of the user it means nothing


@pytest.mark.parametrize("fields", [{"stop_token_ids": [1]}, {"ignore_eos": True}])
def test_what_has_no_word_at_ark_is_refused(fields: dict[str, Any]) -> None:
    assert next(iter(fields)) in refused(SEED_2_0, **fields).message
