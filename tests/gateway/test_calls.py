"""What callers expect, the whole way: OpenAI's SDK, the gateway, and a real worker with nano.

Nano has never learned to call a tool or to write JSON: what is right here was held to its form.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from gateway.ledger.rows import Outcome
from policies.types import Site
from tests.backends.glm.schema_check import conforms
from tests.gateway.rig import Rig, rig

ASK = {
    "model": "glm-4.6v",
    "messages": [{"role": "user", "content": "What can you see?"}],
    "temperature": 1,
    "seed": 3,
}
BOOK = {
    "type": "function",
    "function": {
        "name": "book",
        "description": "Book a table",
        "parameters": {
            "type": "object",
            "properties": {
                "guest": {"type": "string", "maxLength": 12},
                "seats": {"type": "integer", "minimum": 1, "maximum": 9},
                "where": {"enum": ["inside", "outside"]},
            },
            "required": ["guest", "seats", "where"],
        },
    },
}
PARAMETERS: dict[str, Any] = BOOK["function"]["parameters"]  # type: ignore[index]


class Seen(BaseModel):
    shape: Literal["circle", "square"]
    count: Literal[1, 2, 3]
    sure: bool


@asynccontextmanager
async def asked(books_url: str, worker_url: str, **more: Any) -> AsyncIterator[tuple[Rig, Any]]:
    async with rig(books_url, workers=[], settings={"workers": [worker_url]}, **more) as house:
        await house.ready_worker()
        client = openai.AsyncOpenAI(
            base_url=f"{house.url}/v1", api_key=house.token(), max_retries=0
        )
        async with client:
            yield house, client.chat.completions


async def streamed(chat: Any, **fields: Any) -> list[Any]:
    options = {"include_usage": True}
    stream = await chat.create(**{**ASK, **fields}, stream=True, stream_options=options)
    return [chunk async for chunk in stream]


async def test_an_answer_parsed_into_a_class(books_url: str, worker_url: str) -> None:
    async with asked(books_url, worker_url) as (house, chat):
        for effort in ("none", "high"):
            body = {**ASK, "max_tokens": 400, "reasoning_effort": effort}
            if effort == "high":  # nano's thoughts do not end by themselves: `</think>` is likely
                body["logit_bias"] = {"1525": 12}
            whole = await chat.parse(**body, response_format=Seen)
            assert whole.choices[0].finish_reason == "stop"
            assert isinstance(whole.choices[0].message.parsed, Seen)
            async with chat.stream(**body, response_format=Seen) as stream:
                final = await stream.get_final_completion()
            assert final.choices[0].message.parsed == whole.choices[0].message.parsed
        rows = await house.settled()
    assert {row.site for row in rows} == {Site.LOCAL}
    assert {row.outcome for row in rows} == {Outcome.OK}


async def test_a_tool_is_called_and_its_answer_taken(books_url: str, worker_url: str) -> None:
    named = {"type": "function", "function": {"name": "book"}}
    async with asked(books_url, worker_url) as (_, chat):
        for choice in ("required", named):
            fields = {"tools": [BOOK], "tool_choice": choice, "parallel_tool_calls": False,
                      "max_tokens": 200}  # fmt: skip
            whole = await chat.create(**ASK, **fields)
            (made,) = whole.choices[0].message.tool_calls
            assert made.function.name == "book"
            assert conforms(json.loads(made.function.arguments), PARAMETERS)
            assert whole.choices[0].finish_reason == "tool_calls"

            chunks = await streamed(chat, **fields)
            deltas = [c.choices[0].delta for c in chunks if c.choices]
            calls = [call for delta in deltas for call in delta.tool_calls or []]
            assert [call.function.name for call in calls if call.function.name] == ["book"]
            pieces = [call.function.arguments for call in calls]
            assert "".join(pieces) == made.function.arguments
            assert len([piece for piece in pieces if piece]) > 3
            assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "tool_calls"
            assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
        turn = [whole.choices[0].message,
                {"role": "tool", "tool_call_id": made.id, "content": "done"}]  # fmt: skip
        after = await chat.create(
            **{**ASK, "messages": [*ASK["messages"], *turn]}, tools=[BOOK], max_tokens=16
        )
        assert after.usage.prompt_tokens > whole.usage.prompt_tokens


async def test_several_choices_with_their_tokens(books_url: str, worker_url: str) -> None:
    fields: dict[str, Any] = {"n": 3, "logprobs": True, "top_logprobs": 2, "max_tokens": 12}
    async with asked(books_url, worker_url) as (house, chat):
        whole = await chat.create(**ASK, **fields)
        chunks = await streamed(chat, **fields)
        rows = await house.settled()
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    for choice in whole.choices:
        parts = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(p.delta.content or "" for p in parts) == choice.message.content
        tokens = [entry for p in parts if p.logprobs for entry in p.logprobs.content or []]
        named = [(entry.token, round(entry.logprob, 4)) for entry in tokens]
        wanted = [(entry.token, round(entry.logprob, 4)) for entry in choice.logprobs.content]
        assert named == wanted
        assert all(len(entry.top_logprobs) == 2 for entry in tokens)
        assert [p.finish_reason for p in parts if p.finish_reason] == [choice.finish_reason]
    told = whole.usage
    assert sum(len(c.logprobs.content) for c in whole.choices) <= told.completion_tokens <= 36
    assert chunks[-1].usage.completion_tokens == told.completion_tokens
    for row in rows:
        assert (row.prompt_tokens, row.completion_tokens) == (
            told.prompt_tokens,
            told.completion_tokens,
        )
        assert row.posted_nano <= row.held_nano


async def test_a_regex_a_choice_and_a_continued_answer(books_url: str, worker_url: str) -> None:
    async with asked(books_url, worker_url) as (_, chat):
        for wanted, allowed in (
            ({"regex": "[ab]-[0-2]"}, {f"{a}-{i}" for a in "ab" for i in range(3)}),
            ({"choice": ["红色", "绿色"]}, {"红色", "绿色"}),
        ):
            reply = await chat.create(**ASK, extra_body={"structured_outputs": wanted})
            assert reply.choices[0].message.content in allowed
        greedy = {**ASK, "temperature": 0}
        whole = await chat.create(**greedy, max_tokens=12)
        begun = await chat.create(**greedy, max_tokens=4)
        turn = {"role": "assistant", "content": begun.choices[0].message.content}
        rest = await chat.create(**{**greedy, "messages": [*ASK["messages"], turn]}, max_tokens=8)
    together = begun.choices[0].message.content + rest.choices[0].message.content
    assert together == whole.choices[0].message.content


async def test_refusals_name_the_field(books_url: str, worker_url: str) -> None:
    bad: dict[str, Any] = {"type": "json_schema", "json_schema": {
        "name": "a", "schema": {"type": "array", "contains": {}}}}  # fmt: skip
    async with asked(books_url, worker_url, cloud=True) as (house, chat):
        with pytest.raises(openai.BadRequestError) as caught:
            await chat.create(**{**ASK, "model": "local/glm-4.6v"}, response_format=bad)
        assert caught.value.status_code == 400
        assert "response_format.json_schema.schema" in str(caught.value)
        with pytest.raises(openai.BadRequestError) as caught:
            await chat.create(**ASK, extra_body={"guided_json": {}})
        assert (caught.value.param, caught.value.code) == ("guided_json", "unsupported_parameter")
        # What only the pool can do stays with the pool, and is not asked of the cloud at all.
        for fields in ({"n": 2}, {"extra_body": {"structured_outputs": {"regex": "a"}}}):
            with pytest.raises(openai.APIStatusError) as refused:
                await chat.create(**{**ASK, "model": "cloud/glm-4.6v"}, **fields)
            assert refused.value.status_code in (400, 422), refused.value
        assert await house.cloud_requests() == []
