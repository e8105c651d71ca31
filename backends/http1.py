"""HTTP/1.1 as a client, no more of it than a call to an engine needs.

    connection   a Protocol of asyncio; carries one exchange at a time, and may carry the next
    exchange     one request and its answer, parsed while it arrives, waited for by one reader

    exchange = connection.send(head, body, times=..., began_s=..., bodiless=False)
    await exchange.head()
    while data := await exchange.receive(): ...
    exchange.cut()

A general client spent more CPU on a call than everything else in the gateway together. Here a
call costs no task, one timer, and one future for each time that somebody really has to wait. What
arrives is parsed in `data_received` and handed over as it is.

The parser is made anew for each answer: nothing of one can reach into the next. An exchange lets go
of its connection the moment its answer is complete, so what is done to it later meets nobody else.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import cast

import httptools

from backends.base import Billed, Failure, Kind, Timeouts
from backends.watch import Watch

# One header of an answer, and how many of them: what common servers allow.
HEADER_BYTES_MAX = 8190
HEADERS_MAX = 100
# The parser gathers a line before it shows it; this much without anything shown is no HTTP. Two
# headers (one is shown when the next begins), the line of the status, and blanks.
UNSEEN_BYTES_MAX = 4 * HEADER_BYTES_MAX
# Read ahead of a slow consumer per connection, before the engine is made to wait.
READ_AHEAD_BYTES = 64 * 1024
# A stream longer than this is not an answer: a token is some 300 bytes of event, so half a million.
STREAM_BYTES_MAX = 256 * 1024 * 1024
# Up to here head and body are copied together: one system call is dearer than the copy.
ONE_WRITE_BYTES_MAX = 64 * 1024

_LATE = {
    Kind.TIMEOUT_FIRST: "the engine did not begin to answer in time",
    Kind.TIMEOUT_IDLE: "the engine fell silent in the middle of its answer",
    Kind.TIMEOUT_TOTAL: "the engine did not finish its answer in time",
}
_NO_HTTP = "the engine's answer is not HTTP"


class Exchange:
    """One request and its answer. `head` once, then `receive` until it returns nothing."""

    __slots__ = (
        "_ahead",
        "_bodiless",
        "_connection",
        "_count",
        "_error",
        "_interim",
        "_keep",
        "_parser",
        "_parts",
        "_size",
        "_unseen",
        "_until_close",
        "_waiter",
        "_watch",
        "complete",
        "headers",
        "status",
    )

    def __init__(
        self, connection: Connection, times: Timeouts, began_s: float, *, bodiless: bool
    ) -> None:
        self.status = 0  # until the head of the answer is in
        self.headers: dict[str, str] = {}  # lower-case names; what came twice is joined by a comma
        self.complete = False  # the answer was received to its end
        self._connection: Connection | None = connection  # until it is complete or cut
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._watch = Watch(times, began_s, self._late)
        self._waiter: asyncio.Future[None] | None = None
        self._error: tuple[Kind, str] | None = None
        self._bodiless = bodiless
        self._interim = False  # a 1xx before the answer is being read
        self._until_close = False  # the end of the connection is the end of the body
        self._keep = False
        self._count = 0  # headers
        self._unseen = 0  # bytes that the parser took since it last showed something
        self._parts: list[bytes] = []
        self._ahead = 0  # bytes in them
        self._size = 0  # bytes of the body so far

    # ------------------------------------------------------------ for the one who asked

    async def head(self) -> None:
        """Returns when `status` and `headers` are there. Raises Failure: TIMEOUT_FIRST,
        TIMEOUT_TOTAL or BROKEN. Cancelling it, as `receive`, cuts the connection at once."""
        while not self.status and self._error is None:
            await self._wait()
        if not self.status:
            raise self._failure()
        self._watch.rest()

    async def receive(self) -> bytes:
        """What of the body has arrived and was not received yet, waiting for it; nothing at its
        end. Raises Failure: a time limit, or BROKEN when the answer was cut short."""
        parts = self._parts
        if not parts and not self.complete and self._error is None:
            self._watch.wait()
            while not parts and not self.complete and self._error is None:
                await self._wait()
        if parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            self._ahead = 0
            if self._connection is not None:
                self._watch.arrived()
                self._connection.resume()
            return data
        if self.complete:
            return b""
        raise self._failure()

    def cut(self, why: str = "the call was broken off") -> None:
        """Closes the connection now, whatever is still in its buffers. Whoever waits gets BROKEN.
        Does nothing once the answer is complete."""
        self._end(Kind.BROKEN, why)

    def abandon(self, why: str) -> None:
        """The same, unless the body of the answer has begun."""
        if not self._size:
            self._end(Kind.BROKEN, why)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        except BaseException:
            self.cut()  # cancelled: the engine must see it now
            raise
        finally:
            self._waiter = None

    def _failure(self) -> Failure:
        kind, why = self._error or (Kind.BROKEN, _NO_HTTP)
        return Failure(kind, why, billed=Billed.MAYBE)

    # ------------------------------------------------------------ for the connection

    def feed(self, data: bytes) -> None:
        """Bytes of the answer have arrived."""
        parser, connection = self._parser, self._connection
        if parser is None or connection is None:
            return
        self._unseen += len(data)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._keep = False  # a complete answer with something behind it is still an answer
            if not self.complete:
                reason = error.__context__
                self._end(Kind.BROKEN, str(reason) if isinstance(reason, _Refused) else _NO_HTTP)
                return
        if self.complete:
            self._let_go(keep=self._keep)
        elif self._unseen > UNSEEN_BYTES_MAX:
            self._end(Kind.BROKEN, _NO_HTTP)
        elif self._ahead > READ_AHEAD_BYTES:
            connection.pause()
        self._wake()

    def written(self) -> None:
        """The request is out to its last byte."""
        if not self.status:
            self._watch.written()

    def lost(self, *, clean: bool) -> None:
        """The connection has ended; clean: the engine has closed it, and nothing broke it."""
        if clean and self.status and self._until_close:
            self.complete = True
            self._let_go(keep=False)
            self._wake()
        elif self.status:
            self._end(Kind.BROKEN, "the engine cut the answer short")
        else:
            self._end(Kind.BROKEN, "the engine closed the connection without an answer")

    def _late(self, kind: Kind) -> None:
        self._end(kind, _LATE[kind])

    def _end(self, kind: Kind, why: str) -> None:
        if self._connection is not None:
            self._error = (kind, why)
            self._let_go(keep=False)
            self._wake()

    def _let_go(self, *, keep: bool) -> None:
        connection, self._connection = self._connection, None
        self._parser = None  # the two know each other: so neither waits for the garbage collector
        self._watch.done()
        if connection is not None:
            connection.release(keep=keep)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # ------------------------------------------------------------ for the parser

    def on_message_begin(self) -> None:
        if self.complete:
            raise _Refused("the engine said more than it was asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._unseen = 0
        self._count += 1
        if self._count > HEADERS_MAX or len(name) + len(value) > HEADER_BYTES_MAX:
            raise _Refused("the head of the engine's answer is longer than allowed")
        if self.status:
            return  # a trailer behind the body
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1").strip(" \t")
        known = self.headers.get(key)
        self.headers[key] = text if known is None else f"{known}, {text}"

    def on_headers_complete(self) -> None:
        parser = self._parser
        if parser is None:
            return
        status = parser.get_status_code()
        self._unseen = 0
        if status < 200:
            if status < 100 or status == 101:
                raise _Refused(_NO_HTTP)
            self._interim = True
            self.headers = {}
            self._count = 0
            return
        headers = self.headers
        coding = headers.get("transfer-encoding")
        if coding is not None and (coding.lower() != "chunked" or "content-length" in headers):
            raise _Refused(_NO_HTTP)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise _Refused("the engine sent a compressed answer that nobody asked for")
        self._until_close = coding is None and "content-length" not in headers
        self._keep = parser.should_keep_alive()
        self.status = status
        self.complete = self._bodiless

    def on_body(self, data: bytes) -> None:
        if self._interim or self.complete:
            raise _Refused(_NO_HTTP)
        self._unseen = 0
        size = len(data)
        self._ahead += size
        self._size += size
        if self._size > STREAM_BYTES_MAX:
            raise _Refused("the engine's answer is longer than allowed")
        self._parts.append(data)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        else:
            self.complete = True


class Connection(asyncio.Protocol):
    """One connection to an engine. `freed` is told when an exchange is over, and whether the
    connection may carry another one; it was closed if not."""

    def __init__(self, freed: Callable[[Connection, bool], None]) -> None:
        self.idle_since_s = 0.0  # by the loop's clock
        self._freed = freed
        self._exchange: Exchange | None = None
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._paused = False  # reading
        self._full = False  # writing

    def send(
        self, head: bytes, body: bytes | None, *, times: Timeouts, began_s: float, bodiless: bool
    ) -> Exchange:
        """Writes a request; its head is complete, with the length of the body. `usable` must have
        been true in the same turn of the loop. bodiless: the answer has no body (HEAD).

        Raises RuntimeError when it is used otherwise.
        """
        transport = self._transport
        if transport is None or self._exchange is not None:
            raise RuntimeError("a connection carries one exchange at a time, while it is open")
        self._exchange = exchange = Exchange(self, times, began_s, bodiless=bodiless)
        if body is None:
            transport.write(head)
        elif len(body) <= ONE_WRITE_BYTES_MAX:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)
        return exchange

    def usable(self) -> bool:
        """Whether a request can be written now: the engine has not closed the connection, as far
        as this machine knows, and it does not speak unasked."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not self._poll.poll(0)

    def close(self) -> None:
        """Cuts the connection and what it carries."""
        if self._exchange is not None:
            self._exchange.cut()
        elif self._transport is not None:
            self._transport.abort()

    def abandon(self) -> None:
        """Cuts what it carries, unless an answer has begun to come."""
        if self._exchange is not None:
            self._exchange.abandon("the engine stopped reporting before it answered")

    def release(self, *, keep: bool) -> None:
        """The exchange is over. A request that is not out to its last byte stands in the way of
        the next one, so the connection is not kept then."""
        transport = self._transport
        self._exchange = None
        if transport is None or transport.is_closing():
            keep = False
        elif keep and not self._full and transport.get_write_buffer_size() == 0:
            self.resume()
        else:
            keep = False
        if transport is not None and not keep:
            transport.abort()
        self._freed(self, keep)

    def pause(self) -> None:
        """The consumer is slow: lets the engine wait."""
        if not self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """The consumer has caught up."""
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    # ------------------------------------------------------------ for the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.feed(data)
        elif self._transport is not None:
            self._transport.abort()  # it speaks unasked

    def eof_received(self) -> None:
        if self._exchange is not None:
            self._exchange.lost(clean=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._poll = None
        if self._exchange is not None:
            self._exchange.lost(clean=exc is None)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if self._exchange is not None:
            self._exchange.written()


class _Refused(Exception):
    """Raised towards the parser, which stops there; its text may be shown to the caller."""
