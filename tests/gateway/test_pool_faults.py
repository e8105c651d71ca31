"""Workers at their worst, behind a real gateway: garbage, deaths, stalls, names that flap."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest

from backends.scripted_server import ScriptedServer, ServerOptions
from tests.gateway.rig import rig
from tests.gateway.test_pool_flow import pool, up

CARD = json.dumps({"object": "list", "data": [{"id": "glm", "object": "model"}]}).encode()
STREAM = b"content-type: text/event-stream\r\n"
JSON = b"content-type: application/json\r\n"
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":"a"}}]}\n\n'


def http(head: bytes, body: bytes, status: bytes = b"200 OK", length: int | None = None) -> bytes:
    size = b"%d" % (len(body) if length is None else length)
    return b"HTTP/1.1 " + status + b"\r\n" + head + b"content-length: " + size + b"\r\n\r\n" + body


class Liar:
    """An engine that passes every probe and answers each chat with these bytes, then hangs up."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked = 0
        self.url = ""
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Liar:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                await reader.readexactly(length)
                if head.startswith(b"POST"):
                    self.asked += 1
                    writer.write(self.answer)
                    await writer.drain()
                    break
                elif head.startswith(b"GET /v1/models"):
                    writer.write(http(JSON, CARD))
                elif head.startswith(b"GET /health"):
                    writer.write(http(JSON, b"{}"))
                else:
                    writer.write(http(JSON, b"{}", b"404 Not Found"))
        writer.close()


GARBAGE = {
    "nothing": b"",
    "not http": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an empty body": http(JSON, b""),
    "a page": http(b"content-type: text/html\r\n", b"<html>It works!</html>"),
    "another object": http(JSON, b'{"detail":"ok"}'),
    "no choices": http(JSON, b'{"choices":[]}'),
    "a choice of nothing": http(JSON, b'{"choices":[{}]}'),
    "half an answer": http(JSON, b'{"choices":[{"message":{"con', length=4_000),
    "not utf-8": http(JSON, b'{"choices":[{"message":{"content":"\xff\xfe"}}]}'),
    "nested": http(JSON, b"[" * 100_000),
    "an endless head": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000,
    "an error that says 200": http(JSON, b'{"error":{"message":"out of memory","code":500}}'),
    "an empty stream": http(STREAM, b""),
    "a stream of nothing": http(STREAM, b"data: [DONE]\n\n"),
    "a stream of words": http(STREAM, b"data: hello\n\n"),
    "a line without end": http(STREAM, b"data: " + b"x" * 3_000_000),
    "a negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("name", GARBAGE)
async def test_a_worker_that_answers_garbage_costs_nobody_an_answer(
    books_url: str, name: str, stream: bool
) -> None:
    async with Liar(GARBAGE[name]) as liar, ScriptedServer(ServerOptions(chunks=3)) as good:
        named = [{"url": liar.url, "name": "liar", "weight": 1_000}, {"url": good.url, "name": "g"}]
        async with rig(books_url, workers=[], settings=pool(*named)) as house:
            await up(house, 2)
            for _ in range(12):
                answer = await house.ask(stream=stream)
                assert (answer.status, answer.header("route")) == (200, "local:g"), answer.body
                assert answer.ended_well == stream
            assert 0 < liar.asked <= 6  # the positive control; and then its breaker is open
            rows = await house.settled()
            assert {row.target for row in rows if row.posted_nano} == {"g"}
            assert len(rows) == 12


@pytest.mark.parametrize(
    "rest",
    [b"", b"data: hello\n\n", b"data: [DONE]\n\n", b'data: {"choices":[{"index":0', b"\x00" * 99],
    ids=["silence", "words", "done", "half", "zeros"],
)
async def test_a_stream_that_turns_to_garbage_ends_with_an_error_and_never_with_done(
    books_url: str, rest: bytes
) -> None:
    async with Liar(http(STREAM, ROLE + rest)) as liar:
        settings = pool({"url": liar.url, "name": "liar"})
        async with rig(books_url, workers=[], settings=settings) as house:
            await up(house, 1)
            answer = await house.ask(stream=True)
            assert answer.status == 200
            assert b"[DONE]" not in answer.body
            assert answer.chunks[-1]["error"]["code"] == "upstream_broken"
            (row,) = await house.settled()
            assert row.outcome == "broken"
