"""A closed-loop HTTP/1.1 load generator that costs little itself.

Each connection sends the same request again as soon as its answer is complete. Written on
asyncio.Protocol because on two cores a client library would be what is measured.
"""

from __future__ import annotations

import asyncio
import time
from typing import cast
from urllib.parse import urlsplit

import msgspec

TIMEOUT_S = 120.0  # of one measurement: a benchmark that hangs says so
_END = b"\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


class Result(msgspec.Struct, frozen=True):
    """Latencies in seconds, sorted: of whole answers, and of their first body byte."""

    wall_s: float
    whole_s: list[float]
    first_s: list[float]

    @property
    def per_s(self) -> float:
        return len(self.whole_s) / self.wall_s

    def whole_ms(self, share: float) -> float:
        return 1000 * _at(self.whole_s, share)

    def first_ms(self, share: float) -> float:
        return 1000 * _at(self.first_s, share)


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def request(url: str, body: bytes, token: str = "") -> bytes:
    """The bytes of one POST with a keep-alive connection."""
    parts = urlsplit(url)
    head = [
        f"POST {parts.path} HTTP/1.1",
        f"Host: {parts.netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if token:
        head.append(f"Authorization: Bearer {token}")
    return "\r\n".join(head).encode() + _END + body


class _Caller(asyncio.Protocol):
    """One connection. `left` counts down the answers that are still wanted, over all callers."""

    def __init__(self, sent: bytes, run: _Run) -> None:
        self._sent = sent
        self._run = run
        self._buffer = bytearray()
        self._began = 0.0
        self._first = 0.0
        self._body_at = 0
        self._length = -1
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        self._run.lost(error)

    def _next(self) -> None:
        assert self._transport is not None
        if not self._run.take():
            self._transport.close()
            return
        self._buffer.clear()
        self._body_at, self._first = 0, 0.0
        self._began = time.perf_counter()
        self._transport.write(self._sent)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._body_at:
            end = self._buffer.find(_END)
            if end < 0:
                return
            self._head(bytes(self._buffer[:end]).lower())
            self._body_at = end + len(_END)
        if not self._first and len(self._buffer) > self._body_at:
            self._first = time.perf_counter()
        if self._length >= 0:
            done = len(self._buffer) - self._body_at >= self._length
        else:
            done = self._buffer.endswith(_LAST_CHUNK)
        if done:
            now = time.perf_counter()
            self._run.answered(now - self._began, self._first - self._began)
            self._next()

    def _head(self, head: bytes) -> None:
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            self._run.fail(head.decode(errors="replace"))
        at = head.find(b"content-length:")
        self._length = -1 if at < 0 else int(head[at + 15 :].split(b"\r\n", 1)[0])


class _Run:
    """The requests of one measurement, dealt out to its connections."""

    def __init__(self, wanted: int, callers: int) -> None:
        self._left = wanted
        self._callers = callers
        self._whole: list[float] = []
        self._first: list[float] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self) -> bool:
        self._left -= 1
        return self._left >= 0

    def answered(self, whole_s: float, first_s: float) -> None:
        self._whole.append(whole_s)
        self._first.append(first_s)

    def lost(self, error: Exception | None) -> None:
        self._callers -= 1
        if error is not None:
            self.fail(repr(error))
        if self._callers == 0 and not self.over.done():
            self.over.set_result(None)

    def fail(self, why: str) -> None:
        if not self.over.done():
            self.over.set_exception(RuntimeError(f"an answer that is not 200:\n{why}"))

    def result(self, wall_s: float) -> Result:
        return Result(wall_s, sorted(self._whole), sorted(self._first))


async def drive(
    url: str, sent: bytes, *, connections: int, requests: int, spread_s: float = 0.0
) -> Result:
    """Sends `requests` over `connections`, which begin one after the other over `spread_s` seconds.

    Raises RuntimeError for any answer that is not 200.
    """
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    run = _Run(requests, connections)
    began = time.perf_counter()
    for _ in range(connections):
        await loop.create_connection(lambda: _Caller(sent, run), parts.hostname, parts.port)
        if spread_s:
            await asyncio.sleep(spread_s / connections)
    async with asyncio.timeout(TIMEOUT_S):
        await run.over
    return run.result(time.perf_counter() - began)
