"""The only place that opens a socket towards an engine or the outside.

    egress = Egress(allowed=["http://10.0.0.7:8000", "https://ark.example.com/api/v3"])
    wire = await egress.open("POST", url, headers=..., body=..., timeouts=...)
    async for data in wire.chunks(): ...
    await wire.close()

What is not on the list is denied before a name is looked up. The address that a listed name
resolves to is checked and is the one that is connected to. Redirects are not followed, cookies and
proxies of the environment are not used, compressed answers are refused.

A kept connection may have been closed by the other side while it was idle. It is looked at before
it is used, and a request that met a closed socket before its first byte was written is sent once
more. One of which anything was written is never repeated here: the engine may be working on it.

No type of the HTTP client that is used inside appears in a signature.
"""

from __future__ import annotations

import asyncio
import select
import socket
import weakref
from collections.abc import AsyncIterator, Collection, Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, AbstractStreamWriter, ResolveResult
from yarl import URL

from backends.base import Billed, Failure, Fault, Kind, Timeouts
from backends.origins import EgressDenied, Origin, never_allowed, origin_of
from backends.watch import Watch

__all__ = ["Egress", "EgressDenied", "Wire"]

# One status line or header of an answer, and how many headers: what common servers allow.
HEADER_BYTES_MAX = 8190
HEADERS_MAX = 100
# Read ahead of a slow consumer per connection, before the engine is made to wait.
READ_AHEAD_BYTES = 64 * 1024
# A stream longer than this is not an answer: a token is some 300 bytes of event, so half a million.
STREAM_BYTES_MAX = 256 * 1024 * 1024
# uvicorn, which vLLM and SGLang listen with, closes an idle connection after 5 s. Letting go first
# keeps us from writing into a connection that is just being closed.
KEEPALIVE_S = 4.0
# After an answer is understood its last bytes (the end of the chunked body) may still be under way.
END_GRACE_S = 0.2
URLS_REMEMBERED_MAX = 4096


class Egress:
    """Opens calls to listed places; keeps their connections. One per process and loop."""

    def __init__(
        self,
        *,
        allowed: Collection[str],
        connections_max: int = 512,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        """`allowed`: base URLs, of which scheme, host and port count."""
        self._origins: set[Origin] = set()
        self._urls: dict[str, URL] = {}
        self._connections_max = connections_max
        self._keepalive_s = keepalive_s
        self._session: aiohttp.ClientSession | None = None
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        self._closed = False
        for base_url in allowed:
            self.allow(base_url)

    def allow(self, base_url: str) -> None:
        """Puts one more place on the list. Raises EgressDenied if it is not a plain http(s) URL."""
        self._origins.add(origin_of(base_url))

    async def open(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeouts: Timeouts,
    ) -> Wire:
        """Sends one request; returns when the head of the answer is in, whatever its status.

        Raises EgressDenied, or Failure: CONNECT (not billed) when nothing was sent; TIMEOUT_FIRST,
        TIMEOUT_TOTAL or BROKEN (perhaps billed) once something may have been. Cancelling it closes
        the connection at once.
        """
        checked = self._check(url)
        if self._closed:
            raise Failure(Kind.CONNECT, "the gateway is closing", fault=Fault.GATEWAY)
        try:
            return await self._send(method, checked, headers, body, timeouts)
        except _NotSent:
            pass
        try:
            return await self._send(method, checked, headers, body, timeouts)
        except _NotSent:
            raise Failure(Kind.CONNECT, "the connection to the engine was closed") from None

    async def close(self) -> None:
        """Closes every connection. Calls that are under way end with BROKEN."""
        self._closed = True
        for watch in tuple(self._watches):
            watch.cut()
        if self._session is not None:
            await self._session.close()

    def _check(self, url: str) -> URL:
        known = self._urls.get(url)
        if known is not None:
            return known
        origin = origin_of(url)
        if origin not in self._origins:
            raise EgressDenied("the destination is not on the list")
        parsed = URL(url, encoded=True)
        if origin_of(str(parsed.origin())) != origin:
            raise EgressDenied("the destination can be read in two ways")
        if len(self._urls) < URLS_REMEMBERED_MAX:
            self._urls[url] = parsed
        return parsed

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = _Connector(
                resolver=_Resolver(self._origins),
                limit=self._connections_max,
                keepalive_timeout=self._keepalive_s,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                read_bufsize=READ_AHEAD_BYTES,
                max_line_size=HEADER_BYTES_MAX,
                max_field_size=HEADER_BYTES_MAX,
                max_headers=HEADERS_MAX,
                skip_auto_headers=("User-Agent", "Accept"),
                headers={"Accept-Encoding": "identity"},
            )
        return self._session

    async def _send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        body: bytes | None,
        timeouts: Timeouts,
    ) -> Wire:
        watch = Watch(timeouts)
        self._watches.add(watch)
        _CURRENT.set(watch)
        try:
            response = await self._client().request(
                method,
                url,
                headers=headers,
                data=None if body is None else _Body(body, watch),
                allow_redirects=False,
                timeout=_connect_limit(min(timeouts.connect_s, timeouts.total_s)),
            )
        except aiohttp.ClientError as error:
            watch.cut()
            raise _open_failure(error, watch) from None
        except TimeoutError:
            watch.cut()
            raise _connect_failure("the engine could not be reached in time") from None
        except BaseException:
            watch.cut()  # cancelled: the engine must see it now
            raise
        watch.answered(response.close)
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            watch.cut()
            raise _broken("the engine sent a compressed answer that nobody asked for")
        return Wire(response, watch)


class Wire:
    """One answer: its head is here, its body is read by exactly one of `read` and `chunks`."""

    status: int
    headers: Mapping[str, str]  # lower-case names

    def __init__(self, response: aiohttp.ClientResponse, watch: Watch) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.headers.items()}
        self._response = response
        self._watch = watch

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises Failure: a time limit, a cut connection, or a longer body."""
        parts: list[bytes] = []
        size = 0
        async for data in self.chunks():
            size += len(data)
            if size > limit_bytes:
                self._watch.cut()
                raise _broken("the engine's answer is longer than allowed")
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises Failure: TIMEOUT_FIRST before its first byte, TIMEOUT_IDLE
        after it, TIMEOUT_TOTAL, or BROKEN when it was cut."""
        content = self._response.content
        watch = self._watch
        size = 0
        while True:
            watch.wait()
            try:
                data = await content.readany()
            except (aiohttp.ClientError, OSError):
                self._watch.cut()
                raise watch.failure() or _broken("the engine cut the answer short") from None
            except BaseException:
                watch.cut()  # cancelled: the engine must see it now
                raise
            watch.arrived()
            if not data:
                if (late := watch.failure()) is not None:
                    raise late
                watch.done()
                return
            size += len(data)
            if size > STREAM_BYTES_MAX:
                self._watch.cut()
                raise _broken("the engine's answer is longer than allowed")
            yield data

    async def end(self, grace_s: float = END_GRACE_S) -> None:
        """For a caller that has understood the whole answer: waits a moment for the end of the
        body, so that the connection can be kept, and throws away what comes. Then closes."""
        content = self._response.content
        loop = asyncio.get_running_loop()
        if not content.is_eof():
            timer = loop.call_later(grace_s, self._watch.cut)
            try:
                while await content.readany():
                    pass
            except (aiohttp.ClientError, OSError):
                pass
            finally:
                timer.cancel()
                await self.close()
        else:
            await self.close()

    async def close(self) -> None:
        """Keeps the connection when the body was received to its end, else cuts it at once."""
        if self._response.content.is_eof():
            self._watch.done()
            self._response.release()
        else:
            self._watch.cut()


class _NotSent(Exception):
    """A kept connection turned out to be closed before anything was written."""


_CURRENT: ContextVar[Watch] = ContextVar("_CURRENT")


class _Body(aiohttp.payload.Payload):
    """Bytes that note when the first of them leaves, and when the last one has."""

    def __init__(self, value: bytes, watch: Watch) -> None:
        super().__init__(value, content_type="application/json")
        self._size = len(value)
        self._watch = watch

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise NotImplementedError  # only for bodies that are shown to somebody

    async def write(self, writer: AbstractStreamWriter) -> None:
        self._watch.writing()
        await writer.write(self._value)
        self._watch.written()


class _Connector(aiohttp.TCPConnector):
    """Tells the watch of the running call which connection it got, and passes over dead ones."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._used: weakref.WeakSet[asyncio.BaseProtocol] = weakref.WeakSet()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if protocol is None or protocol not in self._used:
                break
            if not _readable(connection.transport):
                _connected(req, connection, reused=True)
                return connection
            connection.close()  # closed by the other side, or it speaks unasked: of no use
        if protocol is not None:
            self._used.add(protocol)
        _connected(req, connection, reused=False)
        return connection


class _Resolver(AbstractResolver):
    """Looks up listed names only, and gives out no address that a listed name must never mean."""

    def __init__(self, origins: set[Origin]) -> None:
        self._origins = origins

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if not any(o.host == host and o.port == port for o in self._origins):
            raise EgressDenied("the destination is not on the list")
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        results = [
            ResolveResult(
                hostname=host,
                host=str(sockaddr[0]),
                port=port,
                family=kind,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, proto, _, sockaddr in found
            if not never_allowed(str(sockaddr[0]))
        ]
        if not results:
            raise EgressDenied("the destination resolves to an address that is never allowed")
        return results

    async def close(self) -> None:
        return None


def _connected(
    req: aiohttp.ClientRequest, connection: aiohttp.connector.Connection, *, reused: bool
) -> None:
    watch = _CURRENT.get()
    watch.connected(connection, reused=reused)
    if not req.body:
        watch.writing()  # a request without a body leaves at once


def _readable(transport: asyncio.Transport | None) -> bool:
    """Whether an idle connection has something to read: its end, since nothing was asked."""
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None:
        return True
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


@lru_cache(maxsize=64)
def _connect_limit(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=seconds, ceil_threshold=3600)


def _open_failure(error: aiohttp.ClientError, watch: Watch) -> Exception:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return _connect_failure("the engine could not be reached in time")
    if isinstance(error, aiohttp.ClientConnectorError) or not watch.sent:
        if watch.reused:
            return _NotSent()
        return _connect_failure("the engine could not be reached")
    return watch.failure() or _broken("the engine closed the connection without an answer")


def _connect_failure(message: str) -> Failure:
    return Failure(Kind.CONNECT, message)


def _broken(message: str) -> Failure:
    return Failure(Kind.BROKEN, message, billed=Billed.MAYBE)
