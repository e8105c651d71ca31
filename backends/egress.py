"""The only place that opens a socket towards an engine or the outside.

    egress = Egress(allowed=["http://10.0.0.7:8000", "https://ark.example.com/api/v3"])
    wire = await egress.open("POST", url, headers=..., body=..., timeouts=...)
    async for data in wire.chunks(): ...
    await wire.close()

What is not on the list is denied before a name is looked up. The address that a listed name
resolves to is checked and is the one that is connected to. Redirects are not followed, cookies and
proxies of the environment are not used, compressed answers are refused.

A kept connection may have been closed by the other side while it was idle. It is looked at in the
same turn of the loop in which it is written to; of several, the dead ones are passed over. A
request of which anything was written is never repeated here: the engine may be working on it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping
from functools import partial

from backends.base import Billed, Failure, Fault, Kind, Timeouts
from backends.dial import Dialer
from backends.http1 import HEADER_BYTES_MAX, Connection, Exchange
from backends.origins import EgressDenied, Origin, origin_of, read_url

__all__ = ["HEADER_BYTES_MAX", "Egress", "EgressDenied", "Wire"]

# uvicorn, which vLLM and SGLang listen with, closes an idle connection after 5 s. Letting go first
# keeps us from writing into a connection that is just being closed.
KEEPALIVE_S = 4.0
# After an answer is understood its last bytes (the end of the chunked body) may still be under way.
END_GRACE_S = 0.2
URLS_REMEMBERED_MAX = 4096

# What frames a message is said here and nowhere else: one that has two lengths is two requests.
_OURS = frozenset(("host", "connection", "content-length", "transfer-encoding", "expect"))
_PORTS = {"http": 80, "https": 443}
_TOO_LONG = "the engine's answer is longer than allowed"


class Egress:
    """Opens calls to listed places; keeps their connections. One per process and loop."""

    def __init__(
        self,
        *,
        allowed: Collection[str],
        connections_max: int = 512,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        """`allowed`: base URLs, of which scheme, host and port count. `connections_max`: calls at
        once; more of them wait for one to end."""
        self._origins: Counter[Origin] = Counter()  # how often each was allowed
        self._places: dict[str, tuple[Origin, str]] = {}
        self._dialer = Dialer()
        self._connections_max = connections_max
        self._keepalive_s = keepalive_s
        self._slots = asyncio.Semaphore(connections_max)  # a call holds one from before its dial
        self._held = 0
        self._busy: dict[Connection, Origin] = {}
        self._idle: dict[Origin, list[Connection]] = {}  # the one used last is at the end
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        for base_url in allowed:
            self.allow(base_url)

    def allow(self, base_url: str) -> None:
        """Puts one more place on the list. An origin that several need is on it until each of them
        has forgotten it. Raises EgressDenied if it is not a plain http(s) URL."""
        self._origins[origin_of(base_url)] += 1

    def forget(self, base_url: str) -> None:
        """Takes back one `allow`; with the last one the place is off the list. Calls that are under
        way there go on to their end."""
        origin = origin_of(base_url)
        self._origins[origin] -= 1
        if self._origins[origin] > 0:
            return
        del self._origins[origin]
        self._places = {url: place for url, place in self._places.items() if place[0] != origin}

    def abandon(self, base_url: str) -> None:
        """The engine there is gone or hangs: calls that have not received a byte of their answer's
        body end with BROKEN now instead of at their time limit."""
        origin = origin_of(base_url)
        for connection, place in tuple(self._busy.items()):
            if place == origin:
                connection.abandon()

    async def addresses(self, base_url: str) -> list[str]:
        """Every address of a listed name now. Raises OSError when it cannot be looked up, and
        EgressDenied."""
        origin = origin_of(base_url)
        if origin not in self._origins:
            raise EgressDenied("the destination is not on the list")
        try:
            return await self._dialer.resolve(origin)
        except UnicodeError as error:
            raise OSError("a name that cannot be one") from error

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
        TIMEOUT_TOTAL or BROKEN (perhaps billed) once something may have been; ValueError for
        headers that would break the request. Cancelling it closes the connection at once.
        """
        origin, place = self._places.get(url) or self._check(url)
        head = _head_of(method, place, headers, body)
        began_s = asyncio.get_running_loop().time()
        connection = await self._connection(origin, min(timeouts.connect_s, timeouts.total_s))
        self._busy[connection] = origin
        exchange = connection.send(
            head, body, times=timeouts, began_s=began_s, bodiless=method == "HEAD"
        )
        await exchange.head()
        return Wire(exchange)

    async def close(self) -> None:
        """Closes every connection. Calls that are under way end with BROKEN."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in (*self._busy, *(c for idle in self._idle.values() for c in idle)):
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # the loop closes the sockets in its next turn

    def _check(self, url: str) -> tuple[Origin, str]:
        origin, target = read_url(url)
        if origin not in self._origins:
            raise EgressDenied("the destination is not on the list")
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        if origin.port != _PORTS[origin.scheme]:
            host = f"{host}:{origin.port}"
        place = f"{target} HTTP/1.1\r\nhost: {host}\r\n"
        if len(self._places) < URLS_REMEMBERED_MAX:
            self._places[url] = origin, place
        return origin, place

    def _check_open(self) -> None:
        if self._closed:
            raise Failure(Kind.CONNECT, "the gateway is closing", fault=Fault.GATEWAY)

    async def _connection(self, origin: Origin, limit_s: float) -> Connection:
        """A connection that can be written to now, and a slot for it. Raises Failure(CONNECT)."""
        self._check_open()
        if not self._slots.locked() and (kept := self._kept(origin)) is not None:
            await self._slots.acquire()  # there is one: this does not wait
            self._held += 1
            return kept
        until_s = asyncio.get_running_loop().time() + limit_s
        try:
            async with asyncio.timeout_at(until_s):
                await self._slots.acquire()
        except TimeoutError:
            text = "the gateway has no connection left for this call"
            raise Failure(Kind.CONNECT, text, fault=Fault.GATEWAY) from None
        self._held += 1
        try:
            async with asyncio.timeout_at(until_s):
                try:
                    return self._kept(origin) or await self._dial(origin, limit_s)
                except BaseException:
                    self._release_slot()
                    raise
        except TimeoutError:
            raise Failure(Kind.CONNECT, "the engine could not be reached in time") from None
        except (OSError, UnicodeError):  # the latter: a name that cannot be one
            raise Failure(Kind.CONNECT, "the engine could not be reached") from None

    def _kept(self, origin: Origin) -> Connection | None:
        idle = self._idle.get(origin)
        if not idle:
            return None
        since_s = asyncio.get_running_loop().time() - self._keepalive_s
        while idle:
            connection = idle.pop()
            if connection.idle_since_s > since_s and connection.usable():
                return connection
            connection.close()
        return None

    async def _dial(self, origin: Origin, limit_s: float) -> Connection:
        self._check_open()  # again: it may have been closed while this call waited for its slot
        if self._held + sum(map(len, self._idle.values())) > self._connections_max:
            kept = [idle for idle in self._idle.values() if idle]
            min(kept, key=lambda idle: idle[0].idle_since_s).pop(0).close()
        make = partial(Connection, partial(self._freed, origin))
        for _ in range(2):  # one that is closed as soon as it stands is replaced once
            connection = await self._dialer.connect(origin, make, limit_s=limit_s)
            if not self._closed and connection.usable():
                return connection
            connection.close()
            self._check_open()
        raise Failure(Kind.CONNECT, "the connection to the engine was closed")

    def _freed(self, origin: Origin, connection: Connection, keep: bool) -> None:
        """A call is over; keep: its connection may carry another one."""
        self._busy.pop(connection, None)
        self._release_slot()
        if not keep:
            return
        if self._closed:
            connection.close()
            return
        loop = asyncio.get_running_loop()
        connection.idle_since_s = loop.time()
        self._idle.setdefault(origin, []).append(connection)
        if self._sweeper is None:
            self._sweeper = loop.call_later(self._keepalive_s, self._sweep)

    def _sweep(self) -> None:
        """Closes what nobody has used for a while."""
        loop = asyncio.get_running_loop()
        since_s = loop.time() - self._keepalive_s
        for idle in self._idle.values():
            while idle and idle[0].idle_since_s <= since_s:  # the oldest come first
                idle.pop(0).close()
        left = any(self._idle.values())
        self._sweeper = loop.call_later(self._keepalive_s, self._sweep) if left else None

    def _release_slot(self) -> None:
        self._held -= 1
        self._slots.release()


class Wire:
    """One answer: its head is here, its body is read by exactly one of `read` and `chunks`."""

    status: int
    headers: Mapping[str, str]  # lower-case names

    def __init__(self, exchange: Exchange) -> None:
        self.status = exchange.status
        self.headers = exchange.headers
        self._exchange = exchange

    async def read(self, limit_bytes: int) -> bytes:
        """The whole body. Raises Failure: a time limit, a cut connection, or a longer body."""
        exchange = self._exchange
        parts: list[bytes] = []
        size = 0
        while data := await exchange.receive():
            size += len(data)
            if size > limit_bytes:
                exchange.cut()
                raise Failure(Kind.BROKEN, _TOO_LONG, billed=Billed.MAYBE)
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises Failure: TIMEOUT_FIRST before its first byte, TIMEOUT_IDLE
        after it, TIMEOUT_TOTAL, or BROKEN when it was cut."""
        exchange = self._exchange
        while data := await exchange.receive():
            yield data

    async def end(self, grace_s: float = END_GRACE_S) -> None:
        """For a caller that has understood the whole answer: waits a moment for the end of the
        body, so that the connection can be kept, and throws away what comes. Then closes."""
        exchange = self._exchange
        if exchange.complete:
            return
        timer = asyncio.get_running_loop().call_later(grace_s, exchange.cut)
        try:
            while await exchange.receive():
                pass
        except Failure:
            pass  # the answer is understood: how its connection ended is nobody's concern
        finally:
            timer.cancel()
            await self.close()

    async def close(self) -> None:
        """Keeps the connection when the body was received to its end, else cuts it at once."""
        self._exchange.cut()


def _head_of(method: str, place: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """Everything before the body. Raises ValueError if a header would end its line or frame the
    message: what stands in a header may come from a caller."""
    if not _OURS.isdisjoint(map(str.lower, headers)):
        raise ValueError("a header that frames the message is not the caller's")
    given = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    lines = len(headers) + 3  # the request, its host, and the empty one
    if "accept-encoding" not in headers:
        given = f"{given}accept-encoding: identity\r\n"
        lines += 1
    if body is not None or method not in ("GET", "HEAD"):
        given = f"{given}content-length: {len(body or b'')}\r\n"
        lines += 1
    head = f"{method} {place}{given}\r\n"
    if head.count("\n") != lines or head.count("\r") != lines or "\0" in head:
        raise ValueError("a header with a line break in it")
    return head.encode()
