"""The HTTP/1.1 client: what it makes of an answer, and what becomes of the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Billed, Failure, Kind
from backends.egress import Egress, Wire
from backends.http1 import (
    HEADER_BYTES_MAX,
    READ_AHEAD_BYTES,
    UNSEEN_BYTES_MAX,
    Connection,
    Exchange,
)
from tests.backends.servers import (
    OK,
    PATIENT,
    STREAM,
    Reader,
    Server,
    Writer,
    chunk,
    serving,
    until,
)

HEAD = b"GET / HTTP/1.1\r\n\r\n"


class Line(asyncio.Transport):
    """A transport without a network: what is done to it can be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.aborted = False
        self.reading = True
        self.unsent = 0

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.unsent


class Rig:
    """A connection on a `Line`, with one exchange under way."""

    def __init__(self, *, bodiless: bool = False) -> None:
        self.line = Line()
        self.freed: list[bool] = []
        self.connection = Connection(lambda _, keep: self.freed.append(keep))
        self.connection.connection_made(self.line)
        self.exchange = self.ask(bodiless=bodiless)

    def ask(self, *, bodiless: bool = False) -> Exchange:
        began_s = asyncio.get_running_loop().time()
        return self.connection.send(HEAD, None, times=PATIENT, began_s=began_s, bodiless=bodiless)

    def hear(self, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            if not self.line.aborted:
                self.connection.data_received(piece)

    async def outcome(self) -> tuple[Any, ...]:
        """Status, headers and body, and how it ended, if not well."""
        body = b""
        try:
            await self.exchange.head()
            while data := await self.exchange.receive():
                body += data
        except Failure as failure:
            return self.exchange.status, body, failure.kind, failure.billed, failure.message
        return self.exchange.status, self.exchange.headers, body


async def heard(answer: bytes, *, bytewise: bool = False, bodiless: bool = False) -> Any:
    """What becomes of an answer after which the engine closes the connection."""
    rig = Rig(bodiless=bodiless)
    rig.hear([answer[i : i + 1] for i in range(len(answer))] if bytewise else [answer])
    rig.connection.eof_received()
    rig.connection.connection_lost(None)
    return await rig.outcome()


PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 204 \r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 x\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/2.0 200 OK\r\n",
        b"HTTP/1.1 099 x\r\n",
        b"content-length: 3\r\n",
        b"content-length: -1\r\n",
        b"content-length: 99999999999999999999\r\n",
        b"transfer-encoding: chunked\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"connection: close\r\n",
        b"connection: upgrade\r\nupgrade: h2c\r\n",
        b"empty:\r\n",
        b" folded\r\n",
        b"\xff: \xfe\r\n",
        b"\r\n",
        b"\n",
        b"abc",
        b"3\r\nabc\r\n",
        b"3;x=y\r\nabc\r\n",
        b"ffffffffffffffffff\r\n",
        b"0\r\n\r\n",
        b"0\r\ntrailer: x\r\n\r\n",
        b"\0",
    ]
)
ANSWERS = st.lists(PIECES | st.binary(max_size=8), max_size=10).map(b"".join) | st.lists(
    PIECES, max_size=8
).map(lambda pieces: b"HTTP/1.1 200 OK\r\n" + b"".join(pieces))


@given(answer=ANSWERS, bodiless=st.booleans())
def test_an_answer_or_a_failure_and_never_anything_else(answer: bytes, bodiless: bool) -> None:
    async def both() -> None:
        whole = await heard(answer, bodiless=bodiless)
        assert len(whole) == 3 or whole[2:4] == (Kind.BROKEN, Billed.MAYBE)
        assert await heard(answer, bytewise=True, bodiless=bodiless) == whole

    with asyncio.Runner() as runner:
        runner.run(both())


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (OK, 200, b"{}"),
        (STREAM + chunk(b"ab") + chunk(b"c") + chunk(b""), 200, b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", 200, b"to the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", 200, b"to the end"),
        (b"HTTP/1.1 204 x\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nlink: x\r\n\r\n" + OK, 200, b"{}"),
        (OK + b"and more", 200, b"{}"),
    ],
)
async def test_bodies(answer: bytes, status: int, body: bytes, bytewise: bool) -> None:
    assert (await heard(answer, bytewise=bytewise))[::2] == (status, body)


async def test_headers_are_lower_case_and_joined() -> None:
    lines = b"X-A:  1 \r\nx-a: 2\r\nEmpty:\r\nLast: z\r\nContent-Length: 0\r\n\r\n"
    _, headers, _ = await heard(b"HTTP/1.1 100 x\r\nold: 1\r\n\r\nHTTP/1.1 200 OK\r\n" + lines)
    assert headers == {"x-a": "1, 2", "empty": "", "last": "z", "content-length": "0"}


async def test_what_comes_before_a_break_is_received_before_the_failure() -> None:
    status, body, kind, *_ = await heard(STREAM + chunk(b"ab") + b"zz\r\n")
    assert (status, body, kind) == (200, b"ab", Kind.BROKEN)


async def test_a_line_without_an_end_is_not_gathered() -> None:
    for begin in (
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 200 OK\r\nx: ",
        STREAM + b"0\r\nx: ",
        STREAM + b"1;",
    ):
        rig = Rig()
        rig.hear([begin, *[b"x" * HEADER_BYTES_MAX] * 3])
        assert not rig.line.aborted
        rig.hear([b"x" * HEADER_BYTES_MAX] * 2)
        assert rig.line.aborted
        assert (await rig.outcome())[2] is Kind.BROKEN
    assert UNSEEN_BYTES_MAX == 4 * HEADER_BYTES_MAX


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (OK, True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n", True),
        (OK + b"more", False),
        (OK + OK, False),
    ],
)
async def test_whether_the_connection_is_kept(answer: bytes, kept: bool) -> None:
    rig = Rig()
    rig.hear([answer])
    assert rig.freed == [kept]
    assert rig.line.aborted is not kept


async def test_a_half_written_request_stands_in_the_way_of_the_next() -> None:
    rig = Rig()
    rig.line.unsent = 1
    rig.hear([OK])
    assert rig.freed == [False]
    assert (await rig.outcome())[2] == b"{}"


async def test_head_has_no_body_and_keeps_the_connection() -> None:
    rig = Rig(bodiless=True)
    rig.hear([b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"])
    assert rig.freed == [True]
    assert (await rig.outcome())[2] == b""
    rig.exchange = rig.ask()
    rig.hear([OK])
    assert (await rig.outcome())[2] == b"{}"


async def test_an_idle_connection_that_speaks_is_closed() -> None:
    rig = Rig()
    rig.hear([OK, b"x"])
    assert rig.line.aborted


async def test_the_engine_waits_while_the_consumer_is_slow() -> None:
    rig = Rig()
    rig.hear([STREAM, chunk(b"x" * READ_AHEAD_BYTES)])
    assert rig.line.reading
    rig.hear([chunk(b"x")])
    assert not rig.line.reading
    await rig.exchange.head()
    assert len(await rig.exchange.receive()) == READ_AHEAD_BYTES + 1
    assert rig.line.reading
    rig.exchange.cut()


async def test_one_exchange_at_a_time() -> None:
    rig = Rig()
    with pytest.raises(RuntimeError):
        rig.ask()
    rig.exchange.cut()
    assert (rig.freed, rig.line.aborted) == ([False], True)


# ------------------------------------------------------------ over real sockets


async def answer_each(server: Server, reader: Reader, writer: Writer) -> None:
    while True:
        await server.request(reader)
        writer.write(OK)


async def get(egress: Egress, url: str, headers: dict[str, str] | None = None) -> Wire:
    return await egress.open("GET", url, headers=headers or {}, body=None, timeouts=PATIENT)


async def test_what_is_asked_for() -> None:
    async with serving(answer_each) as server:
        egress = Egress(allowed=[server.url])
        for url in ("", "?a=b", "/c/../d?e=%20"):
            await (await get(egress, server.url + url)).read(10)
        lines = [head.split(b"\r\n")[0] for head, _ in server.requests]
        assert lines == [b"GET / HTTP/1.1", b"GET /?a=b HTTP/1.1", b"GET /c/../d?e=%20 HTTP/1.1"]
        assert b"content-length" not in server.requests[0][0]
        await egress.close()


@pytest.mark.parametrize(
    "headers",
    [{"x": "a\r\nb: c"}, {"x": "a\nb"}, {"x\r": "\n"}, {"x": "\0"}, {"Content-Length": "1"}],
)
async def test_a_header_that_would_break_the_request(headers: dict[str, str]) -> None:
    async with serving(answer_each) as server:
        egress = Egress(allowed=[server.url])
        with pytest.raises(ValueError, match="header"):
            await get(egress, server.url, headers)
        assert server.connections == 0
        await egress.close()


async def test_more_calls_than_connections_take_turns() -> None:
    async with serving(answer_each) as server:
        egress = Egress(allowed=[server.url], connections_max=2)

        async def call() -> bytes:
            return await (await get(egress, server.url)).read(10)

        assert await asyncio.gather(*[call() for _ in range(20)]) == [b"{}"] * 20
        assert server.connections <= 2
        await egress.close()


async def test_closing_ends_the_wait_for_a_connection() -> None:
    async def silent(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        await server.until_left(reader)

    async with serving(silent) as server:
        egress = Egress(allowed=[server.url], connections_max=1)
        calls = asyncio.gather(*[get(egress, server.url) for _ in range(3)], return_exceptions=True)
        await until(lambda: bool(server.requests))
        await egress.close()
        kinds = [failure.kind for failure in await calls if isinstance(failure, Failure)]
        assert kinds == [Kind.BROKEN, Kind.CONNECT, Kind.CONNECT]
        assert server.connections == 1


async def test_an_idle_connection_makes_room_for_another_place() -> None:
    async with serving(answer_each) as one, serving(answer_each) as other:
        egress = Egress(allowed=[one.url, other.url], connections_max=1)
        for server in (one, other, one):
            assert await (await get(egress, server.url)).read(10) == b"{}"
        assert (one.connections, other.connections) == (2, 1)
        await egress.close()


async def test_nobody_keeps_an_idle_connection_for_long() -> None:
    async def serve(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        writer.write(OK)
        await server.until_left(reader)

    async with serving(serve) as server:
        egress = Egress(allowed=[server.url], keepalive_s=0.05)
        await (await get(egress, server.url)).read(10)
        await asyncio.wait_for(server.left.wait(), 20)
        await egress.close()
