from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from backends.glm.api import bodies
from backends.glm.model.load import Checkpoint
from tests.backends.glm.conftest import Serve, Served
from tests.backends.glm.scripted import QUEUE_LIMIT, Script

WAIT_S = 20
HELLO = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}).encode()


class Caller:
    """Sends the head of a request, and of its body what it is told."""

    def __init__(self, served: Served) -> None:
        self._host, self._port = served.url.removeprefix("http://").split(":")

    async def begin(self, length: int | None) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._host, int(self._port))
        size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{size}\r\n"
        self._writer.write(f"{head}\r\n".encode())
        await self._writer.drain()

    async def send(self, body: bytes) -> None:
        self._writer.write(body)
        await self._writer.drain()

    async def answer(self) -> tuple[int, Any]:
        async with asyncio.timeout(WAIT_S):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            )
            raw = await self._reader.readexactly(length)
        self._writer.close()
        return int(head.split()[1]), json.loads(raw)


async def admitted(served: Served, count: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while served.engine.load().waiting != count:  # noqa: ASYNC110 - the test's own look
            await asyncio.sleep(0.002)


async def test_busy_is_said_before_the_body_is_read(checkpoint: Checkpoint, serve: Serve) -> None:
    """A place is taken before anything of the body has come, and who finds none sends nothing."""
    async with serve(Script([min(checkpoint.stop_ids)])) as served:
        inside = [Caller(served) for _ in range(1 + QUEUE_LIMIT)]
        for caller in inside:
            await caller.begin(len(HELLO))
        await admitted(served, len(inside))
        late = Caller(served)
        await late.begin(bodies.BODY_BYTES_MAX)
        status, body = await late.answer()
        assert (status, body["error"]["code"]) == (503, "worker_busy")
        for caller in inside:
            await caller.send(HELLO)
        assert [(await caller.answer())[0] for caller in inside] == [200] * len(inside)


@pytest.mark.parametrize("stated", [True, False])
async def test_too_large_a_body(
    checkpoint: Checkpoint, serve: Serve, monkeypatch: pytest.MonkeyPatch, stated: bool
) -> None:
    monkeypatch.setattr(bodies, "BODY_BYTES_MAX", 1000)
    async with serve(Script([0])) as served:
        caller = Caller(served)
        await caller.begin(1001 if stated else None)
        if not stated:
            await caller.send(b"3e9\r\n" + b" " * 1001 + b"\r\n")
        status, body = await caller.answer()
        assert (status, body["error"]["code"]) == (413, "request_too_large")
        assert "at most 1,000 bytes; send fewer or smaller pictures" in body["error"]["message"]
        await admitted(served, 0)


@pytest.mark.parametrize("stated", [True, False])
async def test_all_bodies_together_are_bounded(
    checkpoint: Checkpoint, serve: Serve, monkeypatch: pytest.MonkeyPatch, stated: bool
) -> None:
    monkeypatch.setattr(bodies, "BODY_BYTES_MAX", len(HELLO))
    monkeypatch.setattr(bodies, "BODIES_BYTES_MAX", 2 * len(HELLO))
    async with serve(Script([min(checkpoint.stop_ids)])) as served:
        inside = [Caller(served), Caller(served)]
        for caller in inside:
            await caller.begin(len(HELLO))
        await admitted(served, 2)
        late = Caller(served)
        await late.begin(len(HELLO) if stated else None)
        status, body = await late.answer()
        assert (status, body["error"]["code"]) == (503, "worker_busy")
        for caller in inside:
            await caller.send(HELLO)
            assert (await caller.answer())[0] == 200
        again = Caller(served)  # their bytes are given back
        await again.begin(len(HELLO))
        await again.send(HELLO)
        assert (await again.answer())[0] == 200


async def test_a_body_that_does_not_come_gives_its_place_back(
    checkpoint: Checkpoint, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "BODY_S_MAX", 0.05)
    async with serve(Script([0])) as served:
        caller = Caller(served)
        await caller.begin(len(HELLO))
        status, body = await caller.answer()
        assert (status, body["error"]["code"]) == (408, "body_timeout")
        await admitted(served, 0)


async def test_a_client_that_sends_slowly_is_answered(checkpoint: Checkpoint, serve: Serve) -> None:
    async with serve(Script([min(checkpoint.stop_ids)])) as served, aiohttp.ClientSession() as http:

        async def pieces() -> Any:
            for at in range(len(HELLO)):
                yield HELLO[at : at + 1]

        url = f"{served.url}/v1/chat/completions"
        async with http.post(url, data=pieces()) as response:
            assert response.status == 200
