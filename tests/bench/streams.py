"""Streamed chat requests, all sent at once, with the arrival time of every piece.

On bare asyncio: what arrives is kept with its time and taken apart when all is over, so that on a
machine with two cores the client takes next to nothing from the server it measures.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

from tests.bench.load import request

TIMEOUT_S = 1800.0
_END = b"\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One streamed answer. Times are seconds from the moment the request was written."""

    text: str
    ttft_s: float
    total_s: float
    prompt_tokens: int
    completion_tokens: int

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first."""
        return (self.total_s - self.ttft_s) / max(1, self.completion_tokens - 1)


class _Stream(asyncio.Protocol):
    def __init__(self, sent: bytes) -> None:
        self._sent = sent
        self.began_s = 0.0
        self.pieces: list[tuple[float, bytes]] = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self.began_s = time.perf_counter()
        self._transport.write(self._sent)

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))
        if data.endswith(_LAST_CHUNK) or not self.pieces[0][1].startswith(b"HTTP/1.1 200"):
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def burst(url: str, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
    """Send all at once; the answers in the same order.

    Raises: RuntimeError for an answer that is not a whole stream with its usage.
    """
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    path = url + "/v1/chat/completions"
    payloads = [request(path, json.dumps({**body, "stream": True}).encode()) for body in bodies]
    streams = []
    for payload in payloads:
        _, stream = await loop.create_connection(
            lambda payload=payload: _Stream(payload), parts.hostname, parts.port
        )
        streams.append(stream)
    async with asyncio.timeout(TIMEOUT_S):
        await asyncio.gather(*(stream.over for stream in streams))
    return [answer_of(stream.began_s, stream.pieces) for stream in streams]


def answer_of(began_s: float, pieces: list[tuple[float, bytes]]) -> Answer:
    """The answer in a reply's bytes, which came at these times.

    Raises: RuntimeError.
    """
    text, first_s, last_s = "", 0.0, 0.0
    usage: dict[str, int] = {}
    for when, event in _events(pieces):
        if event.get("usage"):
            usage = event["usage"]
        for choice in event.get("choices", ()):
            delta = choice.get("delta", {})
            said = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
            if said:
                text += said
                first_s, last_s = first_s or when, when
    if not usage or not text:
        shown = b"".join(data for _, data in pieces)[-500:]
        raise RuntimeError(f"not a whole stream: {shown.decode(errors='replace')}")
    return Answer(
        text=text,
        ttft_s=first_s - began_s,
        total_s=last_s - began_s,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
    )


def _events(pieces: list[tuple[float, bytes]]) -> list[tuple[float, dict[str, Any]]]:
    """The JSON events of a chunked reply, each with the time at which its last byte came."""
    found: list[tuple[float, dict[str, Any]]] = []
    wire, body = b"", b""
    in_head = True
    for when, data in pieces:
        wire += data
        if in_head:
            if _END not in wire:
                continue
            wire, in_head = wire.split(_END, 1)[1], False
        while b"\r\n" in wire:
            size, rest = wire.split(b"\r\n", 1)
            length = int(size, 16)
            if len(rest) < length + 2:
                break
            body, wire = body + rest[:length], rest[length + 2 :]
            if not length:
                break
        *events, body = body.split(b"\n\n")
        for event in events:
            payload = event.removeprefix(b"data: ")
            if payload.startswith(b"{"):
                found.append((when, json.loads(payload)))
    return found
