from __future__ import annotations

import json
from typing import Any

import pytest

from backends.base import Failure, Fault, Kind
from backends.chat import Message, Thinking
from backends.engines.sglang import Sglang, _structured
from backends.engines.yuzui import Plain
from tests.backends import conforming
from tests.backends.engines.kit import backend_of, call, chat, streamed, text_of, whole


async def test_its_stop_and_usage_have_the_names_that_everybody_reads() -> None:
    async with conforming.Sglang() as engine, backend_of(engine, Sglang()) as backend:
        answer, usage = await whole(backend, call())
        (choice,) = answer["choices"]
        assert choice["stop_reason"] == 151_336
        assert "matched_stop" not in choice
        assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}
        assert "reasoning_tokens" not in answer["usage"]
        chunks, streamed_usage = await streamed(backend, call(stream=True))
        assert [c["choices"][0].get("stop_reason") for c in chunks if c["choices"]][-1] == 151_336
        assert text_of(chunks, "reasoning_content") == "it is red"
        for found in (usage, streamed_usage):
            assert found is not None
            assert (found.cached_tokens, found.image_tokens, found.reasoning_tokens) == (64, 144, 2)


async def test_a_plain_client_would_see_its_own_words() -> None:
    """The positive control."""
    async with conforming.Sglang() as engine, backend_of(engine, Plain()) as backend:
        answer, _ = await whole(backend, call())
        assert "matched_stop" in answer["choices"][0]


def test_what_says_nothing_is_not_even_read() -> None:
    data = b'{"choices":[{"delta":{"content":"x"},"matched_stop":null}],"usage":null}'
    assert Sglang().even(data) is data
    spaced = b'{"choices":[{"delta":{},"matched_stop": null}],"usage":{"reasoning_tokens": 0}}'
    assert Sglang().even(spaced) is spaced
    word = b'{"choices":[{"delta":{},"matched_stop":"###"}]}'
    assert json.loads(Sglang().even(word))["choices"][0]["stop_reason"] == "###"


async def test_thinking_continuation_and_salt() -> None:
    begun = [Message(role="user", content="go"), Message(role="assistant", content="It is")]
    asked = chat(messages=begun, thinking=Thinking(type="disabled"))
    async with conforming.Sglang() as engine, backend_of(engine, Sglang()) as backend:
        answer, _ = await whole(backend, call(asked, cache_salt="s", priority=1))
        assert answer["choices"][0]["message"]["reasoning_content"] is None
        (sent,) = engine.asked
        assert (sent["continue_final_message"], sent["cache_salt"]) == (True, "s")
        assert not {"add_generation_prompt", "priority", "thinking"} & sent.keys()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, {}),
        ({"regex": "a+"}, {"regex": "a+"}),
        ({"choice": ["a.b", "c"]}, {"regex": r"a\.b|c"}),
        ({"json_object": True}, {"response_format": {"type": "json_object"}}),
        (
            {"json": {"type": "object"}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                }
            },
        ),
    ],
)
def test_structured_outputs_in_its_words(asked: Any, expected: dict[str, Any]) -> None:
    members = {"structured_outputs": asked} if asked else {}
    _structured(members)
    assert members == expected


async def test_its_errors() -> None:
    async with conforming.Sglang(queue_max=0) as engine, backend_of(engine, Sglang()) as backend:
        for asked, kind, fault in (
            (chat(), Kind.BUSY, Fault.UPSTREAM),
            (
                chat(messages=[Message(role="user", content="x" * 200_000)]),
                Kind.CONTEXT,
                Fault.CALLER,
            ),
        ):
            with pytest.raises(Failure) as failed:
                await backend.open(call(asked))
            assert (failed.value.kind, failed.value.fault) == (kind, fault)
