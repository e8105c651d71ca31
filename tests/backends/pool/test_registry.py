"""The pool follows real servers over real sockets: ours by their reports, others by probes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from backends.base import Call, Timeouts
from backends.chat import ChatRequest, Message
from backends.egress import Egress
from backends.pool import Member, Pool, registry
from backends.pool.worker import OTHER_CAPABILITIES, OTHER_SLOTS
from backends.scripted_server import CONTEXT_TOKENS, ScriptedServer, ServerOptions
from policies.types import Capability, Health
from tests.backends.servers import (
    PATIENT,
    STREAM,
    Reader,
    Server,
    Writer,
    chunk,
    serving,
    until,
)
from tests.ports import free_port


@asynccontextmanager
async def following(urls: Sequence[str | Member], **options: Any) -> AsyncIterator[Pool]:
    egress = Egress(allowed=[])
    pool = Pool(egress, urls, **options)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()
        await egress.close()


class Source:
    """Finds what the test says."""

    name = "test"
    every_s = 0.05

    def __init__(self, found: list[Member]) -> None:
        self.found = found

    async def members(self) -> list[Member]:
        return self.found


def health(pool: Pool) -> list[Health]:
    return [state.health for state in pool.states()]


async def test_before_anything_is_heard_every_worker_is_down() -> None:
    pool = Pool(Egress(allowed=[]), ["http://127.0.0.1:1", "http://127.0.0.1:2"])
    assert [(s.id, s.health) for s in pool.states()] == [("w1", Health.DOWN), ("w2", Health.DOWN)]
    assert await pool.wait_ready(0.01) is False
    with pytest.raises(KeyError):
        pool.backend("w3")


async def test_our_worker_is_known_by_its_report() -> None:
    async with ScriptedServer(ServerOptions(slots=7)) as worker:
        async with following([worker.url + "/"]) as pool:
            assert await pool.wait_ready(20)
            (state,) = pool.states()
            assert state.model == pool.model("w1") == "glm-4.6v-scripted"
            assert state.traits.context_tokens == CONTEXT_TOKENS
            assert state.traits.capabilities == {Capability.VISION, Capability.TOOLS}
            assert state.traits.image_pixels_max == 4_816_896
            assert (state.slots, state.queue_limit) == (7, 7)
            assert state.decode_tokens_per_s == 50
            assert pool.states() is pool.states()


async def test_load_and_draining_are_pushed() -> None:
    changes: list[int] = []
    async with ScriptedServer(ServerOptions()) as worker:
        async with following([worker.url], on_change=lambda: changes.append(1)) as pool:
            assert await pool.wait_ready(20)
            worker.running = 3
            worker.changed()
            await until(lambda: pool.states()[0].running == 3)
            worker.state = "draining"
            worker.changed()
            await until(lambda: health(pool) == [Health.DRAINING])
            assert await pool.wait_ready(0.01) is False
            worker.state = "loading"
            worker.changed()
            await until(lambda: health(pool) == [Health.DOWN])
            worker.state = "ok"
            worker.changed()
            assert await pool.wait_ready(20)
            assert len(changes) >= 5


async def test_a_worker_that_is_still_loading_comes_up_later() -> None:
    async with ScriptedServer(ServerOptions()) as worker:
        worker.state = "loading"
        async with following([worker.url]) as pool:
            await until(lambda: pool.states()[0].model != "")
            assert health(pool) == [Health.DOWN]
            worker.state = "ok"
            worker.changed()
            assert await pool.wait_ready(20)
            assert pool.states()[0].traits.capabilities


async def test_one_of_three_is_killed_and_comes_back() -> None:
    port = free_port()
    first = ScriptedServer(ServerOptions())
    third = ScriptedServer(ServerOptions())
    async with first, third:
        doomed = ScriptedServer(ServerOptions(port=port))
        await doomed.__aenter__()
        async with following([first.url, f"http://127.0.0.1:{port}", third.url]) as pool:
            await until(lambda: health(pool) == [Health.UP] * 3)
            await doomed.kill()
            await until(lambda: health(pool) == [Health.UP, Health.DOWN, Health.UP])
            async with ScriptedServer(ServerOptions(port=port, model="other")):
                await until(lambda: health(pool) == [Health.UP] * 3)
                assert pool.states()[1].model == "other"


@pytest.mark.parametrize("drips", [False, True], ids=["nothing comes", "no line is ever whole"])
async def test_a_worker_that_falls_silent_is_down(
    drips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if drips:
        monkeypatch.setattr(registry, "REPORT_GAP_S", 0.5)
    else:
        quick = Timeouts(connect_s=5, first_s=0.2, idle_s=0.2, total_s=600)
        monkeypatch.setattr(registry, "WATCH_TIMEOUTS", quick)
    report = {"engine": "yuzui", "model": "m", "max_model_len": 9, "state": "ok"}

    async def hang_after_one_line(server: Server, reader: Reader, writer: Writer) -> None:
        while True:
            await server.request(reader)
            line = server.requests[-1][0].split(b" ")[1]
            if line == b"/load?watch=1":
                writer.write(STREAM + chunk(json.dumps(report).encode() + b"\n"))
                with suppress(ConnectionError):
                    while drips:
                        writer.write(chunk(b" "))
                        await writer.drain()
                        await asyncio.sleep(0.05)
                await server.until_left(reader)
                return
            models = {"data": [{"id": "m"}], **report}
            text = json.dumps(models).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text) + text)

    async with serving(hang_after_one_line) as server, following([server.url]) as pool:
        assert await pool.wait_ready(20)
        await until(lambda: health(pool) == [Health.DOWN])


@asynccontextmanager
async def another_engine(answers: dict[str, tuple[int, bytes]]) -> AsyncIterator[Server]:
    async def handle(server: Server, reader: Reader, writer: Writer) -> None:
        while True:
            await server.request(reader)
            path = server.requests[-1][0].split(b" ")[1].decode()
            status, body = answers.get(path, (404, b'{"detail":"Not Found"}'))
            head = f"HTTP/1.1 {status} x\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)

    async with serving(handle) as server:
        yield server


async def test_another_engine_is_probed() -> None:
    models = {"object": "list", "data": [{"id": "glm", "max_model_len": 65536}, {"id": "lora"}]}
    answers = {
        "/health": (200, b""),
        "/v1/models": (200, json.dumps(models).encode()),
        "/load": (200, b'{"server_load": 3}'),
    }
    async with another_engine(answers) as server, following([server.url]) as pool:
        assert await pool.wait_ready(20)
        (state,) = pool.states()
        assert (state.model, state.traits.context_tokens) == ("glm", 65536)
        assert state.traits.capabilities == OTHER_CAPABILITIES
        assert state.slots == OTHER_SLOTS
        answers["/health"] = (503, b'{"status":"draining"}')
        await until(lambda: health(pool) == [Health.DRAINING])


async def test_one_bad_probe_proves_nothing_and_three_seconds_of_them_do() -> None:
    now_s = 100.0
    answers = {
        "/health": (200, b""),
        "/v1/models": (200, b'{"data":[{"id":"glm"}]}'),
    }
    async with another_engine(answers) as server:
        async with following([server.url], clock=lambda: now_s) as pool:
            assert await pool.wait_ready(20)
            answers["/health"] = (500, b"")
            asked = len(server.requests)
            await until(lambda: len(server.requests) >= asked + 3)
            assert health(pool) == [Health.UP]
            now_s += registry.REPORT_GAP_S
            await until(lambda: health(pool) == [Health.DOWN])


@pytest.mark.parametrize(
    "answers",
    [
        {"/load": (200, b'{"engine":"yuzui"}')},
        {"/load": (200, b'{"engine":"yuzui"}'), "/load?watch=1": (200, b"nonsense\n")},
        {"/load": (200, b'{"engine":"yuzui"}'), "/load?watch=1": (200, b"x" * 200_000)},
        {"/load": (200, b'{"engine":"yuzui","slots":"many"}'), "/load?watch=1": (200, b"{}\n")},
        {"/health": (200, b"")},
        {"/health": (200, b""), "/v1/models": (200, b"[")},
        {"/health": (200, b""), "/v1/models": (200, b'{"data":[]}')},
        {"/health": (200, b""), "/v1/models": (200, b"x" * 2_000_000)},
        {"/health": (302, b"")},
    ],
)
async def test_odd_answers_never_end_the_watch_and_never_make_a_worker(
    answers: dict[str, tuple[int, bytes]],
) -> None:
    async with another_engine(answers) as server, following([server.url]) as pool:
        await until(lambda: len(server.requests) >= 4)
        assert health(pool) == [Health.DOWN]
        assert all(not task.done() for task in pool._tasks.values())


async def test_a_worker_of_the_pool_can_be_asked() -> None:
    call = Call(
        request_id="r",
        chat=ChatRequest(model="m", messages=[Message(role="user", content="hi")]),
        output_tokens_max=5,
        timeouts=PATIENT,
        stream=False,
    )
    async with ScriptedServer(ServerOptions(chunks=5)) as worker:
        async with following([worker.url]) as pool:
            assert await pool.wait_ready(20)
            reply = await pool.backend("w1").open(call)
            _, usage = await reply.body()
            await reply.close()
            assert usage is not None
            assert usage.completion_tokens == 5


async def test_a_listener_that_fails_does_not_end_the_watch() -> None:
    def fails() -> None:
        raise OverflowError

    answers = {"/health": (200, b""), "/v1/models": (200, b'{"data":[{"id":"glm"}]}')}
    async with another_engine(answers) as server:
        source = Source([Member(name="found", url=server.url)])
        async with following([server.url], sources=[source], on_change=fails) as pool:
            await until(lambda: health(pool) == [Health.UP, Health.UP])
            del answers["/health"]
            await until(lambda: health(pool) == [Health.DOWN, Health.DOWN])
            source.found = []
            await until(lambda: pool.names() == ("w1",))
            assert all(not task.done() for task in pool._tasks.values())


async def test_closing_ends_every_task() -> None:
    async with ScriptedServer(ServerOptions()) as worker:
        before = len(asyncio.all_tasks())
        async with following([worker.url, "http://127.0.0.1:1"]) as pool:
            assert await pool.wait_ready(20)
        await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_calls_that_take_every_connection_make_no_worker_look_silent() -> None:
    async def silent(server: Server, reader: Reader, writer: Writer) -> None:
        await server.request(reader)
        await server.until_left(reader)

    async with serving(silent) as other, ScriptedServer(ServerOptions()) as worker:
        narrow = Egress(allowed=[other.url], connections_max=1)
        calling = asyncio.ensure_future(  # noqa: TID251 - awaited below
            narrow.open("GET", other.url + "/", headers={}, body=None, timeouts=PATIENT)
        )
        await until(lambda: other.connections == 1)
        pool = Pool(narrow, [worker.url])
        await pool.start()
        await until(lambda: health(pool) == [Health.UP])
        calling.cancel()
        await asyncio.wait([calling])
        await pool.close()
        await narrow.close()
