"""The chat template against the literal shapes of GLM-4.6V's turns."""

import pytest
from transformers import PreTrainedTokenizerFast

from backends.glm.nano.build import TEMPLATE
from backends.glm.nano.tokenizer import train_tokenizer

IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"说明": 1}}}


@pytest.fixture(scope="module")
def render():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(), chat_template=TEMPLATE.read_text()
    )

    def call(messages, **options):
        options.setdefault("add_generation_prompt", True)
        return tokenizer.apply_chat_template(messages, tokenize=False, **options)

    return call


def user(content):
    return {"role": "user", "content": content}


@pytest.mark.parametrize("part", [{"type": "image"}, {"type": "image_url", "image_url": {}}])
def test_picture_and_text_thinking(render, part):
    messages = [user([part, {"type": "text", "text": "What is this?"}])]
    assert render(messages, enable_thinking=True) == (
        f"[gMASK]<sop><|user|>\n{IMAGE}\nWhat is this?<|assistant|>\n"
    )


def test_text_not_thinking(render):
    messages = [{"role": "system", "content": "Be brief."}, user("Hi")]
    expected = (
        "[gMASK]<sop><|system|>\nBe brief.<|user|>\nHi/nothink<|assistant|>\n<think></think>\n"
    )
    assert render(messages, enable_thinking=False) == expected
    # The one deliberate difference from GLM-4.6V: not thinking is the default.
    assert render(messages) == expected


def test_text_before_the_picture_and_two_pictures(render):
    content = [{"type": "text", "text": "Compare."}, {"type": "image"}, {"type": "image"}]
    assert render([user(content)]) == (
        f"[gMASK]<sop><|user|>\nCompare.\n{IMAGE}\n{IMAGE}/nothink<|assistant|>\n<think></think>\n"
    )


def test_nothink_is_not_doubled(render):
    assert render([user("Hi/nothink")]).count("/nothink") == 1


def test_history_loses_its_thoughts(render):
    messages = [
        user("a"),
        {"role": "assistant", "content": "<think>old</think>\nb"},
        user("c"),
        {"role": "assistant", "content": "e", "reasoning_content": "d"},
    ]
    assert render(messages, enable_thinking=True, add_generation_prompt=False) == (
        "[gMASK]<sop><|user|>\na<|assistant|>\n<think></think>\nb"
        "<|user|>\nc<|assistant|>\n<think>d</think>\ne"
    )


def test_a_tool_call_and_its_result(render):
    call = {"name": "get_weather", "arguments": {"city": "Beijing", "days": 2}}
    messages = [
        user("Weather?"),
        {"role": "assistant", "content": None, "reasoning_content": "ask",
         "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": '{"t": 2}'},
        {"role": "tool", "content": [{"type": "text", "text": "dry"}]},
    ]  # fmt: skip
    rendered = render(messages, tools=[TOOL], enable_thinking=True)
    assert rendered.startswith("[gMASK]<sop><|system|>\n# Tools\n")
    assert '<tools>\n{"type": "function", "function": {"name": "get_weather"' in rendered
    assert "说明" in rendered
    assert rendered.endswith(
        "<|user|>\nWeather?<|assistant|>\n<think>ask</think>\n<tool_call>get_weather\n"
        "<arg_key>city</arg_key>\n<arg_value>Beijing</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
        '<|observation|>\n<tool_response>\n{"t": 2}\n</tool_response>'
        "\n<tool_response>\ndry\n</tool_response><|assistant|>\n"
    )
