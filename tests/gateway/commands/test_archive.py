from __future__ import annotations

import asyncio
import json
import signal
import sys
from decimal import Decimal
from pathlib import Path

import pytest
import redis

from gateway.commands import archive, report
from tests.gateway.archive.kit import contents, fill
from tests.gateway.commands.kit import alone
from tests.gateway.ledger.kit import books
from tests.gateway.rig import ADMIN_TOKEN, rig


@pytest.fixture
def books_here(valkey_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty folder whose settings name real books, with rows from years ago."""
    alone(monkeypatch, tmp_path)
    (tmp_path / "yuzui.yaml").write_text(
        f"redis_url: {valkey_url}\ndata_dir: data\narchive: {{keep_hot_days: 0}}\n"
    )
    return valkey_url


async def _settled(url: str, count: int) -> None:
    """Rows that are old enough to be archived at once."""
    async with books(url) as ledger:
        await fill(ledger, count)
    with redis.Redis.from_url(url) as raw:
        entries = raw.xrange("yuzui:{main}:rows")
        raw.delete("yuzui:{main}:rows")
        for number, (_, fields) in enumerate(entries):
            raw.xadd("yuzui:{main}:rows", fields, id=f"1795338000000-{number}")


async def _do(*argv: str) -> int:
    return await asyncio.to_thread(archive.main, argv)


async def test_once_and_then_its_status(
    books_here: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    await _settled(books_here, 12)
    assert await _do("status") == 0
    assert "waiting    12 rows" in capsys.readouterr().out
    assert await _do("run", "--once") == 0
    assert capsys.readouterr().out == "12 rows archived, 12 trimmed from Redis\n"
    assert contents(tmp_path / "data" / "archive")
    assert await _do("status", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows_archived"], found["rows_in_files"], found["rows_waiting"]) == (12, 12, 0)
    assert found["till_nano"] == found["archived_nano"] == found["files_nano"] == 66_066
    assert found["adds_up"] is True


async def test_a_status_that_does_not_add_up_says_so(
    books_here: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    await _settled(books_here, 12)
    await _do("run", "--once")
    next(iter(contents(tmp_path / "data"))).unlink()
    assert await _do("status") == 1
    assert "adds up    NO" in capsys.readouterr().out


async def test_a_second_archiver_says_why_it_does_nothing(
    books_here: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with redis.Redis.from_url(books_here) as raw:
        raw.set("yuzui:{main}:archiver", "somebody", px=30_000)
    assert await _do("run", "--once") == 1
    assert "another archiver works" in capsys.readouterr().err


@pytest.mark.slow
async def test_the_process_archives_and_stops_when_told(books_here: str) -> None:
    await _settled(books_here, 5)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", "archive", "run", stderr=asyncio.subprocess.PIPE
    )
    with redis.Redis.from_url(books_here, decode_responses=True) as raw:
        async with asyncio.timeout(30):
            while raw.hget("yuzui:{main}:archive", "rows") != "5":  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, said = await process.communicate()
        assert process.returncode == 0, said.decode()
        assert not raw.exists("yuzui:{main}:archiver")


def test_no_books_to_be_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone(monkeypatch, tmp_path)
    assert archive.main(["status"]) == 1
    assert "set redis_url (YUZUI_REDIS_URL)" in capsys.readouterr().err


async def test_a_report_reads_hot_and_archived_rows_of_a_real_gateway(
    valkey_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone(monkeypatch, tmp_path)
    async with rig(valkey_url) as gateway:
        (tmp_path / "yuzui.yaml").write_text(
            f"redis_url: {valkey_url}\ndata_dir: data\nadmin_port: {gateway.config.admin_port}\n"
            f"admin_token: {ADMIN_TOKEN}\narchive: {{keep_hot_days: 0}}\n"
        )
        await gateway.ready_worker()
        for number in range(4):
            assert (await gateway.ask()).status == 200
            if number == 1:
                with redis.Redis.from_url(valkey_url) as raw:  # they were booked long ago
                    entries = raw.xrange("yuzui:{main}:rows")
                    raw.delete("yuzui:{main}:rows")
                    for i, (_, fields) in enumerate(entries):
                        raw.xadd("yuzui:{main}:rows", fields, id=f"1795338000000-{i}")
                before = await asyncio.to_thread(report.main, ["--json"])
                assert before == 0
                assert await _do("run", "--once") == 0
                assert len(await gateway.rows()) == 0
        capsys.readouterr()
        assert await asyncio.to_thread(report.main, ["--json", "--by", "reason"]) == 0
        found = json.loads(capsys.readouterr().out, parse_float=Decimal)
        till = await gateway.till()
    assert found["total"]["requests"] == 4
    assert found["total"]["cost_nano"] == till.posted_nano
    assert [line["group"] for line in found["lines"]] == ["local_fits"]


async def test_a_tenant_is_forgotten_when_asked_twice(
    books_here: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await _settled(books_here, 12)
    monkeypatch.setattr("builtins.input", lambda _: "no")
    assert await _do("forget", "--tenant", "tenant-1") == 1
    assert "nothing was erased" in capsys.readouterr().out
    monkeypatch.setattr("builtins.input", lambda _: "yes")
    assert await _do("forget", "--tenant", "tenant-1") == 0
    assert "4 rows of tenant tenant-1 are erased" in capsys.readouterr().out
    assert await _do("forget", "--tenant", "tenant-2", "--yes") == 0
    assert await _do("status") == 0
    assert await _do("compact") == 0
    assert "0 files merged" in capsys.readouterr().out  # all are younger than an hour, but one
    with redis.Redis.from_url(books_here) as raw:
        assert not raw.exists("yuzui:{main}:archiver"), "the claim is given back"


async def test_nobody_to_ask_is_no_consent(
    books_here: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", gone)
    assert await _do("forget", "--tenant", "tenant-1") == 1
    assert "give --yes" in capsys.readouterr().err
