"""A very fast server with fixed answers, in the shape of our worker.

It stands where an engine would: as the upstream of benchmarks (it answers from prepared bytes, so
what is measured is the gateway), and in tests that need real sockets. A pool accepts it as a
worker: /health, /v1/models, /load and /load?watch=1 answer in the worker's form.

It reads just enough HTTP/1.1 for clients that we write ourselves. Never put it on a network.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from types import TracebackType
from typing import Any, cast

import msgspec

WATCH_INTERVAL_S = 1.0  # a watcher gets a line at least this often
COALESCE_S = 0.02  # and at most this often, however fast the load changes
CONTEXT_TOKENS = 32_768

_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_END = b"0\r\n\r\n"


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: int = 0  # 0: any free one
    model: str = "glm-4.6v-scripted"
    chunks: int = 20  # text events of a stream
    first_ms: float = 0.0  # before an answer begins
    pace_ms: float = 0.0  # between two events of a stream
    slots: int = 64


class ScriptedServer:
    """`async with ScriptedServer(options) as server:` serves at `server.url`.

    `state` ("ok", "loading", "draining") and `full` may be set while it runs; `changed()` tells the
    watchers. `kill()` vanishes as a killed process does.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.url = ""
        self.state = "ok"
        self.full = False  # every chat request is answered busy
        self.running = 0
        self.answered = 0
        self.frames = _frames(options)
        self.whole = _whole(options)
        self.connections: set[_Connection] = set()
        self._server: asyncio.Server | None = None
        self._seq = 0
        self._push: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> ScriptedServer:
        loop = asyncio.get_running_loop()
        options = self.options
        self._server = await loop.create_server(
            lambda: _Connection(self, loop), options.host, options.port, backlog=1024
        )
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{options.host}:{port}"
        self._push = loop.call_later(WATCH_INTERVAL_S, self._report)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.kill()

    async def kill(self) -> None:
        """Closes the listening socket and cuts every connection."""
        if self._push is not None:
            self._push.cancel()
            self._push = None
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.connections):
            connection.cut()
        await asyncio.sleep(0)

    def changed(self) -> None:
        """The load or the state is another one: watchers learn it within COALESCE_S."""
        if self._push is None:
            return
        loop = asyncio.get_running_loop()
        if self._push.when() - loop.time() > COALESCE_S:
            self._push.cancel()
            self._push = loop.call_later(COALESCE_S, self._report)

    def report(self) -> dict[str, Any]:
        """The load report."""
        self._seq += 1
        return {
            "engine": "yuzui",
            "model": self.options.model,
            "worker": "scripted",
            "pid": os.getpid(),
            "slots": self.options.slots,
            "running": min(self.running, self.options.slots),
            "waiting": max(0, self.running - self.options.slots),
            "queue_limit": self.options.slots,
            "decode_tokens_per_s": 50.0,
            "prefill_tokens_per_s": 2000.0,
            "kv_tokens_used": 0,
            "kv_tokens_total": 1_000_000,
            "max_model_len": CONTEXT_TOKENS,
            "state": self.state,
            "seq": self._seq,
            "image_limits": {"factor": 28, "min_pixels": 12_544, "max_pixels": 4_816_896},
        }

    def _report(self) -> None:
        self._push = asyncio.get_running_loop().call_later(WATCH_INTERVAL_S, self._report)
        watchers = [c for c in self.connections if c.watching]
        if watchers:
            line = _framed(msgspec.json.encode(self.report()) + b"\n")
            for watcher in watchers:
                watcher.write(line)


class _Connection(asyncio.Protocol):
    """One client: one request at a time, in order."""

    def __init__(self, server: ScriptedServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._input = bytearray()
        self._timer: asyncio.TimerHandle | None = None  # set: an answer is under way
        self.watching = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._ended()

    def data_received(self, data: bytes) -> None:
        self._input += data
        if self._timer is None:
            self._next()

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        """Answers the requests that are complete, until one of them takes time."""
        while self._timer is None:
            at = self._input.find(b"\r\n\r\n")
            if at < 0:
                return
            head = bytes(self._input[:at])
            found = _LENGTH.search(head)
            end = at + 4 + (int(found[1]) if found else 0)
            if len(self._input) < end:
                return
            body = self._input[at + 4 : end]
            del self._input[:end]
            method, path, _ = head.split(b" ", 2)
            if method == b"POST" and path.startswith(b"/v1/chat/completions"):
                self._chat(body)
            else:
                self._about(path)

    def _chat(self, body: bytearray) -> None:
        server = self._server
        if server.full or server.state != "ok":
            self.write(_refusal("worker_busy" if server.state == "ok" else "worker_draining"))
            return
        server.running += 1
        server.changed()
        # The flag stands before or behind the messages, which may hold megabytes of pictures.
        stream = _STREAM.search(body[-4096:]) or _STREAM.search(body[:4096])
        answer = self._stream if stream else self._plain
        if server.options.first_ms:
            self._later(server.options.first_ms, answer)
        else:
            answer()

    def _plain(self) -> None:
        self.write(self._server.whole)
        self._ended()

    def _stream(self) -> None:
        frames = self._server.frames
        pace_ms = self._server.options.pace_ms
        if not pace_ms:
            self.write(b"".join(frames))
            self._ended()
            return
        self._paced(0, pace_ms)

    def _paced(self, index: int, pace_ms: float) -> None:
        frames = self._server.frames
        self.write(frames[index])
        if index + 1 == len(frames):
            self._ended()
            self._next()
        else:
            self._later(pace_ms, lambda: self._paced(index + 1, pace_ms))

    def _later(self, delay_ms: float, step: Callable[[], None]) -> None:
        def run() -> None:
            self._timer = None
            step()
            self._next()

        self._timer = self._loop.call_later(delay_ms / 1000, run)

    def _ended(self) -> None:
        self._timer = None
        self._server.running -= 1
        self._server.answered += 1
        self._server.changed()

    def _about(self, path: bytes) -> None:
        server = self._server
        good = 200 if server.state == "ok" else 503
        if path == b"/health":
            self.write(_json({"status": server.state}, good))
        elif path == b"/v1/models":
            model = {
                "id": server.options.model,
                "object": "model",
                "max_model_len": CONTEXT_TOKENS,
                "capabilities": ["vision", "tools"],
            }
            self.write(_json({"object": "list", "data": [model]}, good))
        elif path == b"/load":
            self.write(_json(server.report()))
        elif path == b"/load?watch=1":
            self.write(_head("application/x-ndjson"))
            self.watching = True
            self.write(_framed(msgspec.json.encode(server.report()) + b"\n"))
        else:
            self.write(_json({"error": {"message": "not found", "code": "not_found"}}, 404))


def _head(content_type: str) -> bytes:
    return (
        f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
    ).encode()


def _json(value: Any, status: int = 200, more: str = "") -> bytes:
    body = msgspec.json.encode(value)
    head = f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\n{more}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _refusal(code: str) -> bytes:
    error = {"message": "no room", "type": "server_error", "param": None, "code": code}
    return _json({"error": error}, 503, "retry-after: 1\r\n")


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _usage(options: ServerOptions) -> dict[str, Any]:
    tokens = {"prompt_tokens": 12, "completion_tokens": options.chunks}
    slot_ms = round(options.first_ms + options.chunks * options.pace_ms) or 1
    return {
        "usage": {**tokens, "total_tokens": 12 + options.chunks},
        "yuzui": {"slot_ms": slot_ms, "queue_ms": 0, "ttft_ms": round(options.first_ms)},
    }


def _whole(options: ServerOptions) -> bytes:
    message = {"role": "assistant", "content": "word " * options.chunks}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": "chatcmpl-scripted", "object": "chat.completion", "created": 0}
    return _json({**head, "model": options.model, "choices": [choice], **_usage(options)})


def _frames(options: ServerOptions) -> list[bytes]:
    """What is written for a stream, one item per event; the last one also ends the body."""
    head = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0}

    def event(choices: list[Any], **more: Any) -> bytes:
        value = {**head, "model": options.model, "choices": choices, **more}
        return _framed(b"data: " + msgspec.json.encode(value) + b"\n\n")

    def choice(delta: dict[str, str], finish: str | None = None) -> list[Any]:
        return [{"index": 0, "delta": delta, "finish_reason": finish}]

    frames = [event(choice({"content": "word "})) for _ in range(options.chunks)]
    begin = _head("text/event-stream") + event(choice({"role": "assistant", "content": ""}))
    tail = event(choice({}, "stop")) + event([], **_usage(options))
    return [begin, *frames, tail + _framed(b"data: [DONE]\n\n") + _END]
