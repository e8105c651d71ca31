"""What callers get, on a real socket, through the OpenAI SDK: calls, tokens, forms, choices."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import openai
import pytest
import torch
from openai import AsyncOpenAI
from pydantic import BaseModel

from backends.glm.model.load import Checkpoint
from backends.glm.model.runner import Runner
from tests.backends.glm.conftest import Serve, Served
from tests.backends.glm.schema_check import conforms
from tests.backends.glm.scripted import Script

SLOTS = 2
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1,
                                                                "maximum": 9}},
            "required": ["city", "days"],
        },
    },
}  # fmt: skip
NOW = {"type": "function", "function": {"name": "now"}}


@asynccontextmanager
async def sdk(served: Served) -> AsyncIterator[Any]:
    client = AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    async with client:
        yield client.chat.completions


def real(checkpoint: Checkpoint) -> Runner:
    return Runner(
        checkpoint.model, checkpoint.device, rows=SLOTS, row_tokens=checkpoint.max_model_len
    )


def written(checkpoint: Checkpoint, text: str) -> list[int]:
    """The ids a model would write for this text, markers as control tokens."""
    ids: list[int] = checkpoint.tokenizer.encode(text)
    return ids


async def ask(chat: Any, **fields: Any) -> tuple[Any, list[Any]]:
    """The same request whole and streamed."""
    fields = {"model": "tiny", "messages": HELLO, **fields}
    whole = await chat.create(**fields)
    options = {"include_usage": True}
    stream = await chat.create(**fields, stream=True, stream_options=options)
    return whole, [chunk async for chunk in stream]


def joined(chunks: list[Any], index: int = 0) -> tuple[str, dict[int, dict[str, str]], Any]:
    """Content, tool calls by index, and the finish reason of one choice of a stream."""
    content, calls, finish = "", {}, None
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.index != index:
                continue
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or []:
                if call.id is not None:
                    assert call.index not in calls
                    calls[call.index] = {"name": call.function.name, "arguments": "", "id": call.id}
                calls[call.index]["arguments"] += call.function.arguments or ""
    return content, calls, finish


CALLS = (
    '</think>\nLet me see. \n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>北京 "2"'
    "</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n"
    "<tool_call>now\n</tool_call><|observation|>"
)


async def test_tool_calls_whole_and_streamed(checkpoint: Checkpoint, serve: Serve) -> None:
    script = Script(written(checkpoint, CALLS))
    async with serve(script) as served, sdk(served) as chat:
        whole, chunks = await ask(chat, tools=[WEATHER, NOW])
    (choice,) = whole.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    made = [(call.function.name, json.loads(call.function.arguments))
            for call in choice.message.tool_calls]  # fmt: skip
    assert made == [("get_weather", {"city": '北京 "2"', "days": 3}), ("now", {})]
    ids = [call.id for call in choice.message.tool_calls]
    assert len(set(ids)) == 2
    content, calls, finish = joined(chunks)
    assert (content, finish) == ("Let me see.", "tool_calls")
    assert [(c["name"], json.loads(c["arguments"])) for c in calls.values()] == made
    assert chunks[-1].usage == whole.usage
    assert whole.usage.completion_tokens == len(script.ids)
    pieces = [c for chunk in chunks for ch in chunk.choices for c in ch.delta.tool_calls or []]
    assert len(pieces) > 8  # the string came as it was written


async def test_the_calls_of_an_answer_can_be_sent_back(
    checkpoint: Checkpoint, serve: Serve
) -> None:
    async with serve(Script(written(checkpoint, CALLS))) as served, sdk(served) as chat:
        whole = await chat.create(model="tiny", messages=HELLO, tools=[WEATHER, NOW])
        message = whole.choices[0].message
        results = [{"role": "tool", "tool_call_id": call.id, "content": "ok"}
                   for call in message.tool_calls]  # fmt: skip
        again = await chat.create(
            model="tiny", messages=[*HELLO, message, *results], tools=[WEATHER, NOW]
        )
    assert again.usage.prompt_tokens > whole.usage.prompt_tokens


async def test_without_tools_markup_is_text(checkpoint: Checkpoint, serve: Serve) -> None:
    script = Script(written(checkpoint, "</think><tool_call>now\n</tool_call><|user|>"))
    async with serve(script) as served, sdk(served) as chat:
        for fields in ({}, {"tools": [NOW], "tool_choice": "none"}):
            whole, chunks = await ask(chat, **fields)
            message = whole.choices[0].message
            assert message.content == "<tool_call>now\n</tool_call>" == joined(chunks)[0]
            assert (message.tool_calls, whole.choices[0].finish_reason) == (None, "stop")


async def test_one_call_at_a_time(checkpoint: Checkpoint, serve: Serve) -> None:
    async with serve(Script(written(checkpoint, CALLS))) as served, sdk(served) as chat:
        whole, chunks = await ask(chat, tools=[WEATHER, NOW], parallel_tool_calls=False)
    assert [c.function.name for c in whole.choices[0].message.tool_calls] == ["get_weather"]
    assert whole.choices[0].finish_reason == "tool_calls" == joined(chunks)[2]


async def test_a_call_cut_by_the_limit_says_length(checkpoint: Checkpoint, serve: Serve) -> None:
    script = Script(written(checkpoint, CALLS))
    cut = script.ids.index(written(checkpoint, "</arg_value>")[0])
    async with serve(script) as served, sdk(served) as chat:
        whole, chunks = await ask(chat, tools=[WEATHER, NOW], max_tokens=cut)
    (choice,) = whole.choices
    assert choice.finish_reason == "length" == joined(chunks)[2]
    with pytest.raises(json.JSONDecodeError):
        json.loads(choice.message.tool_calls[0].function.arguments)


@pytest.mark.parametrize("temperature", [0, 1])
async def test_a_required_call_of_a_model_that_never_learned_it(
    checkpoint: Checkpoint, serve: Serve, temperature: float
) -> None:
    """The tiny model has random weights: whatever it says was forced by the grammar."""
    fields = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
    async with serve(real(checkpoint), slots=SLOTS) as served, sdk(served) as chat:
        whole, chunks = await ask(
            chat, **fields, temperature=temperature, seed=3, max_tokens=600,
            reasoning_effort="none", logit_bias={written(checkpoint, "</arg_value>")[0]: 100},
        )  # fmt: skip
    (call,) = whole.choices[0].message.tool_calls
    assert whole.choices[0].message.content is None
    arguments = json.loads(call.function.arguments)
    parameters = WEATHER["function"]["parameters"]  # type: ignore[index]
    assert conforms(arguments, parameters)
    assert joined(chunks)[1][0]["arguments"] == call.function.arguments


class Answer(BaseModel):
    colour: Literal["red", "green"]
    sure: bool
    boxes: tuple[Literal[1, 2], Literal[3]] | None  # numbers that end


async def test_a_parsed_answer_with_thought_and_without(
    checkpoint: Checkpoint, serve: Serve
) -> None:
    """`parse` of the SDK: from a class to a schema and from JSON to an object of the class."""
    close = written(checkpoint, "</think>")[0]
    async with serve(real(checkpoint), slots=SLOTS) as served, sdk(served) as chat:
        for effort in ("none", "high"):
            parsed = await chat.parse(
                model="tiny", messages=HELLO, response_format=Answer, reasoning_effort=effort,
                temperature=1, seed=4, max_tokens=600, logit_bias={str(close): 12},
            )  # fmt: skip
            (choice,) = parsed.choices
            assert choice.finish_reason == "stop", choice
            assert isinstance(choice.message.parsed, Answer)
            if effort == "none":
                assert "reasoning_content" not in choice.message.model_extra


async def test_the_sdks_stream_helper_reads_forms_and_calls(
    checkpoint: Checkpoint, serve: Serve
) -> None:
    async with serve(real(checkpoint), slots=SLOTS) as served, sdk(served) as chat:
        async with chat.stream(
            model="tiny", messages=HELLO, response_format=Answer, reasoning_effort="none",
            temperature=1, seed=4, max_tokens=600, n=2,
        ) as stream:  # fmt: skip
            final = await stream.get_final_completion()
    assert [type(choice.message.parsed) for choice in final.choices] == [Answer, Answer]


async def test_several_answers_share_a_prompt(checkpoint: Checkpoint, serve: Serve) -> None:
    fields: dict[str, Any] = {"temperature": 1, "seed": 5, "max_tokens": 12,
                              "reasoning_effort": "none"}  # fmt: skip
    async with serve(real(checkpoint), slots=SLOTS) as served, sdk(served) as chat:
        whole, chunks = await ask(chat, n=3, **fields)
        alone = await chat.create(model="tiny", messages=HELLO, **fields)
        with pytest.raises(openai.BadRequestError) as caught:
            await chat.create(model="tiny", messages=HELLO, n=9)
    assert caught.value.param == "n"
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3
    assert texts[0] == alone.choices[0].message.content  # the seed is that of the first
    assert texts == [joined(chunks, index)[0] for index in range(3)]
    assert whole.usage.prompt_tokens == alone.usage.prompt_tokens
    assert whole.usage.completion_tokens == 3 * 12 == chunks[-1].usage.completion_tokens
    finished = [c.index for chunk in chunks for c in chunk.choices if c.finish_reason]
    assert sorted(finished) == [0, 1, 2]
    roles = [c.index for chunk in chunks for c in chunk.choices if c.delta.role]
    assert roles == [0, 1, 2]


async def test_logprobs_are_those_of_generate(checkpoint: Checkpoint, serve: Serve) -> None:
    """Against log_softmax of the scores of transformers' own generate()."""
    async with serve(real(checkpoint), slots=SLOTS) as served, sdk(served) as chat:
        whole, chunks = await ask(
            chat, logprobs=True, top_logprobs=4, temperature=0, max_tokens=10,
            reasoning_effort="none",
        )  # fmt: skip
        bare = await chat.create(model="tiny", messages=HELLO, max_tokens=4)
    assert bare.choices[0].logprobs is None
    rendered = checkpoint.tokenizer.render(HELLO, tools=None, variables={"enable_thinking": False})
    ids = torch.tensor([written(checkpoint, rendered)])
    out = checkpoint.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False,
        eos_token_id=sorted(checkpoint.stop_ids), output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    expected = [scores[0].log_softmax(-1) for scores in out.scores]
    generated = out.sequences[0, ids.shape[1] :].tolist()
    content = whole.choices[0].logprobs.content
    shown = [i for i in generated if i not in checkpoint.stop_ids]
    named = {checkpoint.tokenizer.spelled(i): i for i in range(640)}
    at = 0
    for entry in content:
        while checkpoint.tokenizer.spelled(shown[at]) != bytes(entry.bytes):
            at += 1  # white space before the answer is not part of it
        assert entry.logprob == pytest.approx(float(expected[at][shown[at]]), abs=1e-4)
        best = expected[at].topk(4)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(
            best.values.tolist(), abs=1e-4
        )
        assert named[bytes(entry.top_logprobs[0].bytes)] == shown[at]  # greedy
        at += 1
    assert len(content) >= 5
    streamed = [entry for chunk in chunks for choice in chunk.choices if choice.logprobs
                for entry in choice.logprobs.content or []]  # fmt: skip
    assert streamed == content
    text = b"".join(bytes(entry.bytes) for entry in content).decode(errors="replace")
    assert text.lstrip() == whole.choices[0].message.content


async def test_logprobs_leave_the_thought_and_the_stop_string_out(
    checkpoint: Checkpoint, serve: Serve
) -> None:
    script = Script(written(checkpoint, "<think>hm, hm</think>\nYes. END no"))
    async with serve(script) as served, sdk(served) as chat:
        whole, chunks = await ask(chat, logprobs=True, stop=["END"])
    (choice,) = whole.choices
    assert choice.message.content == "Yes. "
    text = "".join(entry.token for entry in choice.logprobs.content)
    assert text.strip() == "Yes."
    streamed = [entry for chunk in chunks for c in chunk.choices if c.logprobs
                for entry in c.logprobs.content or []]  # fmt: skip
    assert streamed == choice.logprobs.content


async def test_stop_token_ids_and_ignore_eos(checkpoint: Checkpoint, serve: Serve) -> None:
    end = min(checkpoint.stop_ids)
    script = Script([*written(checkpoint, "</think>ab"), end, *written(checkpoint, "cd")])
    d = written(checkpoint, "d")[0]
    async with serve(script) as served, sdk(served) as chat:
        body: dict[str, Any] = {"model": "tiny", "messages": HELLO}
        usual = await chat.create(**body)
        extra = {"stop_token_ids": [script.ids[2]]}
        early = await chat.create(**body, extra_body=extra)
        late = await chat.create(**body, extra_body={"stop_token_ids": [d], "ignore_eos": True})
    texts = [reply.choices[0].message.content for reply in (usual, early, late)]
    assert texts == ["ab", "a", "abc"]
    assert {reply.choices[0].finish_reason for reply in (usual, early, late)} == {"stop"}


PREFIX = [*HELLO, {"role": "assistant", "content": "Hello, what is "}]


async def test_a_prefix_is_continued_and_its_space_is_kept(
    checkpoint: Checkpoint, serve: Serve
) -> None:
    script = Script(written(checkpoint, " in it?<|user|>"))
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    async with serve(script) as served, sdk(served) as chat:
        for extra in ({}, flags):
            reply = await chat.create(model="tiny", messages=PREFIX, extra_body=extra)
            assert reply.choices[0].message.content == " in it?"
        extra = {"continue_final_message": False}
        anew = await chat.create(model="tiny", messages=PREFIX, extra_body=extra)
    assert anew.choices[0].message.content == "in it?"
    assert anew.usage.prompt_tokens > reply.usage.prompt_tokens


async def test_a_begun_form_is_completed(checkpoint: Checkpoint, serve: Serve) -> None:
    begun = '{"colour": "green", "s'
    messages = [*HELLO, {"role": "assistant", "content": begun}]
    async with serve(real(checkpoint), slots=SLOTS) as served, sdk(served) as chat:
        reply = await chat.create(
            model="tiny", messages=messages, max_tokens=400, temperature=1, seed=1,
            response_format={"type": "json_schema", "json_schema": {
                "name": "a", "schema": Answer.model_json_schema()}},
        )  # fmt: skip
    parsed = Answer.model_validate_json(begun + reply.choices[0].message.content)
    assert parsed.colour == "green"


async def test_a_regex_and_a_choice(checkpoint: Checkpoint, serve: Serve) -> None:
    async with serve(real(checkpoint), slots=SLOTS) as served, sdk(served) as chat:
        for wanted, allowed in (
            ({"choice": ["yes", "no"]}, {"yes", "no"}),
            ({"regex": "[01]-x"}, {"0-x", "1-x"}),
        ):
            reply = await chat.create(
                model="tiny", messages=HELLO, reasoning_effort="none", temperature=1,
                extra_body={"structured_outputs": wanted},
            )  # fmt: skip
            assert reply.choices[0].message.content in allowed
        with pytest.raises(openai.BadRequestError) as caught:
            await chat.create(
                model="tiny", messages=HELLO, extra_body={"structured_outputs": {"regex": "(a"}}
            )
    assert (caught.value.param, caught.value.code) == (
        "structured_outputs.regex",
        "unsupported_schema",
    )
