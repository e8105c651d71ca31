"""The way out: what it denies, how each kind of broken engine ends, and that cutting is at once."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgspec
import pytest
import uvloop

from backends.base import Billed, Failure, Fault, Kind, Timeouts
from backends.egress import HEADER_BYTES_MAX, Egress, EgressDenied, Wire
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
from tests.ports import free_port

JSON = {"content-type": "application/json"}


class Sentinel:
    """Sees every socket and every name look-up of this process. A hook can never be taken off."""

    def __init__(self) -> None:
        self._seen: list[str] | None = None
        sys.addaudithook(self._hook)

    def _hook(self, name: str, _: object) -> None:
        if self._seen is not None and name.startswith("socket."):
            self._seen.append(name)

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        seen: list[str] = []
        self._seen = seen
        yield seen
        self._seen = None


SENTINEL = Sentinel()


async def test_the_loop_is_the_one_meant(request: pytest.FixtureRequest) -> None:
    meant = "uvloop" in request.node.name
    assert isinstance(asyncio.get_running_loop(), uvloop.Loop) is meant


@pytest.fixture
async def egress() -> AsyncIterator[Egress]:
    out = Egress(allowed=[])
    yield out
    await out.close()
    await asyncio.sleep(0)


async def post(egress: Egress, server: Server, body: bytes = b"{}", **limits: float) -> Wire:
    egress.allow(server.url)
    timeouts = msgspec.structs.replace(PATIENT, **limits)
    return await egress.open("POST", server.url + "/x", headers=JSON, body=body, timeouts=timeouts)


async def failing(awaited: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        await awaited
    return caught.value


async def collect(wire: Wire, into: list[bytes]) -> None:
    async for data in wire.chunks():
        into.append(data)


async def drained(wire: Wire) -> bytes:
    got: list[bytes] = []
    await collect(wire, got)
    return b"".join(got)


async def answered(egress: Egress, server: Server, **limits: float) -> bytes:
    """A whole answer: on a busy machine a short limit may end it at any point of it."""
    return await drained(await post(egress, server, **limits))


async def answer_each(server: Server, reader: Reader, writer: Writer) -> None:
    while True:
        await server.request(reader)
        writer.write(OK)


async def test_an_answer_and_its_connection_is_kept(egress: Egress) -> None:
    async with serving(answer_each) as server:
        for body in (b"{}", b"x" * 3_000_000):
            wire = await post(egress, server, body)
            assert wire.status == 200
            assert wire.headers["content-type"] == "application/json"
            assert await wire.read(100) == b"{}"
            await wire.close()
        assert [len(b) for _, b in server.requests] == [2, 3_000_000]
        assert server.connections == 1


def has_ipv6() -> bool:
    """Containers often have no ::1, whatever the kernel knows."""
    with suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
async def test_ipv6(egress: Egress) -> None:
    async with serving(answer_each, "::1") as server:
        wire = await post(egress, server)
        assert await wire.read(10) == b"{}"
        await wire.close()


async def test_only_what_was_given_is_sent(egress: Egress) -> None:
    async with serving(answer_each) as server:
        await (await post(egress, server)).read(10)
        head = server.requests[0][0].lower()
        names = sorted(line.split(b":")[0] for line in head.strip().split(b"\r\n")[1:])
        assert names == [b"accept-encoding", b"content-length", b"content-type", b"host"]
        assert b"accept-encoding: identity" in head


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{other}/x",
        "https://127.0.0.1:{port}/x",
        "http://127.1:{port}/x",
        "http://2130706433:{port}/x",
        "http://0x7f.1:{port}/x",
        "http://0177.0.0.1:{port}/x",
        "http://127.0.0.1.:{port}/x",
        "http://①②⑦.⓪.⓪.①:{port}/x",
        "http://[::ffff:127.0.0.1]:{port}/x",
        "http://user@127.0.0.1:{port}/x",
        "http://127.0.0.1:{port}@evil.test/x",
        "http://127.0.0.1:{port}\\@evil.test/x",
        "http://127.0.0.1:{port}#@evil.test/x",
        "http://127.0.0.1:{port}/x\r\nhost: evil",
        "http://127.0.0.1:{port}/x y",
        "http://localhost:{port}/x",
        "http://169.254.169.254/latest",
        "http://metadata.test/latest",
        "file:///etc/passwd",
        "ftp://127.0.0.1:{port}/x",
        "//127.0.0.1:{port}/x",
        "http:127.0.0.1:{port}/x",
        "http://:{port}/x",
        "http://127.0.0.1:99999/x",
        "http://127.0.0.1:0/x",
        "http://[::1/x",
        "http://[1.2.3]/x",
        "",
    ],
)
async def test_a_denied_url_opens_no_socket(egress: Egress, url: str) -> None:
    async with serving(answer_each) as server:
        egress.allow(server.url + "/api/v3")
        port = int(server.url.rpartition(":")[2])
        place = url.format(port=port, other=port % 60000 + 1)
        with SENTINEL.watching() as seen, pytest.raises(EgressDenied):
            await egress.open("GET", place, headers={}, body=None, timeouts=PATIENT)
        assert seen == []
        with SENTINEL.watching() as seen:  # and the sentinel is not blind
            await (await post(egress, server)).close()
        assert "socket.connect" in seen or "socket.__new__" in seen
        assert server.connections == 1


async def test_a_place_that_several_need_is_on_the_list_until_the_last_has_left(
    egress: Egress,
) -> None:
    async def ask(url: str) -> None:
        wire = await egress.open("GET", url + "/", headers={}, body=None, timeouts=PATIENT)
        await wire.close()

    async with serving(answer_each) as server:
        egress.allow(server.url)
        egress.allow(server.url + "/x")
        for _ in range(2):
            await ask(server.url)
            egress.forget(server.url + "/x")
        for _ in range(2):
            with pytest.raises(EgressDenied):
                await ask(server.url)
            egress.forget(server.url)  # once too often leaves no debt
        egress.allow(server.url)
        await ask(server.url)


@pytest.mark.parametrize("url", ["ftp://a", "http://a b", "a:80", "http://u@a", "http://a\\b"])
def test_such_a_place_cannot_be_listed(url: str) -> None:
    with pytest.raises(EgressDenied):
        Egress(allowed=[url])


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
     "2002:a9fe:a9fe::", "0.0.0.0", "::", "224.0.0.1", "ff02::1"],  # noqa: S104 - a DNS answer
)  # fmt: skip
async def test_a_listed_name_never_means_the_metadata_service(
    egress: Egress, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, 80))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    egress.allow("http://engine.test")
    with pytest.raises(EgressDenied):
        await egress.open("GET", "http://engine.test/x", headers={}, body=None, timeouts=PATIENT)


async def test_the_checked_address_is_the_one_connected_to(
    egress: Egress, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async with serving(answer_each) as server:
        port = int(server.url.rpartition(":")[2])

        async def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
            nonlocal asked
            asked += host == "engine.test"
            address = "127.0.0.1" if asked == 1 else "169.254.169.254"  # it rebinds
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        egress.allow(f"http://engine.test:{port}")
        wire = await egress.open(
            "GET", f"http://engine.test:{port}/x", headers={}, body=None, timeouts=PATIENT
        )
        assert await wire.read(10) == b"{}"
        assert asked == 1
        assert b"host: engine.test" in server.requests[0][0].lower()


async def test_a_redirect_is_an_answer_and_not_followed(egress: Egress) -> None:
    async with serving(answer_each) as target:

        async def redirect(server: Server, reader: Reader, writer: Writer) -> None:
            await server.request(reader)
            place = target.url.encode()
            writer.write(b"HTTP/1.1 307 x\r\nlocation: %s/x\r\ncontent-length: 0\r\n\r\n" % place)

        async with serving(redirect) as server:
            egress.allow(target.url)
            wire = await post(egress, server)
            assert wire.status == 307
            await wire.close()
        assert target.connections == 0


async def test_refused_is_connect_and_costs_nothing(egress: Egress) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    egress.allow(url)
    failure = await failing(egress.open("POST", url, headers=JSON, body=b"{}", timeouts=PATIENT))
    assert (failure.kind, failure.billed) == (Kind.CONNECT, Billed.NO)
    assert "127" not in failure.message


async def test_no_room_in_the_pool_is_connect_too() -> None:
    async def silent(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        await server.until_left(reader)

    async with serving(silent) as server:
        narrow = Egress(allowed=[server.url], connections_max=1)
        first = asyncio.ensure_future(post(narrow, server))  # noqa: TID251 - awaited below
        await until(lambda: server.connections == 1)
        failure = await failing(post(narrow, server, connect_s=0.05))
        assert (failure.kind, failure.billed) == (Kind.CONNECT, Billed.NO)
        assert failure.fault is Fault.GATEWAY  # the engine has not been asked
        first.cancel()
        await asyncio.wait([first])
        await narrow.close()


async def test_silence_is_timeout_first(egress: Egress) -> None:
    async def silent(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        await server.until_left(reader)

    async with serving(silent) as server:
        failure = await failing(post(egress, server, first_s=0.1))
        assert (failure.kind, failure.billed) == (Kind.TIMEOUT_FIRST, Billed.MAYBE)
        await asyncio.wait_for(server.left.wait(), 20)


async def test_a_head_and_then_silence_is_timeout_first_too(egress: Egress) -> None:
    async def head_only(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        writer.write(STREAM)
        await server.until_left(reader)

    async with serving(head_only) as server:
        failure = await failing(answered(egress, server, first_s=0.1, idle_s=0.01))
        assert (failure.kind, failure.billed) == (Kind.TIMEOUT_FIRST, Billed.MAYBE)


async def test_a_stall_is_timeout_idle(egress: Egress) -> None:
    async def stall(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        writer.write(STREAM + chunk(b"data: 1\n\n"))
        await server.until_left(reader)

    async with serving(stall) as server:
        wire = await post(egress, server, idle_s=0.1)
        got: list[bytes] = []
        failure = await failing(collect(wire, got))
        assert got == [b"data: 1\n\n"]
        assert (failure.kind, failure.billed) == (Kind.TIMEOUT_IDLE, Billed.MAYBE)
        await asyncio.wait_for(server.left.wait(), 20)


async def drip(server: Server, reader: Reader, writer: Writer) -> None:
    await server.request(reader)
    writer.write(STREAM)
    while not writer.is_closing():
        writer.write(chunk(b"x"))
        await writer.drain()
        await asyncio.sleep(0.02)
    server.left.set()


async def test_a_drip_outlives_the_idle_limit_and_is_cut_by_the_total(egress: Egress) -> None:
    async with serving(drip) as server:
        failure = await failing(answered(egress, server, idle_s=20, total_s=0.4))
        assert (failure.kind, failure.billed) == (Kind.TIMEOUT_TOTAL, Billed.MAYBE)


async def test_a_slow_reader_is_not_the_engines_silence(egress: Egress) -> None:
    async def two(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        writer.write(STREAM + chunk(b"1"))
        await asyncio.sleep(0.05)
        writer.write(chunk(b"2") + chunk(b""))
        await server.until_left(reader)

    async with serving(two) as server:
        wire = await post(egress, server, idle_s=0.2)
        got = []
        async for data in wire.chunks():
            got.append(data)
            await asyncio.sleep(0.5)
        assert b"".join(got) == b"12"
        await wire.close()


@pytest.mark.parametrize(
    "answer",
    [
        STREAM + chunk(b"data: 1\n\n"),
        STREAM + b"5\r\nab",
        STREAM + b"zz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
    ],
)
async def test_a_cut_body_is_broken(egress: Egress, answer: bytes) -> None:
    async def cut(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        writer.write(answer)

    async with serving(cut) as server:
        failure = await failing(answered(egress, server))
        assert (failure.kind, failure.billed) == (Kind.BROKEN, Billed.MAYBE)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * (HEADER_BYTES_MAX + 100) + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 2000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nabc",
    ],
)
async def test_a_head_that_is_no_head_is_broken(egress: Egress, answer: bytes) -> None:
    async def speak(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        writer.write(answer)

    async with serving(speak) as server:
        failure = await failing(post(egress, server))
        assert (failure.kind, failure.billed) == (Kind.BROKEN, Billed.MAYBE)


async def test_a_body_above_the_limit_is_broken(egress: Egress) -> None:
    async def big(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        writer.write(STREAM + chunk(b"x" * 50_000))
        await server.until_left(reader)

    async with serving(big) as server:
        wire = await post(egress, server)
        assert (await failing(wire.read(40_000))).kind is Kind.BROKEN
        await asyncio.wait_for(server.left.wait(), 20)


async def test_cancelling_while_the_engine_thinks_closes_its_socket(egress: Egress) -> None:
    async def silent(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        await server.until_left(reader)

    async with serving(silent) as server:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(post(egress, server))
            await until(lambda: bool(server.requests))
            task.cancel()
        await asyncio.wait_for(server.left.wait(), 20)


async def test_cancelling_an_upload_that_nobody_reads_closes_its_socket(egress: Egress) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()
    received = 0

    async def deaf(server: Server, reader: Reader, writer: Writer) -> None:
        nonlocal received
        await reader.readuntil(b"\r\n\r\n")
        began.set()
        await cancelled.wait()
        try:
            while data := await reader.read(1_000_000):
                received += len(data)
        finally:
            server.left.set()

    async with serving(deaf) as server:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(post(egress, server, b"x" * 30_000_000))
            await began.wait()
            task.cancel()
        cancelled.set()
        await asyncio.wait_for(server.left.wait(), 20)
        assert received < 30_000_000  # what stood in our buffers was not sent after all


async def test_cancelling_a_stream_closes_its_socket(egress: Egress) -> None:
    async with serving(drip) as server:
        wire = await post(egress, server)
        started = asyncio.Event()

        async def relay() -> None:
            async for _ in wire.chunks():
                started.set()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(relay())
            await started.wait()
            task.cancel()
        await until(server.left.is_set)


async def test_closing_an_unfinished_answer_cuts_it(egress: Egress) -> None:
    async with serving(drip) as server:
        wire = await post(egress, server)
        async for _ in wire.chunks():
            break
        await wire.close()
        await until(server.left.is_set)


async def test_end_waits_a_moment_so_that_the_connection_is_kept(egress: Egress) -> None:
    async def late_end(server: Server, reader: Reader, writer: Writer) -> None:
        while True:
            await server.request(reader)
            writer.write(STREAM + chunk(b"data: [DONE]\n\n"))
            await asyncio.sleep(0.02)
            writer.write(chunk(b""))

    async with serving(late_end) as server:
        for _ in range(3):
            wire = await post(egress, server)
            async for _data in wire.chunks():
                break
            await wire.end(grace_s=20)
        assert server.connections == 1


async def test_end_does_not_wait_for_ever(egress: Egress) -> None:
    async with serving(drip) as server:
        wire = await post(egress, server)
        await wire.end(grace_s=0.05)
        await until(server.left.is_set)


async def test_a_connection_that_died_while_idle_is_replaced(egress: Egress) -> None:
    async def once(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        writer.write(OK)
        await writer.drain()

    async with serving(once) as server:
        for _ in range(5):
            wire = await post(egress, server)
            assert await wire.read(10) == b"{}"
            await wire.close()
        assert server.connections == len(server.requests) == 5


async def test_a_request_that_was_written_is_never_sent_twice(egress: Egress) -> None:
    async def second_dies(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        writer.write(OK)
        await server.request(reader)  # read, perhaps worked on, never answered

    async with serving(second_dies) as server:
        wire = await post(egress, server)
        await wire.read(10)
        failure = await failing(post(egress, server))
        assert (failure.kind, failure.billed) == (Kind.BROKEN, Billed.MAYBE)
        assert len(server.requests) == 2
        assert server.connections == 1


async def test_the_end_of_one_call_never_cuts_the_next_on_its_connection(egress: Egress) -> None:
    async with serving(answer_each) as server:
        first = await post(egress, server)
        assert await first.read(10) == b"{}"
        second = await post(egress, server)  # on the same connection
        await first.close()
        first._exchange.cut()
        assert await second.read(10) == b"{}"
        assert server.connections == 1


async def test_closed_egress(egress: Egress) -> None:
    async with serving(answer_each) as server:
        await egress.close()
        assert (await failing(post(egress, server))).kind is Kind.CONNECT


async def test_limits_are_four_and_all_set() -> None:
    with pytest.raises(TypeError):
        Timeouts(connect_s=1, first_s=1, idle_s=1)  # type: ignore[call-arg]


async def test_a_refusal_before_the_upload_is_read_is_an_answer(egress: Egress) -> None:
    async def full(server: Server, reader: Reader, writer: Writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        server.requests.append((head, b""))
        writer.write(b"HTTP/1.1 503 x\r\ncontent-length: 4\r\n\r\nfull")
        await server.until_left(reader)

    async with serving(full) as server:
        for number in (1, 2):
            wire = await post(egress, server, b"x" * 30_000_000)
            assert (wire.status, await wire.read(10)) == (503, b"full")
            await wire.close()
            assert server.connections == number  # half of a request stands on the first one


async def test_closing_the_egress_ends_what_is_under_way(egress: Egress) -> None:
    async def quiet(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        writer.write(STREAM + chunk(b"data: 1\n\n"))
        await server.until_left(reader)

    async with serving(quiet) as server:
        wire = await post(egress, server)
        got: list[bytes] = []

        async def close_soon() -> None:
            await until(lambda: bool(got))
            await egress.close()

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(close_soon())
            failure = await failing(collect(wire, got))
        assert failure.kind is Kind.BROKEN
        await asyncio.wait_for(server.left.wait(), 20)


async def test_a_forgotten_answer_is_cut_by_its_time_limit(egress: Egress) -> None:
    async with serving(drip) as server:
        with suppress(Failure):  # on a busy machine it ends before it is there to be forgotten
            await post(egress, server, total_s=0.4)
        await asyncio.wait_for(server.left.wait(), 20)


async def test_no_tls_where_tls_is_asked_for_is_connect(egress: Egress) -> None:
    async def plain(server: Server, reader: Reader, writer: Writer) -> None:
        writer.write(b"HTTP/1.1 400 x\r\ncontent-length: 0\r\n\r\n")
        await server.until_left(reader)

    async with serving(plain) as server:
        url = server.url.replace("http:", "https:")
        egress.allow(url)
        failure = await failing(
            egress.open("POST", url, headers=JSON, body=b"{}", timeouts=PATIENT)
        )
        assert (failure.kind, failure.billed) == (Kind.CONNECT, Billed.NO)


async def test_a_name_that_does_not_resolve_is_connect(
    egress: Egress, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    egress.allow("http://engine.test")
    failure = await failing(
        egress.open("POST", "http://engine.test/x", headers=JSON, body=b"{}", timeouts=PATIENT)
    )
    assert (failure.kind, failure.billed) == (Kind.CONNECT, Billed.NO)
    assert "engine.test" not in failure.message


async def test_an_engine_that_is_given_up_ends_what_waits_for_it_and_leaves_what_has_begun() -> (
    None
):
    async def half(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        if b"/begun" in server.requests[-1][0]:
            writer.write(STREAM + chunk(b"a"))
        await server.until_left(reader)

    async with serving(half) as server:
        egress = Egress(allowed=[server.url])
        begun = await egress.open(
            "POST", server.url + "/begun", headers={}, body=b"", timeouts=PATIENT
        )
        chunks = begun.chunks()
        assert await anext(chunks) == b"a"
        waiting = asyncio.ensure_future(  # noqa: TID251 - awaited below
            egress.open("POST", server.url, headers={}, body=b"", timeouts=PATIENT)
        )
        await until(lambda: len(server.requests) == 2)
        egress.abandon("http://127.0.0.1:1")  # somebody else
        await asyncio.sleep(0.05)
        assert not waiting.done()
        egress.abandon(server.url)
        with pytest.raises(Failure) as failed:
            await waiting
        assert failed.value.kind is Kind.BROKEN
        assert begun.status == 200
        left = asyncio.ensure_future(anext(chunks))  # noqa: TID251
        await asyncio.sleep(0.05)
        assert not left.done()
        await egress.close()
        with pytest.raises(Failure):
            await left


async def test_a_place_that_is_forgotten_is_denied_again() -> None:
    egress = Egress(allowed=["http://127.0.0.1:1"])
    with pytest.raises(Failure):
        await egress.open("GET", "http://127.0.0.1:1/", headers={}, body=None, timeouts=PATIENT)
    egress.forget("http://127.0.0.1:1")
    with pytest.raises(EgressDenied):
        await egress.open("GET", "http://127.0.0.1:1/", headers={}, body=None, timeouts=PATIENT)
    await egress.close()
