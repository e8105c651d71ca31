"""The command, against a real gateway, real books, and the emulator's bill through the SDK."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends.ark.emulator.settings import Settings
from gateway.commands import reconcile
from gateway.ledger.rows import RowState
from gateway.reports.reconcile import BEIJING
from tests.gateway.archive.kit import archive
from tests.gateway.commands.kit import alone
from tests.gateway.rig import ADMIN_TOKEN, AT_ONCE, Rig, rig
from tests.gateway.test_flow import asking

CLOUD = {"model": "cloud/glm-4.6v"}
LATER_S = 3 * 3_600


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("VOLC_ACCESSKEY", "VOLC_SECRETKEY"):
        monkeypatch.delenv(name, raising=False)
    alone(monkeypatch, tmp_path)
    return tmp_path


@asynccontextmanager
async def house(books_url: str, folder: Path, **billing: Any) -> AsyncIterator[Rig]:
    """A gateway whose cloud bills at once, and the settings of a command that talks to it."""
    settings = {
        "port": 0,
        "latency": AT_ONCE,
        "billing": {"delay_s": 0, "split_delay_s": 0, "usage_delay_s": 0, **billing},
    }

    async with rig(books_url, cloud=msgspec.convert(settings, Settings)) as found:
        (folder / "yuzui.yaml").write_text(
            f"admin_port: {found.config.admin_port}\nadmin_token: {ADMIN_TOKEN}\n"
        )
        yield found


async def leave(found: Rig) -> None:
    """A client that has gone before its answer came."""
    await found.fault({"token_ms": 50, "answer_tokens": 5_000, "first_ms": 100}, rate=1.0)
    body = {**CLOUD, "stream": True, "max_tokens": 2_000, "messages": asking()}
    cloud = found.cloud
    assert cloud is not None
    await found.leave(lambda: cloud.books.running > 0, **body)


async def ran(found: Rig, *more: str) -> int:
    """The command for today, some hours later by the clocks of the emulator and of the command."""
    assert found.cloud is not None
    found.cloud.bill._clock = lambda: time.time() + LATER_S
    day = datetime.now(UTC).astimezone(BEIJING).date().isoformat()
    args = ["--day", day, "--emulator", found.cloud_root, *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconcile, "_now_ms", lambda: int((time.time() + LATER_S) * 1000))
        return await asyncio.to_thread(reconcile.main, args)


async def test_a_day_that_agrees_and_an_open_request_that_is_resolved(
    books_url: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with house(books_url, folder) as found:
        await found.budget("backend:cloud", 10**12)
        for _ in range(3):
            assert (await found.ask(**CLOUD)).status == 200
        await leave(found)
        before = await found.settled()
        (lost,) = [row for row in before if row.state == RowState.UNRECONCILED]

        assert await ran(found, "--dry-run") == 0
        assert "would be corrected: 1," in capsys.readouterr().out
        assert len(await found.rows()) == len(before)

        assert await ran(found, "--json") == 0
        out = capsys.readouterr().out  # the gateway's own log lines stand before it
        said = json.loads(out[out.index("{\n") :])
        assert said["agrees"]
        assert said["findings"] == []
        assert [each["hold_id"] for each in said["resolved"]] == [lost.hold_id]
        assert said["corrections"][0]["already"] is False

        after = await found.settled()  # every sum agrees, corrections among them
        correction = after[-1]
        assert (correction.hold_id, correction.state) == (lost.hold_id, RowState.CORRECTION)
        assert correction.completion_tokens > 0
        assert lost.posted_nano + correction.posted_nano < lost.posted_nano
        (budget,) = await found.admin("GET", "/admin/budgets")
        assert budget["posted_nano"] == sum(row.posted_nano for row in after)
        assert found.cloud is not None
        billed = sum(each.amount for each in found.cloud.bill.details(0, 2**40))
        booked = sum(row.posted_nano for row in after)
        assert abs(int(billed * 10**9) - booked) < 10_000_000, "to the cent"

        assert await ran(found) == 0
        out = capsys.readouterr().out
        assert "no open request to resolve" in out
        assert len(await found.rows()) == len(after), "once is enough"


async def test_a_bill_that_is_wrong_is_a_table_and_an_exit_code(
    books_url: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with house(books_url, folder, faults={"missing": 1.0}) as found:
        assert (await found.ask(**CLOUD)).status == 200
        assert await ran(found, "--tolerance-cny", "0") == 3
        out = capsys.readouterr().out
        assert "missing" in out
        assert "doubao-seed-2-1-lite" in out
        assert await ran(found, "--tolerance-cny", "1000", "--no-usage") == 0


async def test_rows_that_have_left_redis_are_read_from_the_archive(
    books_url: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They match as before; an open one can be named, and corrected no more."""
    async with house(books_url, folder) as found:
        for _ in range(2):
            assert (await found.ask(**CLOUD)).status == 200
        await leave(found)
        await found.settled()
        moved = await archive(books_url, folder / ".yuzui" / "archive")
        assert (moved.rows, moved.trimmed) == (3, 3)
        assert await found.rows() == []
        assert await ran(found) == 0
        out = capsys.readouterr().out
        assert "1 that stood at their bound" in out
        assert "1 came too late" in out


async def test_without_keys_it_says_which_ones(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reconcile.main(["--day", "2026-11-25"]) == 1
    assert "VOLC_ACCESSKEY" in capsys.readouterr().err


def test_a_day_of_which_nothing_is_billed_yet(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tomorrow = (datetime.now(UTC).astimezone(BEIJING) + timedelta(days=1)).date().isoformat()
    assert reconcile.main(["--day", tomorrow]) == 1
    assert f"nothing of {tomorrow} can be billed yet" in capsys.readouterr().err


def test_without_the_sdk_it_says_what_to_install(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert reconcile.main(["--day", "2026-11-25"]) == 1
    assert "yuzui[reconcile]" in capsys.readouterr().err


def test_a_gateway_that_is_not_there_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--day", "2026-11-25", "--emulator", "http://127.0.0.1:9"]
    assert reconcile.main(args) == 1
    assert "no gateway answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args", [["--day", "yesterday"], ["--tolerance-cny", "-1"], ["--tolerance-cny", "some"]]
)
def test_wrong_usage(folder: Path, args: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        reconcile.main(args)
    assert caught.value.code == 2


async def test_nobody_corrects_what_is_not_open(books_url: str, folder: Path) -> None:
    """The admin port reads the row itself: a made-up one is refused."""
    async with house(books_url, folder) as found:
        assert (await found.ask(**CLOUD)).status == 200
        (row,) = await found.settled()
        made_up = {"request_id": row.request_id, "attempt": row.attempt, "at_ms": row.at_ms}
        body = [{**made_up, "tenant": "t", "model": "m", "site": "cloud", "target": "x",
                 "reason": "reconciled", "state": "correction", "posted_nano": -1}]  # fmt: skip
        url, headers = found.admin_url, {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        async with found.http.post(
            f"{url}/admin/corrections", json=body, headers=headers
        ) as answer:
            assert await answer.json() == [{"hold_id": row.hold_id, "gone": True}]
        async with found.http.post(f"{url}/admin/corrections", json=body) as answer:
            assert answer.status == 401
        assert len(await found.rows()) == 1
