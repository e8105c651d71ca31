"""Servers that are not what they were: replaced, emptied, evicting, read-only, loading, stalled."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.ledger import watch
from gateway.ledger.ledger import Exhausted, Ledger, LedgerUnavailable, Reserved
from gateway.ledger.watch import Checkpoints, Standing, read_info, unfit
from tests.gateway.ledger.kit import hold, row, rows_of, settled_up
from tests.gateway.ledger.test_crowd import until_back
from tests.gateway.redis_servers import RealServer
from tests.ports import free_port

CLOUD = "backend:cloud"


async def books(url: str, name: str = "gw-1", call_timeout_s: float = 10.0) -> Ledger:
    """A disk that is busy for seconds is not what these tests are about."""
    return await Ledger.connect(url, instance=name, call_timeout_s=call_timeout_s)


async def limit(ledger: Ledger, nano: int) -> None:
    await ledger.set_budget(CLOUD, limit_nano=nano, period="total", zone="UTC", now_s=time.time())


def asked(name: str, nano: int, *, sent: bool = False):  # type: ignore[no-untyped-def]
    return hold(name, nano, CLOUD, sent=sent, now_s=time.time())


async def checked(ledger: Ledger, within_s: float = 10.0) -> float:
    """Seconds until the cloud's money can be held again."""
    began_s = time.monotonic()
    while True:
        try:
            await ledger.refresh(time.time())
            if not ledger.frozen:
                return time.monotonic() - began_s
        except LedgerUnavailable:
            pass
        assert time.monotonic() - began_s < within_s + 10.0, ledger.frozen
        await asyncio.sleep(0.1)


# ------------------------------------------------------------------ fit or not


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_may_evict_is_refused_at_the_start_and_frozen_later(
    own_server: Callable[..., RealServer], policy: str
) -> None:
    server = own_server("--maxmemory-policy", policy)
    with pytest.raises(LedgerUnavailable, match="maxmemory-policy noeviction"):
        await books(server.url)
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        ledger = await books(server.url)
        await limit(ledger, 1_000)
        client.config_set("maxmemory-policy", policy)
        await ledger.refresh(time.time())
        with pytest.raises(LedgerUnavailable, match="may evict"):
            await ledger.reserve(asked("a.0", 1), time.time())
        # a local request costs nobody's money
        assert isinstance(await ledger.reserve(asked("b.0", 1, sent=True), time.time()), Reserved)
        client.config_set("maxmemory-policy", "noeviction")
        await ledger.refresh(time.time())
        assert isinstance(await ledger.reserve(asked("c.0", 1), time.time()), Reserved)
    await ledger.close()


async def test_a_full_server_refuses_and_nothing_is_half_done(
    own_server: Callable[..., RealServer],
) -> None:
    server = own_server()
    ledger = await books(server.url)
    await limit(ledger, 1_000)
    await ledger.reserve(asked("a.0", 10), time.time())
    with server.client() as client:
        client.config_set("maxmemory", 1)
        for attempt in (
            ledger.reserve(asked("b.0", 1), time.time()),
            ledger.settle("a.0", row("a.0", 5)),
        ):
            with pytest.raises(LedgerUnavailable, match="OOM") as caught:
                await attempt
            assert not caught.value.ambiguous
        client.config_set("maxmemory", 0)
    await ledger.settle("a.0", row("a.0", 5))
    assert (await settled_up(ledger)).posted_nano == 5
    await ledger.close()


async def test_a_replica_is_refused_and_a_primary_that_becomes_one_answers_nobody(
    own_server: Callable[..., RealServer],
) -> None:
    port = free_port()
    primary, other = own_server(), own_server()
    with primary.client() as client, other.client() as replica:
        client.config_set("port", port)
        ledger = await books(primary.url)
        await limit(ledger, 1_000)
        replica.replicaof("127.0.0.1", port)
        with pytest.raises(LedgerUnavailable, match="is a replica"):
            await books(other.url)
        client.replicaof("127.0.0.1", free_port())  # of nobody: the primary is read-only now
        with pytest.raises(LedgerUnavailable, match="READONLY") as caught:
            await ledger.reserve(asked("a.0", 1), time.time())
        assert not caught.value.ambiguous  # it answered, and need not be waited for
        client.replicaof("NO", "ONE")
    await until_back(ledger)
    await checked(ledger)
    assert isinstance(await ledger.reserve(asked("b.0", 1), time.time()), Reserved)
    await ledger.close()


async def test_a_server_that_reads_its_books_is_waited_for(
    own_server: Callable[..., RealServer],
) -> None:
    server = own_server("--appendonly", "yes", "--appendfsync", "always")
    ledger = await books(server.url)
    await limit(ledger, 10**9)
    for n in range(30):
        await ledger.reserve(asked(f"a{n}.0", 10), time.time())
    server.kill()
    server.options = (*server.options, "--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")  # fmt: skip  # noqa: E501
    starting = asyncio.get_running_loop().run_in_executor(None, server.start)
    seen: set[bool] = set()
    while not starting.done():
        try:
            await ledger.reserve(asked(f"b{len(seen)}.0", 1), time.time())
        except LedgerUnavailable as error:
            seen.add(error.ambiguous)
        await asyncio.sleep(0.01)
    await starting
    assert False in seen
    await checked(ledger)
    assert (await ledger.till()).held_nano >= 300
    await ledger.close()


async def test_behind_a_stalled_server_only_the_first_wait(
    own_server: Callable[..., RealServer],
) -> None:
    server = own_server()
    ledger = await books(server.url, call_timeout_s=0.5)
    await limit(ledger, 1_000)
    server.signal(signal.SIGSTOP)
    with pytest.raises(LedgerUnavailable):
        await ledger.reserve(asked("a.0", 1), time.time())  # half a second
    for n in range(100):
        with pytest.raises(LedgerUnavailable, match="does not answer") as caught:
            ledger.reserve(asked(f"b{n}.0", 1), time.time()).send(None)  # in its first step
        assert not caught.value.ambiguous
    server.signal(signal.SIGCONT)
    await until_back(ledger)
    await ledger.refresh(time.time())
    assert isinstance(await ledger.reserve(asked("c.0", 1_000), time.time()), Reserved)
    await ledger.close()


# ------------------------------------------------------------------ another server


async def test_a_restart_with_a_whole_log_is_checked_and_loses_nothing(
    own_server: Callable[..., RealServer],
) -> None:
    server = own_server("--appendonly", "yes", "--appendfsync", "always")
    ledger = await books(server.url)
    await limit(ledger, 1_000)
    await ledger.reserve(asked("a.0", 400), time.time())
    await ledger.reserve(asked("b.0", 400), time.time())
    await ledger.settle("a.0", row("a.0", 300))
    await ledger.refresh(time.time())
    server.kill()
    server.start()
    await until_back(ledger)
    assert "being checked" in ledger.frozen  # before anything was asked of it
    with pytest.raises(LedgerUnavailable, match="being checked"):
        await ledger.reserve(asked("c.0", 1), time.time())
    assert await checked(ledger) < 10.0
    assert isinstance(await ledger.reserve(asked("d.0", 301), time.time()), Exhausted)
    assert isinstance(await ledger.reserve(asked("e.0", 300), time.time()), Reserved)
    await ledger.settle("b.0", row("b.0", 400))
    await ledger.settle("e.0", row("e.0", 1))
    assert (await settled_up(ledger)).posted_nano == 701
    assert ledger.lost_nano == 0
    await ledger.close()


async def test_what_a_server_lost_is_put_back_by_who_made_it(
    own_server: Callable[..., RealServer], tmp_path: Path
) -> None:
    """The log is cut back to before the last operations, as a replica that was behind would be."""
    server = own_server("--appendonly", "yes", "--appendfsync", "always")
    one, other = await books(server.url, "gw-1"), await books(server.url, "gw-2")
    await limit(one, 1_000)
    await one.reserve(asked("early.0", 100), time.time())
    await one.settle("early.0", row("early.0", 60))
    for each in (one, other):
        await each.refresh(time.time())
    (log,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    length = log.stat().st_size
    await one.reserve(asked("open.0", 200), time.time())
    await other.reserve(asked("done.0", 300), time.time())
    await other.mark_sent("done.0")
    await other.settle("done.0", row("done.0", 250))
    await other.reserve(asked("grown.0", 10), time.time())
    await other.grow("grown.0", 30)
    await one.refresh(time.time())
    server.kill()
    with log.open("r+b") as file:
        file.truncate(length)
    server.start()
    for each in (one, other):
        await until_back(each)
    assert (await one.till()).posted_nano == 60  # it really lost them
    await asyncio.gather(checked(one), checked(other))
    for each in (one, other):
        await checked(each)
        assert each.lost_nano == 0
    till = await one.till()
    assert (till.posted_nano, till.held_nano) == (310, 230)
    assert {r.hold_id for r in await rows_of(one)} == {"early.0", "done.0"}
    await one.settle("open.0", row("open.0", 200))
    await other.settle("grown.0", row("grown.0", 30))
    (budget,) = await one.budgets(time.time())
    assert (await settled_up(one)).posted_nano == budget.posted_nano == 540
    for each in (one, other):
        await each.close()


async def test_a_settlement_before_the_check_puts_its_hold_back_first(
    own_server: Callable[..., RealServer],
) -> None:
    server = own_server("--appendonly", "yes", "--appendfsync", "always")
    ledger = await books(server.url)
    await limit(ledger, 1_000)
    await ledger.refresh(time.time())
    (log,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    length = log.stat().st_size
    await ledger.reserve(asked("a.0", 200), time.time())
    server.kill()
    with log.open("r+b") as file:
        file.truncate(length)
    server.start()
    await until_back(ledger)
    assert (await ledger.settle("a.0", row("a.0", 150))).posted_nano == 150
    await checked(ledger)
    assert (await settled_up(ledger)).posted_nano == 150
    await ledger.close()


async def test_a_server_without_our_budgets_freezes_the_cloud_until_they_are_back(
    own_server: Callable[..., RealServer],
) -> None:
    """No budgets would mean no limits."""
    server = own_server("--appendonly", "yes", "--appendfsync", "always")
    ledger = await books(server.url)
    await limit(ledger, 100)
    server.kill()
    kept = server.folder / "appendonlydir"
    kept.rename(server.folder / "kept")
    server.start()
    await until_back(ledger)
    for _ in range(3):
        await ledger.refresh(time.time())
        with pytest.raises(LedgerUnavailable, match="does not have our budgets"):
            await ledger.reserve(asked("a.0", 10**12), time.time())
    server.kill()
    (server.folder / "appendonlydir").rename(server.folder / "empty")
    (server.folder / "kept").rename(kept)
    server.start()
    await until_back(ledger)
    await checked(ledger)
    assert isinstance(await ledger.reserve(asked("b.0", 101), time.time()), Exhausted)
    await ledger.close()


async def test_what_nobody_can_put_back_is_reported_and_not_waited_for_for_ever(
    own_server: Callable[..., RealServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PATIENCE_S", 0.3)
    server = own_server("--appendonly", "yes", "--appendfsync", "always")
    ledger, gone = await books(server.url, "gw-1"), await books(server.url, "gw-2")
    await limit(ledger, 1_000)
    await ledger.refresh(time.time())
    (log,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    length = log.stat().st_size
    await gone.reserve(asked("a.0", 100), time.time())
    await gone.settle("a.0", row("a.0", 70))
    await ledger.refresh(time.time())
    await gone.close()  # its process dies with the server
    server.kill()
    with log.open("r+b") as file:
        file.truncate(length)
    server.start()
    await until_back(ledger)
    await checked(ledger)
    assert ledger.lost_nano == 70
    await ledger.close()


# ------------------------------------------------------------------ small parts


def standing(posted: int, ms: int) -> Standing:
    return Standing(posted_nano=posted, held_nano=0, last_row=(ms, 0), open_nano=-1, epoch="e")


def test_a_check_begins_at_the_latest_moment_that_the_server_still_has() -> None:
    known = Checkpoints()
    for n in range(5):
        known.note(standing(10 * n, n), now_s=10.0 * n)
    known.note(standing(99, 99), now_s=41.0)  # too soon after the last one
    assert known.before((3, 7)) == ((3, 0), 30)
    assert known.before((9, 0)) == ((4, 0), 40)
    known.forget()
    assert known.before((9, 0)) == ((0, 0), 0)


def test_fitness() -> None:
    assert unfit(read_info("role:master\r\nmaxmemory_policy:noeviction\r\n# x\r\n")) == ""
    assert "replica" in unfit({"role": "slave"})
    assert "evict" in unfit({"maxmemory_policy": "allkeys-lfu"})
