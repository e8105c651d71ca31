"""The gateway's own tending goes on, whatever one turn of it meets."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from backends.scripted_server import ServerOptions
from gateway import gateway as module
from gateway.ledger.alerts import Alerts
from gateway.ledger.ledger import Ledger, LedgerUnavailable
from gateway.ledger.spool import Spool
from gateway.tasks import spawn
from tests.gateway.redis_servers import RealServer
from tests.gateway.rig import PATIENCE_S, Rig, rig, until


async def booked(house: Rig) -> bool:
    try:
        return bool(await house.rows())
    except LedgerUnavailable:
        return False


async def test_a_full_disk_stops_neither_the_tending_of_the_books_nor_the_end(
    own_server: Callable[..., RealServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, closed = 0, False
    real = Ledger.close

    def flush(self: Spool) -> None:
        nonlocal flushed
        flushed += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    async def close(self: Ledger) -> None:
        nonlocal closed
        closed = True
        await real(self)

    monkeypatch.setattr(module, "TEND_EVERY_S", 0.02)
    server = own_server("--appendonly", "yes", "--appendfsync", "always")
    settings = {"limits.local_without_books": True, "data_dir": str(tmp_path)}
    async with rig(server.url, workers=[ServerOptions(chunks=5)], settings=settings) as house:
        await house.ready_worker()
        monkeypatch.setattr(Spool, "flush", flush)
        server.kill()
        assert (await house.ask()).status == 200
        server.start()
        async with asyncio.timeout(PATIENCE_S):
            while not await booked(house):  # noqa: ASYNC110 - Redis has no event
                await asyncio.sleep(0.02)
        seen = flushed
        await until(lambda: flushed > seen + 3)
        monkeypatch.setattr(Ledger, "close", close)
    assert closed


async def test_a_turn_of_the_tending_that_fails_is_not_the_last(
    books_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0

    async def look(self: Alerts, now_s: float) -> None:
        nonlocal turns
        turns += 1
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "TEND_EVERY_S", 0.02)
    monkeypatch.setattr(Alerts, "look", look)
    async with rig(books_url):
        await until(lambda: turns > 3)


async def test_as_many_calls_run_at_once_as_requests_may_be_inside(books_url: str) -> None:
    """More than the exit's own bound of 512."""
    options = ServerOptions(first_ms=60_000, slots=600)
    async with (
        rig(books_url, workers=[options], settings={"pool.warm_up_s": 0}) as house,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as many,
    ):
        await house.ready_worker()
        await house.http.close()
        house.http = many
        asking = [spawn(house.ask(), name="client") for _ in range(530)]
        await until(lambda: house.workers[0].running == 530)
        for one in asking:
            one.cancel()
        await asyncio.wait(asking)
