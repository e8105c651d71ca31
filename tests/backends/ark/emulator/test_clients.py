"""The emulator before the vendor's own clients and OpenAI's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from volcenginesdkarkruntime import Ark, AsyncArk
from volcenginesdkarkruntime import _exceptions as ark_errors

from backends.ark.emulator.server import Emulator
from tests.backends.ark.kit import KEY, SEED_2_0, SEED_2_1, USER, admin, data_url
from tests.backends.servers import until

PICTURED: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": data_url(640, 480), "detail": "low"}},
            {"type": "text", "text": "这是什么"},
        ],
    }
]


@pytest.fixture
async def client(emulator: Emulator) -> AsyncIterator[AsyncArk]:
    one = AsyncArk(base_url=emulator.url, api_key=KEY)
    yield one
    await one.close()


async def inject(emulator: Emulator, count: int = 1, **fault: Any) -> None:
    await admin(emulator.url, "faults", "POST", {"fault": fault, "next": count})


async def test_async_ark_plain(client: AsyncArk, emulator: Emulator) -> None:
    answer = await client.chat.completions.create(
        model=SEED_2_1,
        messages=USER,
        extra_headers={"X-Client-Request-Id": "mine-1", "X-Emulator-Inject": "reasoning_tokens=8"},
    )
    choice = answer.choices[0]
    assert "emulated answer" in choice.message.content
    assert choice.message.reasoning_content
    assert (choice.finish_reason, answer.model) == ("stop", SEED_2_1)
    assert answer.service_tier == "default"
    assert answer.id.startswith("02")
    assert answer._request_id == "mine-1"
    usage = answer.usage
    assert usage.completion_tokens_details.reasoning_tokens == 8
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert emulator.books.received.rows[0].client_request_id == "mine-1"


async def test_ark_plain_and_stream(emulator: Emulator) -> None:
    def speak() -> tuple[str, list[Any]]:
        with Ark(base_url=emulator.url, api_key=KEY) as client:
            ask = {"model": SEED_2_0, "messages": PICTURED, "thinking": {"type": "disabled"}}
            plain = client.chat.completions.create(**ask)
            stream = client.chat.completions.create(**ask, stream=True)
            return plain.choices[0].message.content, list(stream)

    text, chunks = await asyncio.to_thread(speak)
    assert "640x480" in text
    assert "模拟回答" in text
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == text
    assert all(chunk.choices[0].delta.role == "assistant" for chunk in chunks)
    assert emulator.books.charged.rows[0].image_tokens == 174
    assert emulator.books.received.rows[0].images == 1


async def test_async_ark_stream_in_its_order(client: AsyncArk) -> None:
    stream = await client.chat.completions.create(
        model=SEED_2_1, messages=USER, stream=True, stream_options={"include_usage": True}
    )
    kinds = []
    async for chunk in stream:
        if not chunk.choices:
            kinds.append("usage")
            assert chunk.usage.completion_tokens > 96
            continue
        delta = chunk.choices[0].delta
        if delta.reasoning_content:
            kinds.append("reasoning")
        elif getattr(delta, "encrypted_content", None):
            kinds.append("sealed")
        else:
            kinds.append(chunk.choices[0].finish_reason or "text")
        assert chunk.usage is None
    order = list(dict.fromkeys(kinds))
    assert order == ["reasoning", "sealed", "text", "stop", "usage"]
    assert kinds.count("sealed") == 1


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("InvalidParameter", ark_errors.ArkBadRequestError),
        ("AuthenticationError", ark_errors.ArkAuthenticationError),
        ("AccountOverdueError", ark_errors.ArkPermissionDeniedError),
        ("ModelNotOpen", ark_errors.ArkNotFoundError),
        ("ServerOverloaded", ark_errors.ArkRateLimitError),
        ("InternalServiceError", ark_errors.ArkInternalServerError),
    ],
)
async def test_errors_become_the_vendors_exceptions(
    client: AsyncArk, emulator: Emulator, code: str, error: type[ark_errors.ArkAPIStatusError]
) -> None:
    await inject(emulator, code=code, should_retry=False)
    with pytest.raises(error) as caught:
        await client.chat.completions.create(model=SEED_2_0, messages=USER)
    assert caught.value.code == code
    assert "Request id: 02" in caught.value.message
    assert emulator.books.received.count == 1


async def test_the_client_repeats_what_may_be_repeated(
    client: AsyncArk, emulator: Emulator
) -> None:
    await inject(emulator, code="InternalServiceError")
    began_s = time.monotonic()
    await client.chat.completions.create(model=SEED_2_0, messages=USER)
    assert time.monotonic() - began_s > 0.3
    assert [row.status for row in emulator.books.received.rows] == [500, 200]
    ids = {row.client_request_id for row in emulator.books.received.rows}
    assert len(ids) == 2  # each attempt has its own


async def test_retry_after_is_sent_and_x_should_retry_overrules(
    client: AsyncArk, emulator: Emulator
) -> None:
    await inject(emulator, code="InvalidParameter", should_retry=True)
    await client.chat.completions.create(model=SEED_2_0, messages=USER)
    assert [row.status for row in emulator.books.received.rows] == [400, 200]
    await inject(emulator, code="QuotaExceeded", should_retry=False, retry_after_s=3)
    with pytest.raises(ark_errors.ArkRateLimitError) as caught:
        await client.chat.completions.create(model=SEED_2_0, messages=USER)
    assert caught.value.response.headers["retry-after"] == "3"
    assert caught.value.response.headers["x-emulated"] == "yuzui-ark-emulator"


async def _drain(client: AsyncArk) -> int:
    stream = await client.chat.completions.create(model=SEED_2_0, messages=USER, stream=True)
    return len([chunk async for chunk in stream])


async def test_stream_faults_as_the_vendors_client_sees_them(
    client: AsyncArk, emulator: Emulator
) -> None:
    await inject(emulator, cut_after=3)
    with pytest.raises(httpx.RemoteProtocolError):
        await _drain(client)
    await inject(emulator, error_after=3)
    with pytest.raises(ark_errors.ArkAPIError) as caught:
        await _drain(client)
    assert caught.value.code == "InternalServiceError"
    await inject(emulator, no_done=True, no_finish=True)
    assert await _drain(client) > 3  # taken for a success: the trap that our backend avoids


async def test_leaving_a_stream_stops_the_server(client: AsyncArk, emulator: Emulator) -> None:
    await inject(emulator, token_ms=10, answer_tokens=1000, reasoning_tokens=0)
    stream = await client.chat.completions.create(model=SEED_2_0, messages=USER, stream=True)
    async for _ in stream:
        break
    await stream.close()
    await until(lambda: emulator.books.running == 0)
    row = emulator.books.charged.rows[0]
    assert row.state == "client_left"
    assert 1 <= row.completion_tokens < 1000  # it was in the middle
    assert row.prompt_tokens > 0


async def test_tools_with_the_vendors_client(client: AsyncArk) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}
    ask: dict[str, Any] = {
        "model": SEED_2_0,
        "messages": USER,
        "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    }
    answer = await client.chat.completions.create(**ask)
    used = answer.choices[0].message.tool_calls[0]
    assert (used.function.name, used.function.arguments) == ("weather", '{"city":"emulated"}')
    assert answer.choices[0].finish_reason == "tool_calls"
    assert used.id.startswith("call_")
    stream = await client.chat.completions.create(**ask, stream=True)
    pieces = [chunk.choices[0].delta.tool_calls async for chunk in stream]
    calls = [piece[0] for piece in pieces if piece]
    assert calls[0].function.name == "weather"
    assert "".join(call.function.arguments for call in calls) == '{"city":"emulated"}'


async def test_openai_sdk(emulator: Emulator) -> None:
    async with openai.AsyncOpenAI(base_url=emulator.url, api_key=KEY) as client:
        answer = await client.chat.completions.create(
            model=SEED_2_0, messages=PICTURED, reasoning_effort="minimal"
        )
        assert "640x480" in answer.choices[0].message.content
        stream = await client.chat.completions.create(
            model=SEED_2_0,
            messages=PICTURED,
            reasoning_effort="minimal",
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content for chunk in chunks if chunk.choices)
        assert text == answer.choices[0].message.content
        assert chunks[-1].usage == answer.usage
        await inject(emulator, code="ServerOverloaded", should_retry=False)
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(model=SEED_2_0, messages=USER)
