"""The scripted backend plays its script, and its server form answers like a worker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import msgspec
import pytest

from backends.base import Backend, Call, Event, Failure, Kind, Reply
from backends.chat import ChatRequest, Message
from backends.egress import Egress
from backends.openai_http import OpenAIHttpBackend
from backends.scripted import DONE, ScriptedBackend, Step, Wait, answer, delta, finish, usage
from backends.scripted_server import ScriptedServer, ServerOptions
from policies.types import Usage
from tests.backends.servers import PATIENT, until

CALL = Call(
    request_id="r",
    chat=ChatRequest(model="m", messages=[Message(role="user", content="hi")]),
    output_tokens_max=50,
    timeouts=PATIENT,
    stream=True,
)
PLAIN = msgspec.structs.replace(CALL, stream=False)


async def events_of(reply: Reply) -> list[Event]:
    return [event async for batch in reply.events() for event in batch]


async def test_a_script_of_a_stream() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    script: list[Step] = [Wait(0.5), delta("a"), Wait(2), finish(), usage(12, 1, slot_ms=3), DONE]
    scripted = ScriptedBackend(script, sleep=sleep)
    backend: Backend = scripted
    reply = await backend.open(CALL)
    assert slept == [0.5]
    events = await events_of(reply)
    assert slept == [0.5, 2]
    assert [e.has_delta for e in events] == [True, False, False, False]
    assert events[2].usage == Usage(
        prompt_tokens=12, completion_tokens=1, slot_ms=3, served_model="scripted"
    )
    assert events[3].done
    await reply.close()
    assert (scripted.calls, scripted.closed) == ([CALL], 1)


async def test_a_script_of_a_plain_answer() -> None:
    reply = await ScriptedBackend([answer("hello", 7, 2)]).open(PLAIN)
    body, counted = await reply.body()
    assert json.loads(body)["choices"][0]["message"]["content"] == "hello"
    assert counted == Usage(prompt_tokens=7, completion_tokens=2, served_model="scripted")


async def test_failures_where_the_script_has_them() -> None:
    busy = Failure(Kind.BUSY, "busy")
    with pytest.raises(Failure) as caught:
        await ScriptedBackend([busy, delta("never")]).open(CALL)
    assert caught.value is busy
    reply = await ScriptedBackend([delta("a"), busy]).open(CALL)
    with pytest.raises(Failure) as caught:
        await events_of(reply)
    assert caught.value is busy
    with pytest.raises(Failure) as caught:
        await events_of(await ScriptedBackend([delta("a")]).open(CALL))
    assert caught.value.kind is Kind.BROKEN


@pytest.mark.parametrize("options", [{}, {"pace_ms": 1.0}, {"first_ms": 5.0, "pace_ms": 1.0}])
async def test_the_server_streams(options: dict[str, float]) -> None:
    egress = Egress(allowed=[])
    async with ScriptedServer(ServerOptions(chunks=10, **options)) as server:  # type: ignore[arg-type]
        egress.allow(server.url)
        backend = OpenAIHttpBackend(egress, server.url)
        for _ in range(3):
            reply = await backend.open(CALL)
            events = await events_of(reply)
            await reply.close()
            assert sum(e.has_delta for e in events) == 10
            assert events[-1].done
            assert events[-2].usage is not None
        assert (server.answered, server.running) == (3, 0)
        assert len(server.connections) == 1
        await egress.close()


async def test_the_server_answers_plainly_refuses_and_sees_a_client_leave() -> None:
    egress = Egress(allowed=[])
    async with ScriptedServer(ServerOptions(chunks=10, pace_ms=20)) as server:
        egress.allow(server.url)
        backend = OpenAIHttpBackend(egress, server.url)
        reply = await backend.open(PLAIN)
        _, counted = await reply.body()
        assert counted == Usage(
            prompt_tokens=12, completion_tokens=10, slot_ms=200, served_model="glm-4.6v-scripted"
        )
        server.full = True
        with pytest.raises(Failure) as caught:
            await backend.open(PLAIN)
        assert (caught.value.kind, caught.value.code) == (Kind.BUSY, "worker_busy")
        assert caught.value.retry_after_s == 1
        server.full = False
        server.state = "draining"
        with pytest.raises(Failure) as caught:
            await backend.open(PLAIN)
        assert caught.value.code == "worker_draining"
        server.state = "ok"
        reply = await backend.open(CALL)
        assert server.running == 1
        await reply.close()
        await until(lambda: server.running == 0)
        await egress.close()


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with ScriptedServer(ServerOptions(chunks=2, first_ms=5)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        post = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"
        writer.write(post + b"GET /health HTTP/1.1\r\n\r\n" + b"GET /none HTTP/1.1\r\n\r\n")
        first = await reader.readuntil(b'"ttft_ms":5}}')
        assert b"chat.completion" in first
        assert b'{"status":"ok"}' in await reader.readuntil(b"}")
        assert b"404" in await reader.readuntil(b"}}")
        writer.close()


def test_the_server_as_a_process() -> None:
    command = [sys.executable, "-m", "backends.scripted", "--chunks", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["listening"]
        assert url.startswith("http://127.0.0.1:")
        process.terminate()
        assert process.wait(20) == 0
