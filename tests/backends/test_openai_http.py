"""Engines over HTTP: what they are sent, and how their answers are understood."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from backends.base import Backend, Billed, Call, Event, Failure, Fault, Kind, Reply
from backends.chat import ChatRequest, Message, StreamOptions
from backends.egress import Egress
from backends.openai_http import HttpReply, OpenAIHttpBackend
from backends.sse import encode
from policies.types import Usage
from tests.backends.servers import PATIENT, STREAM, Reader, Server, Writer, chunk, serving

ASK = ChatRequest(model="m", messages=[Message(role="user", content="hi")])
USAGE = {"prompt_tokens": 5, "completion_tokens": 2}
DONE = b"data: [DONE]\n\n"


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        self.now_s += 0.25
        return self.now_s


@pytest.fixture
async def egress() -> AsyncIterator[Egress]:
    out = Egress(allowed=[])
    yield out
    await out.close()


def call_of(chat: ChatRequest = ASK, *, stream: bool = False) -> Call:
    return Call(request_id="r-1", chat=chat, output_tokens_max=64, timeouts=PATIENT, stream=stream)


def plain(body: Any, status: int = 200, headers: str = "") -> bytes:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\n{headers}"
    return f"{head}content-length: {len(text)}\r\n\r\n".encode() + text


def event(delta: dict[str, Any] | None = None, **more: Any) -> bytes:
    choices = [] if delta is None else [{"delta": delta, "finish_reason": more.pop("end", None)}]
    return encode(json.dumps({"choices": choices, **more}).encode())


class Engine:
    """An engine that gives one prepared answer, and a backend that asks it."""

    def __init__(self, egress: Egress, *reads: bytes) -> None:
        self._egress = egress
        self._reads = reads
        self.server: Server | None = None

    async def _handle(self, server: Server, reader: Reader, writer: Writer) -> None:
        while True:
            await server.request(reader)
            for read in self._reads:
                writer.write(read)
                await writer.drain()

    async def ask(self, call: Call, then: Any) -> Any:
        async with serving(self._handle) as server:
            self.server = server
            self._egress.allow(server.url)
            backend: Backend = OpenAIHttpBackend(self._egress, server.url + "/", clock=Clock())
            reply: Reply = await backend.open(call)
            try:
                return await then(reply)
            finally:
                await reply.close()

    async def body(self, chat: ChatRequest = ASK) -> tuple[bytes, Usage | None]:
        found: tuple[bytes, Usage | None] = await self.ask(call_of(chat), HttpReply.body)
        return found

    async def events(self) -> list[Event]:
        seen: list[Event] = []

        async def read(reply: Reply) -> None:
            async for batch in reply.events():
                assert batch
                seen.extend(batch)

        self.seen = seen
        await self.ask(call_of(stream=True), read)
        return seen

    @property
    def sent(self) -> dict[str, Any]:
        assert self.server is not None
        found: dict[str, Any] = json.loads(self.server.requests[0][1])
        return found


def stream(*events: bytes) -> tuple[bytes, ...]:
    return (STREAM, *(chunk(e) for e in events), chunk(b""))


async def test_a_plain_answer(egress: Egress) -> None:
    answer = {"choices": [{"message": {"content": "x"}}], "usage": USAGE, "yuzui": {"slot_ms": 7}}
    engine = Engine(egress, plain(answer))
    body, usage = await engine.body()
    assert json.loads(body) == answer
    assert usage == Usage(prompt_tokens=5, completion_tokens=2, slot_ms=7)
    assert engine.sent == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": False,
        "max_tokens": 64,
    }
    assert engine.server is not None
    head = engine.server.requests[0][0]
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert b"x-request-id: r-1\r\n" in head


async def test_an_engine_that_reports_no_slot_time_is_timed(egress: Egress) -> None:
    _, usage = await Engine(egress, plain({"choices": [{"message": {}}], "usage": USAGE})).body()
    assert usage is not None
    assert usage.slot_ms == 250
    _, usage = await Engine(egress, plain({"choices": [{"message": {}}]})).body()
    assert usage is None


def ending(index: int) -> dict[str, Any]:
    return {"index": index, "delta": {}, "finish_reason": "stop"}


async def test_a_stream_is_whole_when_each_of_its_answers_has_ended(egress: Egress) -> None:
    three = msgspec.structs.replace(ASK, n=3)
    ends = [event(choices=[ending(0)]), event(choices=[ending(2), ending(1)])]
    done = b"data: [DONE]\n\n"

    async def read(reply: Reply) -> list[Event]:
        return [one async for batch in reply.events() for one in batch]

    whole = await Engine(egress, *stream(*ends, done)).ask(call_of(three, stream=True), read)
    assert [one.finished for one in whole] == [(0,), (2, 1), ()]
    for sent in ((ends[0], done), (ends[0],)):
        with pytest.raises(Failure) as caught:
            await Engine(egress, *stream(*sent)).ask(call_of(three, stream=True), read)
        assert caught.value.kind is Kind.BROKEN


async def test_each_answer_took_a_slot_for_as_long(egress: Egress) -> None:
    answer = plain({"choices": [{"message": {}}, {"message": {}}], "usage": USAGE})
    _, usage = await Engine(egress, answer).body(msgspec.structs.replace(ASK, n=2))
    assert usage is not None
    assert usage.slot_ms == 2 * 250


async def test_the_reserved_limit_is_the_one_that_is_sent(egress: Egress) -> None:
    engine = Engine(egress, plain({"choices": [{"message": {}}]}))
    await engine.body(msgspec.structs.replace(ASK, max_tokens=9999))
    assert engine.sent["max_tokens"] == 64
    await engine.body(msgspec.structs.replace(ASK, max_completion_tokens=9999, max_tokens=5))
    assert engine.sent["max_completion_tokens"] == 64
    assert "max_tokens" not in engine.sent
    await engine.body(msgspec.structs.replace(ASK, stream_options=StreamOptions()))
    assert "stream_options" not in engine.sent


async def test_a_stream_is_relayed_as_it_came_and_its_usage_is_asked_for(egress: Egress) -> None:
    usage = event(usage=USAGE, yuzui={"slot_ms": 9})
    sent = [event({"role": "assistant"}), event({"content": "x"}), event({}, end="stop"), usage]
    engine = Engine(egress, *stream(b": ping\n\n", *sent, DONE))
    events = await engine.events()
    assert [e.raw for e in events] == [b": ping\n\n", *sent, DONE]
    assert [e.has_delta for e in events] == [False, False, True, False, False, False]
    assert events[3].finish_reason == "stop"
    assert events[4].usage == Usage(prompt_tokens=5, completion_tokens=2, slot_ms=9)
    assert events[4].choices_empty
    assert events[5].done
    assert engine.sent["stream"] is True
    assert engine.sent["stream_options"] == {"include_usage": True}


async def test_events_cut_anywhere_by_the_network(egress: Egress) -> None:
    whole = event({"content": "鱼嘴"}) + event({}, end="stop") + event(usage=USAGE) + DONE
    reads = [chunk(whole[i : i + 3]) for i in range(0, len(whole), 3)]
    events = await Engine(egress, STREAM, *reads, chunk(b"")).events()
    assert b"".join(e.raw for e in events) == whole
    assert events[2].usage is not None
    assert events[2].usage.slot_ms > 0


async def test_a_stream_may_end_without_done_once_it_was_finished(egress: Egress) -> None:
    events = await Engine(egress, *stream(event({}, end="stop"))).events()
    assert len(events) == 1


@pytest.mark.parametrize(
    "reads",
    [
        stream(event({"content": "x"})),
        stream(),
        stream(event({}, end="stop"), b"data: {"),
        stream(event({"content": "x"}), b"data: nonsense\n\n"),
        stream(event({"content": "x"}), b"data: " + b"x" * 1_100_000),
        (STREAM, chunk(event({"content": "x"}))[:-4]),
    ],
)
async def test_a_stream_that_ends_too_early_is_broken(
    egress: Egress, reads: tuple[bytes, ...]
) -> None:
    async def once(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        writer.writelines(reads)

    engine = Engine(egress)
    engine._handle = once  # type: ignore[method-assign]
    with pytest.raises(Failure) as caught:
        await engine.events()
    assert (caught.value.kind, caught.value.billed) == (Kind.BROKEN, Billed.MAYBE)


async def test_what_came_before_an_error_is_delivered_first(egress: Egress) -> None:
    bad = encode(b'{"error":{"message":"m","code":"engine_died"}}')
    engine = Engine(egress, STREAM, chunk(event({"content": "x"}) + bad + DONE), chunk(b""))
    with pytest.raises(Failure) as caught:
        await engine.events()
    assert caught.value.kind is Kind.SERVER_ERROR
    assert caught.value.code == "engine_died"
    assert [e.has_delta for e in engine.seen] == [True]


@pytest.mark.parametrize(
    ("status", "body", "kind", "elsewhere"),
    [
        (400, {"error": {"message": "bad", "code": "x"}}, Kind.BAD_REQUEST, False),
        (400, {"object": "error", "message": "maximum context length"}, Kind.CONTEXT, True),
        (404, {"error": {"message": "no model"}}, Kind.NOT_FOUND, True),
        (503, {"error": {"code": "worker_busy"}}, Kind.BUSY, True),
        (429, b"slow down", Kind.BUSY, True),
        (500, b"<html>", Kind.SERVER_ERROR, True),
        (302, b"", Kind.BROKEN, True),
        (500, b"x" * 200_000, Kind.SERVER_ERROR, True),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_refusal(
    egress: Egress, status: int, body: Any, kind: Kind, elsewhere: bool, streamed: bool
) -> None:
    engine = Engine(egress, plain(body, status, "retry-after: 4\r\n"))
    with pytest.raises(Failure) as caught:
        await engine.ask(call_of(stream=streamed), None)
    failure = caught.value
    assert (failure.kind, failure.elsewhere, failure.billed) == (kind, elsewhere, Billed.NO)
    assert failure.retry_after_s == 4
    assert failure.status == status


async def test_an_error_with_a_good_status(egress: Egress) -> None:
    engine = Engine(egress, plain({"error": {"message": "m", "code": 400}}))
    with pytest.raises(Failure) as caught:
        await engine.body()
    assert caught.value.fault is Fault.CALLER
    with pytest.raises(Failure) as caught:
        await engine.events()
    assert caught.value.fault is Fault.CALLER


async def test_an_answer_in_the_other_form(egress: Egress) -> None:
    with pytest.raises(Failure) as caught:
        await Engine(egress, plain({"choices": [{"message": {}}]})).events()
    assert caught.value.kind is Kind.BROKEN
    with pytest.raises(Failure) as caught:
        await Engine(egress, *stream(DONE)).body()
    assert caught.value.kind is Kind.BROKEN


async def test_a_finished_stream_leaves_its_connection_for_the_next(egress: Egress) -> None:
    answer = b"".join(stream(event({}, end="stop"), DONE))

    async def handle(server: Server, reader: Reader, writer: Writer) -> None:
        while True:
            await server.request(reader)
            writer.write(answer)

    async with serving(handle) as server:
        egress.allow(server.url)
        backend = OpenAIHttpBackend(egress, server.url)
        for _ in range(3):
            reply = await backend.open(call_of(stream=True))
            batches = [batch async for batch in reply.events()]
            assert batches[-1][-1].done
            await reply.close()
        assert server.connections == 1


async def test_closing_a_reply_early_tells_the_engine(egress: Egress) -> None:
    async def handle(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        writer.write(STREAM + chunk(event({"content": "x"})))
        await server.until_left(reader)

    async with serving(handle) as server:
        egress.allow(server.url)
        reply = await OpenAIHttpBackend(egress, server.url).open(call_of(stream=True))
        async for _ in reply.events():
            break
        await reply.close()
        await server.left.wait()


async def test_an_engine_that_may_not_be_connected_to_fails_as_one_that_cannot_be(
    egress: Egress,
) -> None:
    """It left the pool after it was chosen."""
    backend: Backend = OpenAIHttpBackend(egress, "http://127.0.0.1:1")
    with pytest.raises(Failure) as caught:
        await backend.open(call_of())
    assert (caught.value.kind, caught.value.billed) == (Kind.CONNECT, Billed.NO)
    assert caught.value.elsewhere
