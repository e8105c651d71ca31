"""Workers that write themselves down: in real Redis, read back, forgotten when they stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from backends.pool.members import Member
from backends.scripted_server import ScriptedServer, ServerOptions
from gateway.pool.heartbeats import Announcement, Heartbeats, announce
from gateway.tasks import spawn
from policies.types import Capability, Sensitivity
from tests.gateway.redis_servers import RealServer
from tests.gateway.rig import PATIENCE_S, rig, until


def said(**changes: object) -> Announcement:
    return Announcement(**{"name": "gpu1", "url": "http://10.0.0.7:8000", **changes})  # type: ignore[arg-type]


async def test_what_was_written_is_read(redis_url: str) -> None:
    beats = Heartbeats(redis_url)
    full = said(
        engine="vllm",
        weight=2.0,
        slots=9,
        capabilities=frozenset({Capability.VISION}),
        levels=frozenset({Sensitivity.PUBLIC}),
        tenants=frozenset({"acme"}),
    )
    await beats.write(full)
    await beats.write(said(name="gpu0"))
    first, second = await beats.read()
    assert first == Member(name="gpu0", url="http://10.0.0.7:8000")
    assert second == full.member()
    await beats.remove(full)
    assert [m.name for m in await beats.read()] == ["gpu0"]
    await beats.close()


async def test_of_two_workers_with_one_name_the_first_keeps_it(books_url: str) -> None:
    beats = Heartbeats(books_url)
    first, second = said(url="http://10.0.0.1:1"), said(url="http://10.0.0.2:1")
    assert await beats.write(first)
    assert not await beats.write(second)
    assert await beats.write(said(url=first.url, weight=2.0))  # his own to change
    await beats.remove(second)
    assert [member.url for member in await beats.read()] == [first.url]
    await beats.remove(first)
    assert await beats.write(second)
    assert [member.url for member in await beats.read()] == [second.url]
    await beats.close()


async def test_who_announces_a_name_that_is_taken_hears_of_it(books_url: str) -> None:
    heard: list[str] = []
    stop = asyncio.Event()
    beats = Heartbeats(books_url)
    other = said(url="http://10.0.0.1:1")
    await beats.write(other, ttl_s=60)
    async with ScriptedServer(ServerOptions()) as worker:
        named = said(url=worker.url)
        announcing = spawn(
            announce(named, books_url, stop, every_s=0.05, told=heard.append), name="announce"
        )
        await until(lambda: heard == ["another worker has this name"])
        await beats.remove(other)
        await until(lambda: heard[1:] == ["announced"])
        stop.set()
        await announcing
    await beats.close()


async def test_who_falls_silent_is_forgotten(redis_url: str) -> None:
    beats = Heartbeats(redis_url)
    await beats.write(said(), ttl_s=60)
    assert len(await beats.read()) == 1
    await beats.write(said(), ttl_s=0.05)
    async with asyncio.timeout(PATIENCE_S):
        while await beats.read():  # noqa: ASYNC110 - Redis has no event
            await asyncio.sleep(0.02)
    with redis.Redis.from_url(redis_url) as client:
        assert client.smembers("yuzui:workers") == set()  # the name goes too
    await beats.close()


async def test_nonsense_and_borrowed_names_are_left_out(books_url: str) -> None:
    beats = Heartbeats(books_url)
    await beats.write(said())
    with redis.Redis.from_url(books_url) as client:
        for name, body in (
            ("a", b"no json"),
            ("b", b'{"name":"gpu1","url":"http://10.0.0.9"}'),
            ("c", b'{"name":"c","url":"u","weight":-1}'),
        ):
            client.set(f"yuzui:worker:{name}", body)
            client.sadd("yuzui:workers", name)
    assert [m.name for m in await beats.read()] == ["gpu1"]
    await beats.close()


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"name": "a\n"}, {"engine": "tgi"}, {"weight": 0.0}, {"slots": 0}]
)
def test_what_cannot_be_announced(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"worker|engine|positive"):
        said(**wrong)


async def test_without_redis_it_says_so() -> None:
    beats = Heartbeats("redis://127.0.0.1:1")
    with pytest.raises(OSError, match="cannot be used"):
        await beats.read()
    await beats.close()


async def test_a_worker_is_announced_for_as_long_as_it_answers(books_url: str) -> None:
    heard: list[str] = []
    stop = asyncio.Event()
    beats = Heartbeats(books_url)
    async with ScriptedServer(ServerOptions()) as worker:
        announcing = spawn(
            announce(said(url=worker.url), books_url, stop, every_s=0.05, told=heard.append),
            name="announce",
        )
        await until(lambda: heard == ["announced"])
        assert len(await beats.read()) == 1
        worker.state = "loading"
        await until(lambda: heard == ["announced", "not answering"])
        assert len(await beats.read()) == 1  # it expires by itself
        worker.state = "ok"
        await until(lambda: heard[2:] == ["announced"])
        worker.state = "draining"
        await until(lambda: heard[3:] == ["draining"])
        assert await beats.read() == []
        worker.state = "ok"
        await until(lambda: heard[4:] == ["announced"])
        stop.set()
        await announcing
        assert await beats.read() == []
    await beats.close()


async def test_a_redis_that_starts_anew_takes_no_worker_along(
    own_server: Callable[..., RealServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has read back what was written before it went, and that has expired meanwhile."""
    monkeypatch.setattr("gateway.gateway.BEAT_EVERY_S", 0.05)  # how often it is read
    monkeypatch.setattr("gateway.gateway.BEAT_TTL_S", 600.0)  # a busy machine takes its time
    server = own_server("--appendonly", "yes", "--appendfsync", "always")
    stop, left = asyncio.Event(), 0
    settings = {
        "pool.heartbeats": True, "limits.local_without_books": True, "data_dir": str(tmp_path),
    }  # fmt: skip
    async with ScriptedServer(ServerOptions(chunks=3)) as worker:
        named = said(url=worker.url)
        announcing = spawn(announce(named, server.url, stop), name="announce")
        beats = Heartbeats(server.url)
        while not await beats.read():  # noqa: ASYNC110 - Redis has no event
            await asyncio.sleep(0.02)
        async with rig(server.url, workers=[], settings=settings) as house:
            await house.ready_worker()
            server.kill()
            stop.set()  # nobody writes while it is away
            await announcing
            with redis.Redis.from_url(server.url, retry=None) as client:
                server.start()
                client.delete("yuzui:worker:gpu1")
            for _ in range(20):
                left += not await house.admin("GET", "/admin/workers")
                await asyncio.sleep(0.05)
            assert not left
            assert (await house.ask()).header("route") == "local:gpu1"
        await beats.close()


async def test_a_gateway_uses_who_announces_itself(books_url: str) -> None:
    beats = Heartbeats(books_url)
    settings = {"pool.heartbeats": True, "limits.local.connect_s": 5}
    async with (
        ScriptedServer(ServerOptions(chunks=3)) as worker,
        rig(books_url, workers=[], cloud=True, settings=settings) as house,
    ):
        assert (await house.ask()).header("route") != "local:gpu9"
        await beats.write(said(name="gpu9", url=worker.url), ttl_s=60)
        await house.ready_worker()
        answer = await house.ask()
        assert (answer.status, answer.header("route")) == (200, "local:gpu9")
        (listed,) = await house.admin("GET", "/admin/workers")
        assert (listed["name"], listed["url"], listed["supervised"]) == ("gpu9", worker.url, None)
    await beats.close()
