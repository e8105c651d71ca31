"""The HTTP contract, on a real socket, mostly through the OpenAI SDK."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from openai import AsyncOpenAI

from backends.glm.api import server
from backends.glm.model.load import Checkpoint
from backends.glm.model.runner import Runner
from backends.glm.request.prepare import Preparer
from tests.backends.glm.conftest import Serve, Served, data_url, picture
from tests.backends.glm.scripted import QUEUE_LIMIT, Script

HELLO = [{"role": "user", "content": "Hello"}]
WAIT_S = 20
SLOTS = 3  # of the real model, where a test runs it


@asynccontextmanager
async def sdk(served: Served) -> AsyncIterator[Any]:
    client = AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    async with client:
        yield client.chat.completions


def ids_of(checkpoint: Checkpoint, text: str) -> list[int]:
    return checkpoint.tokenizer.encode_plain(text)


def control(checkpoint: Checkpoint, literal: str) -> int:
    token_id = checkpoint.tokenizer.control_id(literal)
    assert token_id is not None
    return token_id


def real(checkpoint: Checkpoint) -> Runner:
    return Runner(
        checkpoint.model, checkpoint.device, rows=SLOTS, row_tokens=checkpoint.max_model_len
    )


async def until(served: Served, running: int, waiting: int) -> None:
    """Follow /load?watch=1 until it reports these counts."""
    async with asyncio.timeout(WAIT_S), aiohttp.ClientSession() as session:
        async with session.get(f"{served.url}/load?watch=1") as response:
            async for line in response.content:
                report = json.loads(line)
                if (report["running"], report["waiting"]) == (running, waiting):
                    return


async def entered(script: Script, steps: int = 1) -> None:
    """Until the model has begun this many further steps."""
    for _ in range(steps):
        assert await asyncio.to_thread(script.entered.acquire, True, WAIT_S)


def question(width: int, height: int) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": data_url(picture(width, height))}}
    return [{"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]}]


@pytest.mark.parametrize(("width", "height"), [(28, 28), (112, 84), (300, 200)])
async def test_a_picture_plain_and_streamed_with_the_processors_own_count(
    checkpoint: Checkpoint, serve: Serve, width: int, height: int
) -> None:
    processor = checkpoint.prompts.vision._processor
    tokens = processor.get_number_of_image_patches(height, width) // 4
    request: dict[str, Any] = {
        "model": "tiny",
        "messages": question(width, height),
        "max_tokens": 12,
        "reasoning_effort": "none",
    }
    async with serve(real(checkpoint)) as served, sdk(served) as chat:
        whole = await chat.create(**request)
        stream = await chat.create(**request, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    # [gMASK] <sop> <|user|> \n begin end, the text with its line break, /nothink <|assistant|>
    # \n <think> </think> \n around the picture's own tokens.
    text_tokens = len(ids_of(checkpoint, "\nWhat is this?"))
    assert whole.usage.prompt_tokens == 6 + text_tokens + 6 + tokens
    assert whole.usage.prompt_tokens_details.to_dict() == {
        "cached_tokens": 0,
        "image_tokens": tokens,
    }
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.object == "chat.completion"
    assert set(whole.model_extra["yuzui"]) == {"slot_ms", "queue_ms", "ttft_ms"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert set(chunks[-1].model_extra["yuzui"]) == {"slot_ms", "queue_ms", "ttft_ms"}
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert [c.choices[0].finish_reason for c in chunks[:-2]] == [None] * (len(chunks) - 2)
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_thought_is_split_from_the_answer(checkpoint: Checkpoint, serve: Serve) -> None:
    think, close = (control(checkpoint, literal) for literal in ("<think>", "</think>"))
    thought, answer = (ids_of(checkpoint, text) for text in ("\n想一想 hm\n", "\n答案🙂 END no"))
    script = Script([think, *thought, close, *answer])
    request: dict[str, Any] = {"model": "alias", "messages": HELLO, "stop": ["END", "#"]}
    async with serve(script) as served, sdk(served) as chat:
        whole = await chat.create(**request)
        chunks = [c async for c in await chat.create(**request, stream=True)]
    message = whole.choices[0].message
    assert (message.reasoning_content, message.content) == ("想一想 hm", "答案🙂 ")
    assert whole.choices[0].finish_reason == "stop"
    details = whole.usage.completion_tokens_details
    assert details.reasoning_tokens == len(thought)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(d.content or "" for d in deltas) == message.content
    streamed = (d.model_extra.get("reasoning_content") or "" for d in deltas)
    assert "".join(streamed) == message.reasoning_content
    assert all(chunk.choices for chunk in chunks)  # no usage chunk unless it was asked for


async def test_without_a_thought_there_is_no_reasoning_field(
    checkpoint: Checkpoint, serve: Serve
) -> None:
    script = Script([*ids_of(checkpoint, "Yes"), min(checkpoint.stop_ids)])
    async with serve(script) as served, sdk(served) as chat:
        whole = await chat.create(model="tiny", messages=HELLO)
    assert "reasoning_content" not in whole.choices[0].message.model_extra
    assert whole.usage.completion_tokens == len(ids_of(checkpoint, "Yes")) + 1


async def test_a_stream_is_sent_token_by_token(checkpoint: Checkpoint, serve: Serve) -> None:
    ids = ids_of(checkpoint, "a b")
    script = Script(ids, gated=True)
    async with serve(script) as served, sdk(served) as chat:
        script.allow(1)
        stream = await chat.create(
            model="tiny", messages=HELLO, stream=True, max_tokens=len(ids),
            extra_body={"thinking": {"type": "disabled"}},
        )  # fmt: skip
        role, first = await anext(stream), await anext(stream)
        assert role.choices[0].delta.role == "assistant"
        assert first.choices[0].delta.content == "a"  # while the model waits for its second step
        script.allow(len(ids) - 1)
        rest = [chunk async for chunk in stream]
        assert rest[-1].choices[0].finish_reason == "length"


async def test_the_output_limit_is_bounded_by_the_context(
    checkpoint: Checkpoint, serve: Serve
) -> None:
    """Also one that the caller gave: many clients send the same large one with every request."""
    text = "z" * (checkpoint.max_model_len - 100)
    full = [{"role": "user", "content": text}]
    async with serve(Script(ids_of(checkpoint, "a"))) as served, sdk(served) as chat:
        short = await chat.create(model="tiny", messages=HELLO)
        long = await chat.create(model="tiny", messages=full)
        asked = await chat.create(model="tiny", messages=full, max_tokens=65_536)
    assert short.usage.completion_tokens == 1024
    for cut in (long, asked):
        assert cut.usage.total_tokens == checkpoint.max_model_len
        assert cut.choices[0].finish_reason == "length"


async def test_context_overflow(checkpoint: Checkpoint, serve: Serve) -> None:
    text = "z" * (checkpoint.max_model_len + 1)
    async with serve(Script([0])) as served, sdk(served) as chat:
        with pytest.raises(openai.BadRequestError) as caught:
            await chat.create(model="tiny", messages=[{"role": "user", "content": text}])
        assert caught.value.code == "context_length_exceeded"
        assert served.engine.load().waiting == 0  # a refused request gives its place back


async def test_errors_have_the_openai_shape(checkpoint: Checkpoint, serve: Serve) -> None:
    async with serve(Script([0])) as served, aiohttp.ClientSession(served.url) as http:
        with pytest.raises(openai.NotFoundError) as caught:
            async with sdk(served) as chat:
                await chat.create(model="gpt-4o", messages=HELLO)
        assert caught.value.code == "model_not_found"
        cases: list[tuple[str, str, Any, int, str | None]] = [
            ("POST", "/v1/chat/completions", b"{", 400, None),
            ("POST", "/v1/chat/completions", {"model": "tiny", "messages": question(1, 201)},
             400, "invalid_image"),
            ("POST", "/v1/chat/completions", {"model": "tiny", "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": "http://a/b"}]}]},
             400, "invalid_image_url"),
            ("GET", "/v1/chat/completions", b"", 405, "method_not_allowed"),
            ("GET", "/nowhere", b"", 404, "not_found"),
        ]  # fmt: skip
        for method, path, body, status, code in cases:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            async with http.request(method, path, data=raw) as response:
                assert response.status == status, path
                error = (await response.json())["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["code"] == code


async def test_refusals_say_what_to_do_instead(serve: Serve) -> None:
    async with serve(Script([0])) as served, aiohttp.ClientSession(served.url) as http:
        for method, path, size, told in (
            (
                "GET",
                "/v1/completions",
                0,
                "There is nothing at GET /v1/completions; the calls are ",
            ),
            ("GET", "/v1/chat/completions", 0, "takes POST, not GET"),
            ("POST", "/v1/load_lora_adapter", server.CALL_BYTES_MAX + 1, "at most 65,536 bytes"),
        ):
            async with http.request(method, path, data=b" " * size) as response:
                assert response.status in (404, 405, 413)
                assert told in (await response.json())["error"]["message"]


async def test_a_caller_who_leaves_while_a_piece_is_written_is_no_error(
    checkpoint: Checkpoint,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The connection is really gone in the moment of the second write of the stream."""
    write = web.StreamResponse.write
    written: list[int] = []

    async def gone(response: web.StreamResponse, data: Any) -> None:
        written.append(len(data))
        if len(written) == 2:
            request = response._req
            assert request is not None
            assert request.transport is not None
            request.transport.abort()
        await write(response, data)

    monkeypatch.setattr(web.StreamResponse, "write", gone)
    body = {"model": "tiny", "messages": HELLO, "stream": True, "reasoning_effort": "none"}
    async with serve(Script(ids_of(checkpoint, "ab"))) as served:
        async with aiohttp.ClientSession(served.url) as http:
            with pytest.raises(aiohttp.ClientError):
                async with http.post("/v1/chat/completions", json=body) as response:
                    await response.read()
        await until(served, running=0, waiting=0)
    assert len(written) >= 2
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_models_are_described_one_by_one(checkpoint: Checkpoint, serve: Serve) -> None:
    async with serve(Script([0])) as served:
        before = served.service.ready_s
        client = AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
        async with client:
            (listed,) = (await client.models.list()).data
            assert (listed.id, listed.created) == ("tiny", before)
            assert abs(time.time() - listed.created) < 3600
            assert await client.models.retrieve("tiny") == listed
            assert (await client.models.retrieve("alias")).id == "alias"
            for name in ("gpt-4o", "a/b"):
                with pytest.raises(openai.NotFoundError) as caught:
                    await client.models.retrieve(name)
                assert caught.value.code == "model_not_found"
                assert "serves `tiny`" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_leaves_frees_the_slot_within_a_step(
    checkpoint: Checkpoint, serve: Serve, stream: bool
) -> None:
    script = Script(ids_of(checkpoint, "a"), gated=True)
    async with serve(script) as served:
        body = {"model": "tiny", "messages": HELLO, "stream": stream, "reasoning_effort": "none"}
        async with aiohttp.ClientSession(served.url) as http:
            request = asyncio.gather(http.post("/v1/chat/completions", json=body))
            script.allow(2)
            await entered(script, 3)  # two tokens are out, the third step runs
            if stream:
                response = (await request)[0]
                assert response.status == 200
                response.close()
            else:
                request.cancel()
        await until(served, running=1, waiting=0)  # the step itself cannot be interrupted
        script.allow(1)
        await until(served, running=0, waiting=0)
        assert script.steps == 3


async def test_a_caller_who_leaves_the_queue(checkpoint: Checkpoint, serve: Serve) -> None:
    script = Script(ids_of(checkpoint, "a"), gated=True)
    async with serve(script) as served, sdk(served) as chat:
        first = asyncio.gather(chat.create(model="tiny", messages=HELLO, max_tokens=1))
        await entered(script)
        second = asyncio.gather(chat.create(model="tiny", messages=HELLO, max_tokens=1))
        await until(served, running=1, waiting=1)
        second.cancel()
        await until(served, running=1, waiting=0)
        script.allow(1)
        assert (await first)[0].usage.completion_tokens == 1
        assert script.steps == 1


async def test_a_full_queue_is_answered_at_once(checkpoint: Checkpoint, serve: Serve) -> None:
    script = Script(ids_of(checkpoint, "a"), gated=True)
    async with serve(script) as served, sdk(served) as chat:
        inside = asyncio.gather(
            *(
                chat.create(model="tiny", messages=HELLO, max_tokens=1)
                for _ in range(1 + QUEUE_LIMIT)
            )
        )
        await until(served, running=1, waiting=QUEUE_LIMIT)
        with pytest.raises(openai.InternalServerError) as caught:
            await chat.create(model="tiny", messages=HELLO)
        response = caught.value.response
        assert (response.status_code, caught.value.code) == (503, "worker_busy")
        assert int(response.headers["Retry-After"]) >= 1
        assert response.headers["x-yuzui-load"] == f"running=1,waiting={QUEUE_LIMIT},slots=1"
        script.allow(1 + QUEUE_LIMIT)
        assert len(await inside) == 1 + QUEUE_LIMIT


async def test_a_failure_before_the_first_token_has_a_status(
    checkpoint: Checkpoint, serve: Serve
) -> None:
    script = Script(ids_of(checkpoint, "a"), fail_at=0)
    async with serve(script) as served, aiohttp.ClientSession(served.url) as http:
        for stream in (False, True):
            body = {"model": "tiny", "messages": HELLO, "stream": stream}
            async with http.post("/v1/chat/completions", json=body) as response:
                assert response.status == 500
                error = (await response.json())["error"]
            assert (error["type"], error["code"]) == ("server_error", "engine_error")
            assert "fire" not in error["message"]


async def test_a_failure_in_mid_stream_ends_without_done(
    checkpoint: Checkpoint, serve: Serve
) -> None:
    script = Script(ids_of(checkpoint, "a"), fail_at=2)
    body = {"model": "tiny", "messages": HELLO, "stream": True, "reasoning_effort": "none"}
    async with serve(script) as served, aiohttp.ClientSession(served.url) as http:
        async with http.post("/v1/chat/completions", json=body) as response:
            assert response.status == 200
            events = (await response.read()).decode().strip().split("\n\n")
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "engine_error"
    assert not any("[DONE]" in event or '"finish_reason":"' in event for event in events)
    assert len(events) == 4  # role, two tokens, the error


async def test_a_good_stream_ends_with_done(checkpoint: Checkpoint, serve: Serve) -> None:
    script = Script([*ids_of(checkpoint, "a"), min(checkpoint.stop_ids)])
    body = {"model": "tiny", "messages": HELLO, "stream": True}
    async with serve(script) as served, aiohttp.ClientSession(served.url) as http:
        async with http.post("/v1/chat/completions", json=body) as response:
            assert response.content_type == "text/event-stream"
            assert response.headers["x-yuzui-load"].endswith("slots=1")
            assert (await response.read()).endswith(b"\n\ndata: [DONE]\n\n")


async def test_health_models_and_load(checkpoint: Checkpoint, serve: Serve) -> None:
    async with serve(Script([0])) as served, aiohttp.ClientSession(served.url) as http:

        async def get(path: str) -> tuple[int, Any]:
            async with http.get(path) as response:
                return response.status, await response.json()

        assert await get("/health") == (200, {"status": "ok"})
        model = (await get("/v1/models"))[1]["data"][0]
        assert (model["id"], model["object"], model["owned_by"]) == ("tiny", "model", "yuzui")
        assert model["max_model_len"] == checkpoint.max_model_len
        assert "vision" in model["capabilities"]
        first, second = (await get("/load"))[1], (await get("/load"))[1]
        assert set(first) == {
            "engine", "model", "worker", "pid", "slots", "running", "waiting", "queue_limit",
            "decode_tokens_per_s", "decode_tokens_per_s_total",
            "prefill_tokens_per_s", "kv_tokens_used", "kv_tokens_total", "max_model_len", "state",
            "waiting_tokens", "prompt_tokens", "cached_tokens", "pictures", "cached_pictures",
            "seq", "image_limits", "adapters", "reason", "preparing",
        }  # fmt: skip
        assert first["seq"] < second["seq"]
        assert (first["worker"], first["state"], first["slots"]) == ("w", "ok", 1)
        assert first["image_limits"] == {
            "factor": 28, "min_pixels": 784, "max_pixels": 24 * 784,
        }  # fmt: skip
        served.service.drain()
        assert await get("/health") == (503, {"status": "draining"})
        assert (await get("/load"))[1]["state"] == "draining"
        async with http.post("/v1/chat/completions", json={}) as response:
            assert response.status == 503
            assert (await response.json())["error"]["code"] == "worker_draining"


async def test_while_the_model_loads(serve: Serve, checkpoint: Checkpoint) -> None:
    async with serve(Script([0])) as served, aiohttp.ClientSession(served.url) as http:
        loaded, served.service.serving = served.service.serving, None
        for method, path, code in (
            ("GET", "/health", None),
            ("GET", "/v1/models", "worker_loading"),
            ("POST", "/v1/chat/completions", "worker_loading"),
        ):
            async with http.request(method, path) as response:
                assert response.status == 503
                body = await response.json()
            assert body == {"status": "loading"} if code is None else body["error"]["code"] == code
        async with http.get("/load") as response:
            assert (await response.json())["state"] == "loading"
        served.service.serving = loaded


async def test_the_watch_reports_every_change_and_the_beat(
    checkpoint: Checkpoint, serve: Serve
) -> None:
    script = Script(ids_of(checkpoint, "a"), gated=True)
    async with serve(script) as served, sdk(served) as chat, aiohttp.ClientSession() as http:
        async with http.get(f"{served.url}/load?watch=1") as response:
            assert response.content_type == "application/x-ndjson"

            async def line() -> tuple[int, int, int]:
                async with asyncio.timeout(WAIT_S):
                    report = json.loads(await response.content.readline())
                return report["seq"], report["running"], report["waiting"]

            start, beat = await line(), await line()  # the second comes though nothing changed
            assert start[1:] == beat[1:] == (0, 0)
            assert start[0] < beat[0]
            request = asyncio.gather(chat.create(model="tiny", messages=HELLO, max_tokens=1))
            await entered(script)
            seen = await line()
            while seen[1:] != (1, 0):  # it may be seen waiting first
                assert seen[1:] in ((0, 0), (0, 1))
                seen = await line()
            script.allow(1)
            await request
            while seen[1:] != (0, 0):
                assert seen[1:] == (1, 0)
                seen = await line()


async def test_a_watch_ends_with_the_worker(serve: Serve) -> None:
    async with serve(Script([0])) as served, aiohttp.ClientSession() as http:
        async with http.get(f"{served.url}/load?watch=1") as response:
            await response.content.readline()
            served.service.drain()
            served.reporter.close()
            async with asyncio.timeout(WAIT_S):
                lines = (await response.read()).splitlines()  # to a regular end of the reply
        assert json.loads(lines[-1])["state"] == "draining"


async def test_many_callers_of_whom_some_leave(checkpoint: Checkpoint, serve: Serve) -> None:
    """Each answer is its own caller's, nobody's place is lost, and what is left is empty."""
    runner = real(checkpoint)
    gone = random.Random(4)

    async def ask(http: aiohttp.ClientSession, number: int) -> tuple[int, str] | None:
        body = {
            "model": "tiny",
            "max_tokens": 8,
            "reasoning_effort": "none",
            "messages": [{"role": "user", "content": f"Number {number % 3}"}],
        }
        leave_s = gone.choice([0.001, 0.01, 0.03, None, None])
        while True:
            try:
                async with asyncio.timeout(leave_s):
                    async with http.post("/v1/chat/completions", json=body) as response:
                        if response.status == 200:
                            reply = await response.json()
                            return number % 3, reply["choices"][0]["message"]["content"]
                        assert response.status == 503
            except TimeoutError:
                return None
            await asyncio.sleep(0.02)

    async with serve(runner, SLOTS) as served, aiohttp.ClientSession(served.url) as http:
        results = await asyncio.gather(*(ask(http, number) for number in range(40)))
        await until(served, running=0, waiting=0)
        alone = dict([await ask_alone(http, number) for number in range(3)])
    answers = [result for result in results if result is not None]
    assert len(answers) >= 10
    assert all(alone[number] == text for number, text in answers)
    assert len(set(alone.values())) == 3


async def ask_alone(http: aiohttp.ClientSession, number: int) -> tuple[int, str]:
    body = {
        "model": "tiny",
        "max_tokens": 8,
        "reasoning_effort": "none",
        "messages": [{"role": "user", "content": f"Number {number}"}],
    }
    async with http.post("/v1/chat/completions", json=body) as response:
        return number, (await response.json())["choices"][0]["message"]["content"]


async def test_unexpected_errors_keep_their_shape_and_their_secrets(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a secret of the prompt")

    monkeypatch.setattr(Preparer, "read", broken)
    async with serve(Script([0])) as served, aiohttp.ClientSession(served.url) as http:
        async with http.post("/v1/chat/completions", data=b"{}") as response:
            assert response.status == 500
            body = await response.text()
        assert "secret" not in body
        assert served.engine.load().waiting == 0
    captured = capsys.readouterr()
    assert "unexpected_error" in captured.out + captured.err
    assert "secret" not in captured.out + captured.err


async def test_a_lost_engine_tells_its_callers_and_says_so_to_everybody(
    checkpoint: Checkpoint, serve: Serve
) -> None:
    script = Script(ids_of(checkpoint, "a"), gated=True)
    body = {"model": "tiny", "messages": HELLO, "reasoning_effort": "none"}
    async with serve(script, slots=2) as served, aiohttp.ClientSession(served.url) as http:

        async def post(stream: bool) -> tuple[int, bytes]:
            asked = {**body, "stream": stream}
            async with http.post("/v1/chat/completions", json=asked) as response:
                return response.status, await response.read()

        async with http.get("/load?watch=1") as watch, asyncio.TaskGroup() as group:
            async with asyncio.timeout(20):
                script.allow(1)
                streaming = await http.post("/v1/chat/completions", json={**body, "stream": True})
                posted = [group.create_task(post(stream)) for stream in (False, True)]
                report: dict[str, Any] = {}
                while (report.get("running"), report.get("waiting")) != (1, 2):
                    report = json.loads(await watch.content.readline())
                served.engine.give_up("no step has ended for 60 s")
                told = [await one for one in posted]
                rest = await streaming.read()
                states = []
                while "failed" not in states:
                    states.append(json.loads(await watch.content.readline())["state"])
        for status, raw in told:
            assert (status, json.loads(raw)["error"]["code"]) == (503, "worker_failed")
        assert b"worker_failed" in rest
        assert b"[DONE]" not in rest
        for path in ("/health", "/load", "/load?watch=1"):
            async with http.get(path) as response:
                assert response.status == 503
                found = await response.json()
            assert found.get("state", found.get("status")) == "failed"
            assert found["reason"] == "no step has ended for 60 s"
        assert (await post(False))[0] == 503
        script.allow(9)
