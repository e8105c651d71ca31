"""How connections come about: names, addresses, TLS."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from backends.base import Billed, Failure, Kind
from backends.egress import Egress, EgressDenied, Wire
from tests.backends.servers import OK, PATIENT, STREAM, Reader, Server, Writer, chunk, serving

CLOSING = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


async def get(egress: Egress, url: str) -> Wire:
    return await egress.open("GET", url, headers={}, body=None, timeouts=PATIENT)


async def closes(server: Server, reader: Reader, writer: Writer) -> None:
    await server.request(reader)
    writer.write(CLOSING)


async def test_a_name_is_not_looked_up_for_every_connection_and_each_address_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0

    async with serving(closes) as server:
        port = int(server.url.rpartition(":")[2])

        async def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
            nonlocal asked  # uvloop asks it for numbers too, to read them
            asked += host == "engine.test"
            addresses = [host] if host != "engine.test" else ["127.0.0.2", "127.0.0.1"]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        egress = Egress(allowed=[f"http://engine.test:{port}"])
        for _ in range(3):
            await (await get(egress, f"http://engine.test:{port}")).read(10)
        assert (asked, server.connections) == (1, 3)
        await egress.close()


async def test_a_place_that_cannot_be_reached_is_looked_up_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0

    async def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
        nonlocal asked
        asked += host == "engine.test"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 1))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    egress = Egress(allowed=["http://engine.test:1"])
    for _ in range(2):
        with pytest.raises(Failure) as caught:
            await get(egress, "http://engine.test:1")
        assert (caught.value.kind, caught.value.billed) == (Kind.CONNECT, Billed.NO)
    assert asked == 2


async def test_an_address_that_is_never_allowed_is_refused_as_a_number_too() -> None:
    egress = Egress(allowed=["http://169.254.169.254"])
    with pytest.raises(EgressDenied):
        await get(egress, "http://169.254.169.254/latest")


# ------------------------------------------------------------ TLS


def certificate(folder: Path) -> Path:
    """Key and certificate of 127.0.0.1, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "engine")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "engine.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


@asynccontextmanager
async def serving_tls(server: Server, pem: Path) -> AsyncIterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        await asyncio.sleep(0.05)


async def test_tls_with_a_certificate_that_nobody_knows_is_connect(tmp_path: Path) -> None:
    server = Server(closes)
    async with serving_tls(server, certificate(tmp_path)) as url:
        egress = Egress(allowed=[url])
        with pytest.raises(Failure) as caught:
            await get(egress, url)
        assert (caught.value.kind, caught.value.billed) == (Kind.CONNECT, Billed.NO)
        assert server.requests == []
        await egress.close()


async def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(server: Server, reader: Reader, writer: Writer) -> None:
        for _ in range(2):
            await server.request(reader)
            writer.write(OK)
        await server.request(reader)
        writer.write(STREAM + chunk(b"data: 1\n\n"))
        await server.until_left(reader)

    pem = certificate(tmp_path)
    server = Server(serve)
    made = 0

    def context() -> ssl.SSLContext:
        nonlocal made
        made += 1
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

    monkeypatch.setattr(ssl, "create_default_context", context)
    async with serving_tls(server, pem) as url:
        egress = Egress(allowed=[url])
        egress._dialer._context().load_verify_locations(pem)
        for size in (2, 3_000_000):
            wire = await egress.open("POST", url, headers={}, body=b"x" * size, timeouts=PATIENT)
            assert await wire.read(10) == b"{}"
        stream = await get(egress, url)
        async for data in stream.chunks():
            assert data == b"data: 1\n\n"
            break
        await stream.close()
        await asyncio.wait_for(server.left.wait(), 20)
        assert [len(body) for _, body in server.requests] == [2, 3_000_000, 0]
        assert (server.connections, made) == (1, 1)
        await egress.close()
