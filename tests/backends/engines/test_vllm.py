from __future__ import annotations

import pytest

from backends.base import Failure, Fault, Kind
from backends.chat import FunctionCall, Message, Thinking, ToolCall
from backends.engines.vllm import Vllm
from backends.engines.yuzui import Plain
from policies.types import Usage
from tests.backends import conforming
from tests.backends.engines.kit import backend_of, call, chat, streamed, text_of, whole

USED = {"prompt_tokens": 200, "completion_tokens": 4, "cached_tokens": 64, "image_tokens": 144}


def used(usage: Usage | None) -> dict[str, int]:
    assert usage is not None
    return {name: getattr(usage, name) for name in USED}


async def test_its_reasoning_has_the_name_that_everybody_reads() -> None:
    async with conforming.Vllm() as engine, backend_of(engine, Vllm()) as backend:
        answer, usage = await whole(backend, call())
        message = answer["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("it is red", "a red circle")
        assert "reasoning" not in message
        assert used(usage) == USED
        chunks, usage = await streamed(backend, call(stream=True))
        assert text_of(chunks, "reasoning_content") == "it is red"
        assert text_of(chunks, "reasoning") == ""
        assert text_of(chunks, "content") == "a red circle"
        assert used(usage) == USED
        assert usage is not None
        assert usage.reasoning_tokens == 2


async def test_a_plain_client_would_not_see_it() -> None:
    """The positive control: without its dialect the reasoning keeps the engine's name."""
    async with conforming.Vllm() as engine, backend_of(engine, Plain()) as backend:
        chunks, _ = await streamed(backend, call(stream=True))
        assert text_of(chunks, "reasoning") == "it is red"


async def test_events_without_reasoning_are_passed_on_as_they_came() -> None:
    data = b'{"choices":[{"delta":{"content":"say \\"reasoning\\""}}]}'
    assert Vllm().even(data) is data
    nonsense = b'{"reasoning" '
    assert Vllm().even(nonsense) is nonsense
    assert Vllm().even(b'["reasoning"]') == b'["reasoning"]'


async def test_tools_are_offered_and_not_merely_shown() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    async with conforming.Vllm() as engine, backend_of(engine, Vllm()) as backend:
        await whole(backend, call(chat(tools=tools)))
        await whole(backend, call(chat(tools=tools, tool_choice="none")))
        await whole(backend, call())
        assert [body.get("tool_choice") for body in engine.asked] == ["auto", "none", None]


@pytest.mark.parametrize("kind", ["enabled", "disabled", "auto"])
async def test_thinking_in_arks_words(kind: str) -> None:
    async with conforming.Vllm() as engine, backend_of(engine, Vllm()) as backend:
        answer, _ = await whole(backend, call(chat(thinking=Thinking(type=kind))))  # type: ignore[arg-type]
        thought = answer["choices"][0]["message"]["reasoning_content"]
        assert bool(thought) == (kind != "disabled")
        assert "thinking" not in engine.asked[0]
        assert ("chat_template_kwargs" in engine.asked[0]) == (kind != "auto")


async def test_a_last_message_of_the_assistant_is_written_on() -> None:
    begun = [Message(role="user", content="go"), Message(role="assistant", content="It is")]
    async with conforming.Vllm() as engine, backend_of(engine, Vllm()) as backend:
        await whole(backend, call(chat(messages=begun)))
        sent = engine.asked[0]
        assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)
        calls = [ToolCall(id="1", function=FunctionCall(name="f"))]
        await whole(
            backend, call(chat(messages=[begun[0], Message(role="assistant", tool_calls=calls)]))
        )
        assert "continue_final_message" not in engine.asked[1]


async def test_earlier_reasoning_goes_back_under_its_name() -> None:
    earlier = Message(role="assistant", content="red", reasoning_content="it looked red")
    asked = chat(messages=[earlier, Message(role="user", content="sure?")])
    async with conforming.Vllm() as engine, backend_of(engine, Vllm()) as backend:
        await whole(backend, call(asked))
        assert engine.asked[0]["messages"][0]["reasoning"] == "it looked red"


async def test_its_cache_is_parted_and_its_scheduler_left_alone() -> None:
    async with conforming.Vllm() as engine, backend_of(engine, Vllm()) as backend:
        await whole(backend, call(cache_salt="s", priority=1))
        assert engine.asked[0]["cache_salt"] == "s"
        assert "priority" not in engine.asked[0]


async def test_its_errors() -> None:
    async with conforming.Vllm(queue_max=0) as engine, backend_of(engine, Vllm()) as backend:
        for asked, kind, fault, elsewhere in (
            (chat(), Kind.BUSY, Fault.UPSTREAM, True),
            (chat(model="other"), Kind.NOT_FOUND, Fault.UPSTREAM, True),
            (
                chat(messages=[Message(role="user", content="x" * 200_000)]),
                Kind.CONTEXT,
                Fault.CALLER,
                True,
            ),
        ):
            with pytest.raises(Failure) as failed:
                await backend.open(call(asked))
            found = failed.value
            assert (found.kind, found.fault, found.elsewhere) == (kind, fault, elsewhere)
