"""Small real servers on 127.0.0.1, each doing exactly one thing to its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from backends.base import Timeouts

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter

# Long enough never to be reached by accident: tests shorten the one they mean.
PATIENT = Timeouts(connect_s=20, first_s=20, idle_s=20, total_s=60)

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def request_of(reader: Reader) -> tuple[bytes, bytes]:
    """Head and body of the next request. Raises IncompleteReadError when the client has left."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head, await reader.readexactly(length)


class Server:
    """Serves with `handle` and remembers what it saw."""

    def __init__(self, handle: Callable[[Server, Reader, Writer], Awaitable[None]]) -> None:
        self._handle = handle
        self._writers: list[Writer] = []
        self.url = ""
        self.connections = 0
        self.requests: list[tuple[bytes, bytes]] = []
        self.left = asyncio.Event()  # a client closed its connection

    async def request(self, reader: Reader) -> None:
        self.requests.append(await request_of(reader))

    async def until_left(self, reader: Reader) -> None:
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
        self.left.set()

    async def serve(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            await self._handle(self, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    handle: Callable[[Server, Reader, Writer], Awaitable[None]], host: str = "127.0.0.1"
) -> AsyncIterator[Server]:
    server = Server(handle)
    listener = await asyncio.start_server(server.serve, host, 0)
    port = listener.sockets[0].getsockname()[1]
    server.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    try:
        yield server
    finally:
        listener.close()
        for writer in server._writers:
            writer.transport.abort()
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    """Waits for a condition, generously: a test never asserts how long something took."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - the condition is not ours to signal
            await asyncio.sleep(0.01)
