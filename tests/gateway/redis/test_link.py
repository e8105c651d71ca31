"""The shared connection: order, timeouts, loss, repair."""

from __future__ import annotations

import asyncio
import select
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import redis
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.x509.oid import NameOID

from gateway.redis import link as module
from gateway.redis.link import (
    Bound,
    LedgerFault,
    LedgerUnavailable,
    RedisLink,
    Script,
)
from gateway.redis.target import Target, parse_url
from tests.gateway.redis_servers import RealServer
from tests.ports import free_port

PATIENCE_S = 30.0


@asynccontextmanager
async def linked(url: str, **options: Any) -> AsyncIterator[RedisLink]:
    link = await RedisLink.connect(url, **options)
    try:
        yield link
    finally:
        await link.close()


async def wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until
        await asyncio.sleep(0.01)


async def asking_again(link: RedisLink, *command: str) -> Any:
    """The answer of a link that may be about to come back."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await link.call(*command)
        except LedgerUnavailable:
            assert time.monotonic() < until
            await asyncio.sleep(0.01)


# ---- URLs


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("redis://", Target()),
        ("redis://r.example:7000/3", Target(host="r.example", port=7000, db=3)),
        ("redis://:p%40ss@[::1]:1", Target(host="::1", port=1, password="p@ss")),
        ("rediss://u:p@h", Target(host="h", tls=True, username="u", password="p")),
        ("rediss://h?ssl_ca_certs=/ca.pem", Target(host="h", tls=True, ca_file="/ca.pem")),
        ("unix:///run/v.sock?db=2&password=x", Target(path="/run/v.sock", db=2, password="x")),
        ("unix:///a%20b.sock", Target(path="/a b.sock")),
    ],
)
def test_urls(url: str, target: Target) -> None:
    assert parse_url(url) == target


@pytest.mark.parametrize(
    "url",
    ["", "http://h", "redis://h/x", "redis://h/-1", "unix://", "redis://h?protocol=3",
     "redis://:secret@h/zero", "redis://:secret@h:port", "redis://:secret@a..b/0", "redis://h:0",
     "redis://h/\u0663", "redis://h/9999999999"],
)  # fmt: skip
def test_bad_urls_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(ValueError, match=r"Redis URL|[Pp]ort") as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


def test_a_target_does_not_print_its_password() -> None:
    target = parse_url("redis://user:secret@h:1/2")
    assert "secret" not in f"{target} {target!r}"


# ---- order


async def test_replies_find_their_callers_also_when_others_were_cancelled(redis_url: str) -> None:
    async with linked(redis_url) as link:

        async def ask(n: int) -> bytes:
            reply: bytes = await link.call("ECHO", f"{n}")
            return reply

        asking = [asyncio.ensure_future(ask(n)) for n in range(600)]  # noqa: TID251
        await asyncio.sleep(0)
        for task in asking[::3]:
            task.cancel()
        found = await asyncio.gather(*asking, return_exceptions=True)
        for n, reply in enumerate(found):
            if n % 3:
                assert reply == f"{n}".encode()
            else:
                assert isinstance(reply, asyncio.CancelledError)
        assert await link.call("ECHO", "end") == b"end"


async def test_an_error_belongs_to_its_command_only(redis_url: str) -> None:
    async with linked(redis_url) as link:
        calls = [link.call("SET", "k", "v"), link.call("INCR", "k"), link.call("GET", "k")]
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert (found[0], found[2]) == (b"OK", b"v")
        assert isinstance(found[1], LedgerFault)


async def test_a_forgotten_script_is_sent_again_in_full(redis_url: str) -> None:
    script = Script("return {KEYS[1], ARGV[1]}")
    async with linked(redis_url, scripts=(script,)) as link:
        assert await link.run(Bound(script, ("k",)), 1) == [b"k", b"1"]
        await link.call("SCRIPT", "FLUSH")
        asked = [link.run(Bound(script, ("k",)), n) for n in range(3)]
        asked.insert(1, link.call("ECHO", "between"))
        assert await asyncio.gather(*asked) == [
            [b"k", b"0"],
            b"between",
            [b"k", b"1"],
            [b"k", b"2"],
        ]
        assert await link.call("SCRIPT", "EXISTS", script.sha) == [1]


# ---- connecting


async def test_password_and_database(own_server: Callable[..., RealServer]) -> None:
    server = own_server("--requirepass", "s3cret")
    for good in (
        f"{server.url}?db=3&password=s3cret",
        f"unix://default:s3cret@{server.socket}?db=3",
    ):
        async with linked(good) as link:
            await link.call("SET", "here", "1")
            assert "db=3" in (await link.call("CLIENT", "INFO")).decode()
    for bad in (f"{server.url}?password=wrong", server.url):
        with pytest.raises(LedgerUnavailable) as caught:
            await RedisLink.connect(bad)
        assert not caught.value.ambiguous
        assert "=wrong" not in str(caught.value)


async def test_over_tcp(own_server: Callable[..., RealServer]) -> None:
    server, port = own_server(), free_port()
    with server.client() as client:
        client.config_set("port", port)
    async with linked(f"redis://127.0.0.1:{port}/1") as link:
        assert await link.call("PING") == b"PONG"


async def test_nobody_there() -> None:
    for url in ("unix:///nowhere/at/all.sock", "redis://127.0.0.1:1"):
        with pytest.raises(LedgerUnavailable, match="cannot be used") as caught:
            await RedisLink.connect(url)
        assert not caught.value.ambiguous


@asynccontextmanager
async def server_that_says(
    path: str, *replies: bytes
) -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """Answers the n-th command with the n-th reply, the last one for ever after."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        left = list(replies)
        with suppress(OSError):
            while await reader.read(65_536):
                writer.write(left.pop(0) if len(left) > 1 else left[0])
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield f"unix://{path}", writers
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()


async def test_a_server_that_still_reads_its_books_is_unavailable(tmp_path: Any) -> None:
    async with server_that_says(f"{tmp_path}/s", b"-LOADING Redis is loading\r\n") as (url, _):
        with pytest.raises(LedgerUnavailable, match="LOADING") as caught:
            await RedisLink.connect(url)
        assert not caught.value.ambiguous


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+A\r\n+B\r\n"])
async def test_nonsense_ends_the_connection(tmp_path: Any, nonsense: bytes) -> None:
    """A reply that cannot be read, or one too many: after it no order can be trusted."""
    async with server_that_says(f"{tmp_path}/s", b"+PONG\r\n", nonsense, b"+C\r\n") as (url, made):
        async with linked(url) as link:
            if nonsense.startswith(b"+"):
                assert await link.call("X") == b"A"
            else:
                with pytest.raises(LedgerUnavailable) as caught:
                    await link.call("X")
                assert caught.value.ambiguous
            await wait_until(lambda: len(made) == 2)  # it came back


def certificate_for_localhost(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate that signs itself, as files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "books")])
    address = x509.IPAddress(IPv4Address("127.0.0.1"))
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "key.pem", folder / "certificate.pem"
    paths[0].write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    paths[1].write_bytes(certificate.public_bytes(Encoding.PEM))
    return paths


async def test_tls_is_verified(tmp_path: Path) -> None:
    key, certificate = certificate_for_localhost(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            writer.write(b"+PONG\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        url = f"rediss://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with linked(f"{url}?ssl_ca_certs={certificate}") as link:
            assert await link.call("PING") == b"PONG"
        with pytest.raises(LedgerUnavailable, match="certificate"):
            await RedisLink.connect(url)


# ---- trouble


async def test_a_silent_server(own_server: Callable[..., RealServer]) -> None:
    server = own_server()
    async with linked(server.url, call_timeout_s=0.4) as link:
        server.signal(signal.SIGSTOP)
        found = await asyncio.gather(
            link.call("ECHO", "late"), link.call("ECHO", "too"), return_exceptions=True
        )
        for error in found:
            assert isinstance(error, LedgerUnavailable)
            assert error.ambiguous
            assert "did not answer in time" in str(error)  # the connection is kept for now
        with pytest.raises(LedgerUnavailable, match="does not answer at present") as refused:
            link.call("ECHO", "at once")  # refused without waiting: others wait already
        assert not refused.value.ambiguous
        server.signal(signal.SIGCONT)  # the late replies come now and are nobody's
        await wait_until(lambda: link.ready)
        assert await asking_again(link, "ECHO", "in time") == b"in time"

        server.signal(signal.SIGSTOP)  # this time for longer: the connection is given up
        with pytest.raises(LedgerUnavailable):
            await link.call("ECHO", "late")
        await wait_until(lambda: not link.up)
        with pytest.raises(LedgerUnavailable) as caught:
            await link.call("PING")
        assert not caught.value.ambiguous
        server.signal(signal.SIGCONT)
        assert await asking_again(link, "PING") == b"PONG"


def test_a_loop_that_stood_still_does_not_blame_redis(
    own_server: Callable[..., RealServer],
) -> None:
    """uvloop runs timers before it reads: a reply that is there already must still count."""
    server = own_server()
    here, there = socket.socketpair()
    call_timeout_s = 0.4

    async def stall() -> None:
        async with linked(server.url, call_timeout_s=call_timeout_s) as link:
            assert link._wire is not None
            assert link._wire._transport is not None
            wire = link._wire._transport.get_extra_info("socket")

            def stand_still() -> None:
                here.recv(1)
                server.signal(signal.SIGCONT)  # the reply comes while nobody reads
                assert select.select([wire], [], [], PATIENCE_S)[0]
                time.sleep(2 * call_timeout_s)

            asyncio.get_running_loop().add_reader(here, stand_still)
            server.signal(signal.SIGSTOP)
            waiting = link.call("PING")
            await asyncio.sleep(0)
            there.send(b"!")
            assert await waiting == b"PONG"
            asyncio.get_running_loop().remove_reader(here)

    with here, there, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(stall())


async def test_a_killed_server(
    own_server: Callable[..., RealServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses_s: list[float] = []  # at most so long before each attempt to come back

    def jitter(least_s: float, most_s: float) -> float:
        pauses_s.append(most_s)
        return most_s

    monkeypatch.setattr(module.random, "uniform", jitter)
    server = own_server()
    script = Script("return 7")
    async with linked(server.url, scripts=(script,)) as link:
        server.signal(signal.SIGSTOP)
        waiting = [link.run(Bound(script, ())) for _ in range(3)]
        await asyncio.sleep(0.02)
        server.kill()
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, LedgerUnavailable)
            assert error.ambiguous
        await wait_until(lambda: len(pauses_s) >= 3)  # it has been looked for in vain
        server.start()
        await wait_until(lambda: link.up)
        assert max(pauses_s) <= 2.0
        assert await link.run(Bound(script, ())) == 7


async def test_refusals_are_not_ambiguous(own_server: Callable[..., RealServer]) -> None:
    server = own_server()
    script = Script("return redis.call('SET', KEYS[1], ARGV[1])")
    async with linked(server.url, scripts=(script,)) as link:
        with server.client() as client:
            before = await link.call("CLIENT", "ID")
            client.config_set("maxmemory", 1)
            with pytest.raises(LedgerUnavailable, match="OOM") as caught:
                await link.run(Bound(script, ("k",)), "v")
            assert not caught.value.ambiguous
            client.config_set("maxmemory", 0)
            client.replicaof("127.0.0.1", "1")
            with pytest.raises(LedgerUnavailable, match="READONLY") as caught:
                await link.run(Bound(script, ("k",)), "v")
            assert not caught.value.ambiguous
            assert client.get("k") is None
            client.replicaof("NO", "ONE")
        assert await asking_again(link, "CLIENT", "ID") != before  # it looked for the new primary
        assert await link.run(Bound(script, ("k",)), "v") == b"OK"


async def test_no_more_than_so_many_wait(
    own_server: Callable[..., RealServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IN_FLIGHT_MAX", 5)
    server = own_server()
    async with linked(server.url) as link:
        server.signal(signal.SIGSTOP)
        waiting = [link.call("PING") for _ in range(5)]
        with pytest.raises(LedgerUnavailable, match="too many") as caught:
            link.call("PING")
        assert not caught.value.ambiguous
        server.signal(signal.SIGCONT)
        assert await asyncio.gather(*waiting) == [b"PONG"] * 5


async def test_closed_is_closed(valkey_url: str) -> None:
    link = await RedisLink.connect(valkey_url)
    waiting = link.call("PING")
    await link.close()
    await link.close()
    with pytest.raises(LedgerUnavailable):
        await waiting
    with pytest.raises(LedgerUnavailable):
        link.call("PING")
    with redis.Redis.from_url(valkey_url) as client:
        assert len(client.client_list()) == 1
