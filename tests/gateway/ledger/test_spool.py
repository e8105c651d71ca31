"""Local requests while the books are away: on disk first, in the books later, each exactly once."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from backends.scripted_server import ServerOptions
from gateway.ledger import spool as module
from gateway.ledger.ledger import Ledger, LedgerUnavailable
from gateway.ledger.rows import RowState
from gateway.ledger.spool import Spool, SpoolFull, pack_line, read_spool
from policies.types import Site
from tests.gateway.ledger.kit import NOW_S, ZONE, books, hold, row, rows_of, settled_up
from tests.gateway.redis_servers import RealServer
from tests.gateway.rig import PATIENCE_S, rig
from tests.proof.proxy import Mishaps, Proxy

TENANT = "tenant:acme"


async def limit(ledger: Ledger, period: str = "day") -> None:
    await ledger.set_budget(TENANT, limit_nano=50, period=period, zone=ZONE, now_s=NOW_S)


async def test_entries_are_booked_once_into_the_budgets_of_their_time(
    redis_url: str, tmp_path: Path
) -> None:
    async with books(redis_url) as ledger:
        await limit(ledger)
        spool = Spool.open(tmp_path)
        for n in range(5):
            spool.begin(hold(f"s{n}.0", 100, TENANT))
        assert spool.end("s0.0", row("s0.0", 30)) == 30
        assert spool.end("s2.0", row("s2.0", 500)) == 100  # never more than its bound
        assert spool.end("s1.0", None) == 0
        await ledger.refresh(NOW_S + 2 * 86_400)  # they are booked two days later
        assert await spool.book(ledger) == 3
        assert await spool.book(ledger) == 0
        assert spool.waiting == 2
        spool.end("s3.0", row("s3.0", 1))
        spool.end("s4.0", row("s4.0", 2))
        assert await spool.book(ledger) == 2
        assert os.listdir(tmp_path) == []  # nothing is left to book
        found = {r.hold_id: (r.posted_nano, r.flags) for r in await rows_of(ledger)}
        assert found == {
            "s0.0": (30, ("spooled",)), "s2.0": (100, ("spooled",)),
            "s3.0": (1, ("spooled",)), "s4.0": (2, ("spooled",)),
        }  # fmt: skip
        assert (await settled_up(ledger)).posted_nano == 133
        assert [b.posted_nano for b in await ledger.budgets(NOW_S)] == [133]  # above its limit
        assert [b.posted_nano for b in await ledger.budgets(NOW_S + 2 * 86_400)] == [0]
        spool.begin(hold("again.0", 1, TENANT))  # a new file
        spool.end("again.0", row("again.0", 1))
        assert await spool.book(ledger) == 1


def synced(patch: pytest.MonkeyPatch) -> list[int]:
    """The files that were put on disk, each time that one was."""
    seen: list[int] = []
    patch.setattr(os, "fdatasync", seen.append)
    return seen


@pytest.mark.parametrize("strict", [False, True])
def test_what_was_written_is_put_on_disk_at_the_latest_when_it_closes(
    strict: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = synced(monkeypatch)
    spool = Spool.open(tmp_path, strict=strict)
    spool.flush()
    assert files == []  # nothing was written
    spool.begin(hold("a.0", 5, TENANT))
    assert len(files) == strict
    spool.flush()
    spool.flush()
    assert len(files) == 1
    spool.end("a.0", row("a.0", 5))
    spool.close()
    assert len(files) == 2
    spool.close()
    assert len(files) == 2  # it was closed already


_DIES = """
import sys, os, signal
from pathlib import Path
from gateway.ledger.spool import Spool
from tests.gateway.ledger.kit import hold, row
spool = Spool.open(Path(sys.argv[1]))
for n in range(4):
    spool.begin(hold(f"d{n}.0", 100, "tenant:acme"))
for n in range(3):
    spool.end(f"d{n}.0", row(f"d{n}.0", 10 + n))
os.write(spool._file, b"0000 half a li")
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _DIES, str(folder)], capture_output=True, text=True, timeout=60
    )


def the_file(folder: Path) -> tuple[Path, bytes]:
    (path,) = folder.glob("*.spool")
    return path, path.read_bytes()


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


async def test_what_a_killed_gateway_left_is_booked_by_another_once(
    redis_url: str, tmp_path: Path
) -> None:
    dead = killed(tmp_path)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    async with books(redis_url) as ledger:
        await limit(ledger)
        left, kept = the_file(tmp_path)
        mine = Spool.open(tmp_path)
        mine.begin(hold("mine.0", 5, TENANT))
        other = Spool.open(tmp_path)
        assert await other.book(ledger) == 4  # not mine: I live
        assert not left.exists(), "or it would be booked again every second"
        put(left, kept)  # as if it had died before it could remove the file
        await mine.book(ledger)
        found = {r.hold_id: (r.posted_nano, r.state) for r in await rows_of(ledger)}
        assert found == {
            "d0.0": (10, RowState.FINAL), "d1.0": (11, RowState.FINAL),
            "d2.0": (12, RowState.FINAL), "d3.0": (100, RowState.UNRECONCILED),
        }  # fmt: skip
        assert (await settled_up(ledger)).posted_nano == 133
        mine.close()


async def test_a_network_that_repeats_and_loses_changes_nothing(
    own_server: Callable[..., RealServer], tmp_path: Path
) -> None:
    server = own_server()
    mishaps = Mishaps(twice=0.2, lost=0.1, reply_lost=0.1, delayed=0.0, delay_s=0.0)
    async with Proxy(str(server.socket), mishaps, seed=7) as proxy:
        proxy.mishaps = None
        ledger = await Ledger.connect(proxy.url, instance="gw", call_timeout_s=0.3)
        proxy.mishaps = mishaps
        spool = Spool.open(tmp_path)
        for n in range(100):
            spool.begin(hold(f"n{n}.0", 100))
            spool.end(f"n{n}.0", row(f"n{n}.0", n))
        async with asyncio.timeout(60):
            while spool.waiting:
                try:
                    await spool.book(ledger)
                except LedgerUnavailable:
                    await asyncio.sleep(0.02)
        assert proxy.happened["twice"]
        assert proxy.happened["reply_lost"]
        await ledger.close()
    async with books(server.url) as quiet:
        assert sorted(r.posted_nano for r in await rows_of(quiet)) == list(range(100))
        assert (await settled_up(quiet)).posted_nano == sum(range(100))


def test_a_line_that_is_not_whole_ends_the_spool(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path, strict=True)
    spool.begin(hold("a.0", 1))
    spool.end("a.0", row("a.0", 1))
    spool.begin(hold("b.0", 1))
    spool.close()
    (path,) = tmp_path.glob("*.spool")
    data = path.read_bytes()
    whole = read_spool(data)
    assert ([line.id for line, _ in whole[0]], [line.id for line in whole[1]]) == (["a.0"], ["b.0"])
    for cut in range(len(data)):
        ended, begun = read_spool(data[:cut])
        assert len(ended) + len(begun) <= 2
    torn = data.replace(b'"b.0"', b'"c.0"', 1)
    assert [line.id for line in read_spool(torn)[1]] == []
    assert pack_line(b"{}") == b"a3a6bf43 {}\n"


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRIES_MAX", 2)
    spool = Spool.open(tmp_path)
    spool.begin(hold("a.0", 1))
    spool.begin(hold("b.0", 1))
    spool.end("a.0", row("a.0", 1))
    with pytest.raises(SpoolFull):
        spool.begin(hold("c.0", 1))
    spool.close()


def test_half_a_line_on_a_full_disk_hides_none_of_the_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = os.write, True

    def write(file: int, data: bytes) -> int:
        return real(file, data[: len(data) // 2] if full else data)

    monkeypatch.setattr(os, "write", write)
    spool = Spool.open(tmp_path)
    with pytest.raises(OSError, match="No space"):
        spool.begin(hold("a.0", 1))
    full = False
    spool.begin(hold("b.0", 1))
    spool.end("b.0", row("b.0", 1))
    spool.close()
    (path,) = tmp_path.glob("*.spool")
    ended, begun = read_spool(path.read_bytes())
    assert ([line.id for line, _ in ended], begun) == (["b.0"], [])


# ------------------------------------------------------------------ through a gateway


@pytest.mark.parametrize("without_books", [True, False])
async def test_without_redis_local_goes_on_by_policy_and_the_cloud_never_does(
    own_server: Callable[..., RealServer], tmp_path: Path, without_books: bool
) -> None:
    server = own_server("--appendonly", "yes", "--appendfsync", "always")
    settings = {"limits.local_without_books": without_books, "data_dir": str(tmp_path)}
    async with rig(
        server.url, workers=[ServerOptions(chunks=5)], cloud=True, settings=settings
    ) as house:
        await house.ready_worker()
        await house.budget("tenant:t", 10**9)
        assert (await house.ask()).status == 200
        server.kill()
        await asyncio.sleep(0.05)
        began_s = time.monotonic()
        cloud = await house.ask(model="cloud/glm-4.6v")
        assert (cloud.status, cloud.code) == (503, "ledger_unavailable")
        assert cloud.headers["retry-after"] == "1"
        assert time.monotonic() - began_s < 5.0
        assert await house.cloud_requests() == []
        for stream in (False, True):
            local = await house.ask(model="local/glm-4.6v", stream=stream)
            assert local.status == (200 if without_books else 503)
        async with house.http.get(f"{house.url}/readyz") as ready:
            assert ready.status == (200 if without_books else 503)
        server.start()
        async with asyncio.timeout(30):
            while len(rows := await _rows(house)) < (3 if without_books else 1):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        spooled = [r for r in rows if "spooled" in r.flags]
        assert len(spooled) == (2 if without_books else 0)
        assert all(r.posted_nano > 0 and r.site is Site.LOCAL for r in spooled)
        async with asyncio.timeout(30):  # checked: the cloud may be asked again
            while (await house.ask(model="cloud/glm-4.6v")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await house.settled()
    assert os.listdir(tmp_path) == (["spool"] if without_books else [])
    assert not without_books or os.listdir(tmp_path / "spool") == []


async def test_a_local_request_that_needs_no_books_does_not_wait_out_a_redis_that_hangs(
    own_server: Callable[..., RealServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time limit for a call is longer than this test has patience."""
    patient = partial(Ledger.connect, call_timeout_s=10 * PATIENCE_S)
    monkeypatch.setattr(Ledger, "connect", patient)
    server = own_server()
    settings = {"limits.local_without_books": True, "data_dir": str(tmp_path)}
    async with rig(server.url, workers=[ServerOptions(chunks=5)], settings=settings) as house:
        await house.ready_worker()
        server.signal(signal.SIGSTOP)
        for stream in (False, True):
            assert (await house.ask(stream=stream)).status == 200
        server.signal(signal.SIGCONT)
        async with asyncio.timeout(PATIENCE_S):
            while len(rows := await house.rows()) < 2:  # noqa: ASYNC110 - Redis has no event
                await asyncio.sleep(0.1)
        assert all("spooled" in row.flags for row in rows)
        assert (await house.settled()) == rows  # what was held meanwhile was given back


async def _rows(house):  # type: ignore[no-untyped-def]
    try:
        return await house.rows()
    except LedgerUnavailable:
        return []
