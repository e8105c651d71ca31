"""Workers that come and go: found by name, found by heartbeat, and only inside."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from backends.dial import Address, Dialer
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


async def test_who_is_not_written_down_any_more_stays_for_several_readings_and_some_time() -> None:
    """A Redis that starts anew knows nobody until they write again."""
    now_s = 0.0
    said: list[Sequence[str] | None] = []

    async def read() -> Sequence[Member]:
        names = said.pop(0)
        if names is None:
            raise OSError("no Redis")
        return [Member(name=name, url="http://10.0.0.1:1") for name in names]

    source = HeartbeatSource(read, every_s=2.0, keep_s=7.0, clock=lambda: now_s)

    async def reading(names: Sequence[str] | None, at_s: float) -> str | None:
        nonlocal now_s
        now_s = at_s
        said.append(names)
        try:
            return "".join(sorted(member.name for member in await source.members()))
        except OSError:
            return None

    assert await reading("ab", 0.0) == "ab"
    assert [await reading("b", at_s) for at_s in (2.0, 2.1, 2.2, 9.0)] == ["ab"] * 4
    assert await reading("b", 9.1) == "b"  # often enough, and long enough
    assert await reading("ab", 10.0) == "ab"
    assert await reading("", 12.0) == "ab"
    assert await reading("a", 14.0) == "ab"  # seen again: what he missed is forgotten
    assert await reading("", 19.5) == "a"
    assert await reading(None, 30.0) is None  # and so it is after a reading that failed
    assert [await reading("", at_s) for at_s in (32.0, 34.0, 36.0, 38.0)] == ["a"] * 4
    assert await reading("", 40.0) == ""


@pytest.mark.parametrize(
    ("number", "left"),
    [(socket.EAI_NONAME, []), (socket.EAI_NODATA, []), (socket.EAI_AGAIN, ["g"])],
)
async def test_a_name_without_addresses_is_an_answer_and_a_silent_server_none(
    monkeypatch: pytest.MonkeyPatch, number: int, left: list[str]
) -> None:
    known = ["10.0.0.1"]

    async def look_up(dialer: Dialer, origin: object) -> list[Address]:
        if not known:
            raise socket.gaierror(number, "x")
        return [(socket.AF_INET, address) for address in known]

    monkeypatch.setattr(Dialer, "_look_up", look_up)
    egress = Egress(allowed=[])
    source = DnsSource(egress, Member(name="g", url="http://gpus.svc:8000"), every_s=0.01)
    async with finding(source, egress=egress) as pool:
        await until(lambda: pool.names() == ("g-10.0.0.1",))
        known.clear()
        await asyncio.sleep(0.2)
        await until(lambda: [name.partition("-")[0] for name in pool.names()] == left)


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
