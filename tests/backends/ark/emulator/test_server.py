"""The shape of requests and answers, as a bare client sees it."""

from __future__ import annotations

import io
import re
from typing import Any

import aiohttp
import msgspec
import pytest

from backends.ark.emulator.server import Emulator
from tests.backends.ark.conftest import Start
from tests.backends.ark.kit import (
    GLM_5_2,
    GLM_5_3,
    HEADERS,
    SEED_1_5,
    SEED_1_6,
    SEED_1_8,
    SEED_2_0,
    SEED_2_1,
    USER,
    admin,
    chunks_of,
    data_url,
    post,
)


def with_image(**image: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]


async def test_every_answer_is_marked_and_echoes_the_callers_id(emulator: Emulator) -> None:
    for body in ({}, {"stream": True}, {"messages": None}):
        _, headers, _ = await post(emulator.url, headers={"X-Client-Request-Id": "me"}, **body)
        assert headers["x-emulated"] == "yuzui-ark-emulator"
        assert headers["x-client-request-id"] == "me"
        assert "x-request-id" not in headers


async def test_nulls_are_absent(emulator: Emulator) -> None:
    nulls = dict.fromkeys(
        "frequency_penalty function_call logit_bias logprobs max_tokens presence_penalty stop "
        "stream stream_options temperature tools top_logprobs top_p user repetition_penalty n "
        "parallel_tool_calls service_tier tool_choice response_format thinking "
        "max_completion_tokens reasoning_effort".split()
    )
    assert (await post(emulator.url, **nulls))[0] == 200


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"model": None}, "MissingParameter.model"),
        ({"messages": None}, "MissingParameter.messages"),
        ({"messages": []}, "MissingParameter.messages"),
        ({"messages": "hello"}, "InvalidParameter"),
        ({"messages": [{"content": "x"}]}, "InvalidArgumentError"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "InvalidParameter"),
        ({"messages": [{"role": "user"}]}, "MissingParameter"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "InvalidParameter"),
        ({"max_tokens": 9, "max_completion_tokens": 9}, "InvalidParameter"),
        ({"max_completion_tokens": 65_537}, "InvalidParameter"),
        ({"max_tokens": 0}, "InvalidParameter"),
        ({"temperature": 2.5}, "InvalidParameter"),
        ({"top_p": "much"}, "InvalidParameter"),
        ({"n": 2}, "InvalidParameter.UnsupportedParameter"),
        ({"stop": "END"}, "InvalidParameter.UnsupportedParameter"),
        ({"logprobs": True}, "InvalidParameter.UnsupportedParameter"),
        ({"model": SEED_1_8, "frequency_penalty": 1}, "InvalidParameter.UnsupportedParameter"),
        ({"model": SEED_1_5, "stop": list("abcde")}, "InvalidParameter"),
        ({"seed": 1}, "InvalidParameter"),
        ({"service_tier": "flex"}, "InvalidParameter"),
        ({"thinking": {"type": "auto"}}, "InvalidParameter"),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "low"}, "InvalidParameter"),
        ({"model": GLM_5_3, "thinking": {"type": "disabled"}}, "InvalidParameter"),
        ({"model": GLM_5_3, "reasoning_effort": "none"}, "InvalidParameter"),
        ({"reasoning_effort": "enormous"}, "InvalidParameter"),
        ({"tools": [{"type": "web_search"}]}, "InvalidParameter"),
        ({"tool_choice": "required"}, "InvalidParameter"),
        ({"response_format": {"type": "json_object"}}, "InvalidParameter"),
        ({"messages": with_image(url="")}, "InvalidImageURL.EmptyURL"),
        (
            {"messages": with_image(url="data:image/png;base64,AA==")},
            "InvalidImageURL.InvalidFormat",
        ),
        (
            {"messages": with_image(url=data_url(20, 20), detail="ultra")},
            "InvalidArgumentError.InvalidImageDetail",
        ),
        (
            {
                "messages": with_image(
                    url=data_url(20, 20), image_pixel_limit={"min_pixels": 9, "max_pixels": 3}
                )
            },
            "InvalidArgumentError.InvalidPixelLimit",
        ),
        ({"messages": with_image(url="https://example.com/a.png")}, "InvalidParameter"),
        (
            {"model": GLM_5_2, "messages": with_image(url=data_url(20, 20))},
            "InvalidParameter.UnsupportedParameter",
        ),
        (
            {"model": SEED_1_5, "messages": [{"role": "user", "content": "word " * 33_000}]},
            "OutofContextError",
        ),
        (
            {
                "messages": [
                    *USER,
                    {"role": "assistant", "content": "x", "encrypted_content": "emulated.a.b"},
                ]
            },
            "InvalidParameter",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_what_is_not_valid_is_a_400(
    emulator: Emulator, body: dict[str, Any], code: str
) -> None:
    status, _, answer = await post(emulator.url, **body)
    assert (status, answer["error"]["code"]) == (400, code)
    assert answer["error"].keys() == {"code", "message", "param", "type"}
    assert re.search(r"Request id: 02\d{13}[0-9a-f]{32}$", answer["error"]["message"])
    assert emulator.books.charged.count == 0


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("doubao-seed-2-1-pro", 404, "InvalidEndpointOrModel.NotFound"),
        ("ep-nobody", 404, "InvalidEndpointOrModel.NotFound"),
        ("ep-closed", 400, "InvalidEndpoint.ClosedEndpoint"),
        (SEED_1_6, 404, "UnsupportedModel"),
        (SEED_1_5, 404, "ModelNotOpen"),
        ("ep-open", 200, None),
        ("my-own-1", 200, None),
    ],
)
async def test_models_and_endpoints(
    start: Start, model: str, status: int, code: str | None
) -> None:
    emulator = await start(
        endpoints={
            "ep-open": {"model": SEED_2_0},
            "ep-closed": {"model": SEED_2_0, "closed": True},
        },
        models={"my-own-1": "glm-5.2"},
        retired_models=[SEED_1_6],
        closed_models=[SEED_1_5],
    )
    found, _, body = await post(emulator.url, model=model)
    assert found == status
    if code is not None:
        assert body["error"]["code"] == code
    elif model == "ep-open":
        assert body["model"] == SEED_2_0  # the real name, never the endpoint


async def test_an_account_may_forbid_model_ids(start: Start) -> None:
    emulator = await start(model_ids=False, endpoints={"ep-1": {"model": SEED_2_0}})
    assert (await post(emulator.url))[2]["error"]["code"].endswith("ModelIDAccessDisabled")
    assert (await post(emulator.url, model="ep-1"))[0] == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic abc", "Bearer wrong"])
async def test_keys(start: Start, header: str) -> None:
    emulator = await start(keys=[{"key": "right"}])
    status, _, body = await post(emulator.url, headers={"Authorization": header})
    assert (status, body["error"]["code"]) == (401, "AuthenticationError")
    assert (await post(emulator.url, headers={"Authorization": "Bearer right"}))[0] == 200


async def test_other_paths_are_an_empty_404(emulator: Emulator) -> None:
    async with aiohttp.ClientSession(headers=HEADERS) as session:
        for method, path in [("POST", "/nothing"), ("GET", "/chat/completions")]:
            async with session.request(method, emulator.url + path) as answer:
                assert (answer.status, await answer.read()) == (404, b"")
        async with session.post(f"{emulator.url}/chat/completions", data=b"{") as answer:
            assert answer.status == 400
        async with session.post(f"{emulator.url}/chat/completions", data=b"[]") as answer:
            assert answer.status == 400
        async with session.get(f"{emulator.url}/models") as answer:
            listed = [row["id"] for row in (await answer.json())["data"]]
    assert GLM_5_3 in listed


async def test_a_body_that_is_too_large(emulator: Emulator) -> None:
    body = io.BytesIO(bytes(65 * 1024 * 1024))
    async with (
        aiohttp.ClientSession(headers=HEADERS) as session,
        session.post(f"{emulator.url}/chat/completions", data=body) as answer,
    ):
        assert answer.status == 413


async def test_the_shape_of_a_stream(emulator: Emulator) -> None:
    _, headers, raw = await post(emulator.url, stream=True, max_completion_tokens=100)
    assert headers["content-type"] == "text/event-stream"
    assert raw.endswith(b"data: [DONE]\n\n")
    chunks = chunks_of(raw)
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all(chunk["usage"] is None for chunk in chunks)  # nobody asked
    assert all(chunk["service_tier"] == "default" for chunk in chunks)
    assert "system_fingerprint" not in chunks[0]
    deltas = [chunk["choices"][0] for chunk in chunks]
    assert all(choice["delta"]["role"] == "assistant" for choice in deltas)
    assert all("content" in choice["delta"] for choice in deltas)
    assert ["finish_reason" in choice for choice in deltas] == [False] * 100 + [True]
    assert deltas[-1] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "finish_reason": "length",
    }


async def test_usage_in_streams(emulator: Emulator) -> None:
    ask = {"stream": True, "max_completion_tokens": 60}
    _, _, raw = await post(emulator.url, **ask, stream_options={"include_usage": True})
    last = chunks_of(raw)[-1]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 60
    options = {"chunk_include_usage": True}
    _, _, raw = await post(emulator.url, **ask, stream_options=options)
    sums = [chunk["usage"]["completion_tokens"] for chunk in chunks_of(raw)]
    assert sums == [*range(1, 61), 60]
    _, _, raw = await post(emulator.url, **ask, model=GLM_5_2)
    assert chunks_of(raw)[-1]["usage"]["completion_tokens"] == 60  # sent unasked


async def test_limits_cut_the_answer(emulator: Emulator) -> None:
    inject = {"X-Emulator-Inject": "reasoning_tokens=20;answer_tokens=30"}

    async def shape(**limit: int) -> tuple[int, int, str]:
        _, _, body = await post(emulator.url, headers=inject, **limit)
        usage = body["usage"]
        reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
        return usage["completion_tokens"], reasoning, body["choices"][0]["finish_reason"]

    assert await shape() == (50, 20, "stop")
    assert await shape(max_tokens=10) == (30, 20, "length")  # the answer alone is limited
    assert await shape(max_completion_tokens=25) == (25, 20, "length")
    assert await shape(max_completion_tokens=10) == (10, 10, "length")
    assert await shape(max_completion_tokens=50) == (50, 20, "stop")


async def test_a_summary_is_shorter_than_what_is_charged(emulator: Emulator) -> None:
    ask: dict[str, Any] = {"model": SEED_2_1, "reasoning_effort": "high"}
    _, _, body = await post(emulator.url, **ask)
    message = body["choices"][0]["message"]
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 96
    assert len(message["reasoning_content"]) < 200
    turn = {"role": "assistant", **message}
    again = [*USER, turn, *USER]
    assert (await post(emulator.url, model=SEED_2_1, messages=again))[0] == 200
    tampered = turn | {"encrypted_content": turn["encrypted_content"] + "0"}
    status, _, body = await post(emulator.url, model=SEED_2_1, messages=[*USER, tampered])
    assert status == 400
    assert "Invalid signature" in body["error"]["message"]


async def test_switching_thinking_off(emulator: Emulator) -> None:
    for off in ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}):
        _, _, body = await post(emulator.url, **off)
        assert "reasoning_content" not in body["choices"][0]["message"]
        assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize(
    ("model", "size", "image", "tokens"),
    [
        (SEED_1_6, (1280, 720), {}, 1176),
        (SEED_1_6, (1920, 1080), {}, 1312),
        (SEED_1_8, (1280, 720), {}, 522),
        (SEED_1_8, (1920, 1080), {}, 1176),
        (SEED_2_0, (1280, 960), {}, 1280),
        (SEED_2_0, (1280, 960), {"detail": "low"}, 697),
        (SEED_2_0, (1280, 960), {"image_pixel_limit": {"max_pixels": 176_400}}, 100),
    ],
)
async def test_pictures_are_charged_by_family_and_detail(
    emulator: Emulator, model: str, size: tuple[int, int], image: dict[str, Any], tokens: int
) -> None:
    messages = with_image(url=data_url(*size), **image)
    _, _, body = await post(emulator.url, model=model, messages=messages)
    assert body["usage"]["prompt_tokens_details"]["image_tokens"] == tokens
    assert body["usage"]["prompt_tokens"] == tokens + 4
    assert f"{size[0]}x{size[1]}" in body["choices"][0]["message"]["content"]


async def test_repeated_prefixes_are_cached_where_models_cache(emulator: Emulator) -> None:
    long = [{"role": "system", "content": "rules and more rules " * 400}, *USER]

    async def cached(model: str) -> int:
        _, _, body = await post(emulator.url, model=model, messages=long)
        return int(body["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [await cached(SEED_2_0) for _ in range(2)] == [0, 1536]
    assert [await cached(SEED_2_1) for _ in range(2)] == [0, 0]  # turbo: from 2048 on
    assert [await cached(SEED_1_8) for _ in range(2)] == [0, 0]  # does not cache


async def test_the_same_request_has_the_same_answer(start: Start) -> None:
    answers = []
    for _ in range(2):
        emulator = await start(seed=5)
        _, _, body = await post(emulator.url)
        answers.append((body["choices"], body["usage"]))
    assert answers[0] == answers[1]


async def test_structured_answers(emulator: Emulator) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "ages": {"type": "array", "items": {"type": "integer"}},
        },
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    _, _, body = await post(emulator.url, response_format=wanted)
    text = body["choices"][0]["message"]["content"]
    assert msgspec.json.decode(text) == {"name": "emulated", "ages": [1]}
    messages = [{"role": "user", "content": "Answer in JSON"}]
    _, _, body = await post(
        emulator.url, messages=messages, response_format={"type": "json_object"}
    )
    assert msgspec.json.decode(body["choices"][0]["message"]["content"])["emulated"] is True


async def test_the_books_have_no_texts(emulator: Emulator) -> None:
    secret = "my password is swordfish"
    await post(emulator.url, messages=[{"role": "user", "content": secret}])
    await post(emulator.url, model=secret)
    for path in ("requests", "usage", "stats", "faults"):
        assert "swordfish" not in str(await admin(emulator.url, path))
    stats = await admin(emulator.url, "stats")
    assert (stats["received"], stats["charged"], stats["running"]) == (2, 1, 0)
    assert stats["by_status"] == {"200": 1, "404": 1}
    page = await admin(emulator.url, "requests?from=1&limit=5")
    assert (page["total"], page["next"], len(page["rows"])) == (2, 2, 1)
    await admin(emulator.url, "reset", "POST")
    assert (await admin(emulator.url, "stats"))["received"] == 0


async def test_the_request_id_may_stand_in_a_header(start: Start) -> None:
    emulator = await start(send_request_id=True)
    _, headers, body = await post(emulator.url)
    assert headers["x-request-id"] == body["id"]


async def test_remote_pictures_have_an_assumed_size(start: Start) -> None:
    emulator = await start(remote_image_px=[640, 480])
    messages = with_image(url="https://example.com/a.png", detail="low")
    _, _, body = await post(emulator.url, messages=messages)
    assert body["usage"]["prompt_tokens_details"]["image_tokens"] == 174
