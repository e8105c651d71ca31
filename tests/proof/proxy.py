"""A TCP proxy before Redis that does to script calls what networks do: carries them twice, loses
them or their replies together with the connection, and lets them wait."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress


class Mishaps:
    """How often each thing happens to a script call; delay_s: at most."""

    def __init__(
        self, *, twice: float, lost: float, reply_lost: float, delayed: float, delay_s: float
    ) -> None:
        self.twice, self.lost, self.reply_lost = twice, lost, reply_lost
        self.delayed, self.delay_s = delayed, delay_s


class Proxy:
    """`async with Proxy(socket_path, mishaps, seed) as proxy:` listens at `proxy.url`."""

    def __init__(self, upstream: str, mishaps: Mishaps, seed: int) -> None:
        self._upstream = upstream
        self.mishaps: Mishaps | None = mishaps
        self._rng = random.Random(seed)
        self.happened: Counter[str] = Counter()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0.05)

    def switch(self, upstream: str) -> None:
        """From now on the address leads to another server, as after a failover."""
        self._upstream = upstream
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(self._upstream)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        fates: asyncio.Queue[str] = asyncio.Queue()
        back = asyncio.ensure_future(self._back(up_reader, writer, fates))  # noqa: TID251
        with suppress(OSError, asyncio.IncompleteReadError, EOFError):
            while True:
                command = await read_command(reader)
                fate = self._fate(command)
                self.happened[fate] += 1
                if fate == "lost":
                    break
                up_writer.write(command)
                fates.put_nowait(fate)
                if fate == "twice":
                    up_writer.write(command)
                    fates.put_nowait("swallowed")
        if fates.qsize():  # what is on its way takes effect, and nobody hears of it
            await asyncio.sleep(0.01)
        for each in (writer, up_writer):
            each.transport.abort()
            self._writers.discard(each)
        back.cancel()
        with suppress(asyncio.CancelledError, OSError, EOFError):
            await back

    def _fate(self, command: bytes) -> str:
        mishaps = self.mishaps
        if mishaps is None or b"EVAL" not in command[:20]:
            return "fine"
        names = ("twice", "lost", "reply_lost", "delayed")
        odds = [getattr(mishaps, name) for name in names]
        return self._rng.choices([*names, "fine"], [*odds, max(0.0, 1.0 - sum(odds))])[0]

    async def _back(
        self, up: asyncio.StreamReader, writer: asyncio.StreamWriter, fates: asyncio.Queue[str]
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                reply = await read_reply(up)
                fate = await fates.get()
                if fate == "swallowed":
                    continue
                if fate == "delayed" and self.mishaps is not None:
                    await asyncio.sleep(self._rng.random() * self.mishaps.delay_s)
                if fate == "reply_lost":
                    break
                writer.write(reply)
        writer.transport.abort()  # a server that is gone is gone for its client too


async def read_command(reader: asyncio.StreamReader) -> bytes:
    """One command as its client wrote it: an array of bulk strings."""
    head = await reader.readuntil(b"\r\n")
    if not head.startswith(b"*"):
        raise EOFError("not a command")
    parts = [head]
    for _ in range(int(head[1:])):
        length = await reader.readuntil(b"\r\n")
        parts += [length, await reader.readexactly(int(length[1:]) + 2)]
    return b"".join(parts)


async def read_reply(reader: asyncio.StreamReader) -> bytes:
    """One reply, whatever its type (RESP2)."""
    head = await reader.readuntil(b"\r\n")
    kind, size = head[:1], head[1:-2]
    if kind == b"$" and size != b"-1":
        return head + await reader.readexactly(int(size) + 2)
    if kind == b"*" and size != b"-1":
        return head + b"".join([await read_reply(reader) for _ in range(int(size))])
    return head
