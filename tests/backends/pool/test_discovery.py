"""Workers that come and go: found by name, found by heartbeat, and only inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from backends.dial import Dialer
from backends.egress import Egress
from backends.origins import EgressDenied
from backends.pool import Member, Pool
from backends.pool.discovery import DnsSource, HeartbeatSource, Source
from backends.scripted_server import ScriptedServer, ServerOptions
from policies.types import Health
from tests.backends.servers import PATIENT, until


@asynccontextmanager
async def finding(*sources: Source, egress: Egress) -> AsyncIterator[Pool]:
    pool = Pool(egress, [], sources=sources)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()
        await egress.close()


def up(pool: Pool) -> list[str]:
    return [state.id for state in pool.states() if state.health is Health.UP]


async def test_every_address_of_a_name_is_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ["127.0.0.1"]

    async def resolve(dialer: Dialer, origin: object) -> list[str]:
        if not known:
            raise OSError("no such name")
        return known

    monkeypatch.setattr(Dialer, "resolve", resolve)
    async with (
        ScriptedServer(ServerOptions()) as one,
        ScriptedServer(ServerOptions(host="127.0.0.2", port=int(one.url.rpartition(":")[2]))),
    ):
        port = one.url.rpartition(":")[2]
        egress = Egress(allowed=[])
        pattern = Member(name="gpu", url=f"http://workers.svc:{port}", weight=3.0)
        source = DnsSource(egress, pattern, every_s=0.05)
        async with finding(source, egress=egress) as pool:
            await until(lambda: up(pool) == ["gpu-127.0.0.1"])
            assert pool.states()[0].weight == 3.0
            known[:] = ["127.0.0.1", "127.0.0.2", "8.8.8.8", "169.254.169.254"]
            await until(lambda: up(pool) == ["gpu-127.0.0.1", "gpu-127.0.0.2"])
            known.clear()  # the name server is gone: who is known stays
            await asyncio.sleep(0.2)
            assert len(up(pool)) == 2
            known.append("127.0.0.2")
            await until(lambda: up(pool) == ["gpu-127.0.0.2"])
            with pytest.raises(KeyError):
                pool.backend("gpu-127.0.0.1")
            with pytest.raises(EgressDenied):
                await egress.open("GET", one.url, headers={}, body=None, timeouts=PATIENT)


async def test_an_address_is_gone_when_three_answers_in_a_row_lack_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = iter(["12", "1", "1", "12", "1", "1", "1", "2", ""])

    async def resolve(dialer: Dialer, origin: object) -> list[str]:
        return [f"10.0.0.{number}" for number in next(said)]

    monkeypatch.setattr(Dialer, "resolve", resolve)
    egress = Egress(allowed=[])
    source = DnsSource(egress, Member(name="g", url="http://gpus.svc:8000"), every_s=60)
    seen = []
    for _ in range(9):
        seen.append("".join(member.name[-1] for member in await source.members()))
    assert seen == ["12", "12", "12", "12", "12", "12", "1", "12", "12"]
    await egress.close()


async def test_a_real_name_is_looked_up_through_the_exit() -> None:
    async with ScriptedServer(ServerOptions()) as worker:
        port = worker.url.rpartition(":")[2]
        egress = Egress(allowed=[])
        source = DnsSource(egress, Member(name="l", url=f"http://localhost:{port}"), every_s=60)
        async with finding(source, egress=egress) as pool:
            await until(lambda: "l-127.0.0.1" in up(pool))


async def test_a_name_that_is_not_on_the_list_is_not_looked_up() -> None:
    egress = Egress(allowed=[])
    with pytest.raises(EgressDenied):
        await egress.addresses("http://localhost:1")
    await egress.close()


async def test_heartbeats_come_and_go_and_stay_inside() -> None:
    egress = Egress(allowed=[])
    async with ScriptedServer(ServerOptions()) as worker:
        outside = Member(name="evil", url="https://8.8.8.8")
        named = Member(name="named", url="http://example.com")
        written: list[Member] = [Member(name="a", url=worker.url), outside, named]

        async def read() -> Sequence[Member]:
            return written

        source = HeartbeatSource(read, every_s=0.05)
        async with finding(source, egress=egress) as pool:
            await until(lambda: up(pool) == ["a"])
            assert [state.id for state in pool.states()] == ["a"]
            written[:] = [Member(name="a", url=worker.url, weight=2.0)]
            await until(lambda: bool(pool.states()) and pool.states()[0].weight == 2.0)
            await until(lambda: up(pool) == ["a"])
            written.clear()
            await until(lambda: pool.states() == ())


async def test_who_leaves_takes_no_other_worker_of_its_origin_along() -> None:
    egress = Egress(allowed=[])
    async with ScriptedServer(ServerOptions()) as worker:
        written = [Member(name="twin", url=worker.url + "/x")]

        async def read() -> Sequence[Member]:
            return written

        pool = Pool(egress, [worker.url], sources=[HeartbeatSource(read, every_s=0.02)])
        await pool.start()
        await until(lambda: pool.names() == ("w1", "twin"))
        written.clear()
        await until(lambda: pool.names() == ("w1",))
        wire = await egress.open(
            "GET", worker.url + "/health", headers={}, body=None, timeouts=PATIENT
        )
        assert wire.status == 200
        await wire.close()
        await pool.close()
        await egress.close()


async def test_a_name_may_have_a_pool_at_each_of_several_ports() -> None:
    egress = Egress(allowed=[])
    async with ScriptedServer(ServerOptions()) as one, ScriptedServer(ServerOptions()) as other:
        sources = [
            DnsSource(
                egress,
                Member(name=name, url=server.url.replace("127.0.0.1", "localhost")),
                every_s=0.02,
            )
            for name, server in (("a", one), ("b", other))
        ]
        both = {"a-127.0.0.1", "b-127.0.0.1"}
        async with finding(*sources, egress=egress) as pool:
            await until(lambda: both <= set(up(pool)))
            for _ in range(20):  # and neither pushes the other out
                await asyncio.sleep(0.02)
                assert both <= set(up(pool))


async def test_a_fixed_member_keeps_its_name() -> None:
    egress = Egress(allowed=[])
    async with ScriptedServer(ServerOptions()) as worker:

        async def read() -> Sequence[Member]:
            return [Member(name="w1", url="http://127.0.0.1:1")]

        pool = Pool(egress, [worker.url], sources=[HeartbeatSource(read, every_s=0.02)])
        await pool.start()
        await until(lambda: up(pool) == ["w1"])
        await asyncio.sleep(0.1)
        assert pool.url("w1") == worker.url
        await pool.close()
        await egress.close()
