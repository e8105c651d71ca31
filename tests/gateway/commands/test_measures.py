from __future__ import annotations

import asyncio
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import redis

from backends.scripted_server import ServerOptions
from gateway.admin.admin import HotPage
from gateway.commands import archive, measures, report
from gateway.ledger.marks import Marks
from tests.gateway.commands.kit import Admin, alone
from tests.gateway.rig import ADMIN_TOKEN, Rig, rig
from tests.gateway.test_flow import asking, picture

FINE = {"target": "local:w1", "answers": 30, "expected": 4320, "counted": 4320}
OFF = {"target": "cloud:seed", "answers": 30, "expected": 38400, "counted": 20910}
LINE = {
    "target": "w1", "answers": 4, "busy_s": 1800.0, "utilisation": 0.5, "cost_nano": 3_000,
    "carried_nano": 2_000, "unused_nano": 1_000, "marginal_nano": 500,
}  # fmt: skip
USE = {
    "from_ms": 1_795_276_800_000, "to_ms": 1_795_280_400_000, "servers": 1,
    "rate": {"full_nano_per_s": 1, "marginal_nano_per_s": 0},
    "lines": [LINE], "total": {**LINE, "target": "total"},
}  # fmt: skip


def answering(
    patch: pytest.MonkeyPatch, folder: Path, answer: object, marks: Marks | None = None
) -> Admin:
    alone(patch, folder)
    page = HotPage(marks=marks or Marks(), entries=[])
    made = Admin(answer, more={"/admin/entries": page})
    patch.setattr(report, "AdminClient", made)
    return made


@pytest.mark.parametrize(("counted", "code"), [(4320, 0), (20910, 3)])
def test_drift_of_pictures_is_a_table_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    counted: int,
    code: int,
) -> None:
    """Whether it is an alarm follows from the figures, whatever the answer says of it."""
    off = {**OFF, "expected": 4320, "counted": counted, "alarming": None}
    admin = answering(monkeypatch, tmp_path, [FINE, off])
    assert report.main(["--drift", "--tenant", "acme"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["local:w1", "30", "4320", "4320", "+0.00", "%"]
    assert lines[3].split()[3:] == (
        ["4320", "+0.00", "%"] if code == 0 else ["20910", "+384.03", "%", "alarm"]
    )
    assert lines[-1] == "Rows in Redis; none are archived."
    assert admin.asked == [("GET", "/admin/drift", {"tenant": "acme"})]
    assert report.main(["--drift", "--json"]) == code
    assert [one["alarming"] for one in json.loads(capsys.readouterr().out)] == [False, code == 3]
    assert report.main(["--drift", "--csv"]) == code
    (_, row) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert row["share"] == f"{counted / 4320 - 1:.6f}"
    assert row["alarming"] == str(int(code == 3))


def test_no_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(monkeypatch, tmp_path, [])
    assert report.main(["--drift"]) == 0
    assert "no answers with pictures" in capsys.readouterr().out


def test_use_is_a_table_with_its_time_and_its_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    admin = answering(monkeypatch, tmp_path, USE)
    (tmp_path / "yuzui.yaml").write_text("timezone: Asia/Shanghai\n")
    assert report.main(["--utilisation"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == [
        "w1", "4", "0.500", "50.00", "%", "0.000003", "0.000002", "0.000001", "0.0000005",
    ]  # fmt: skip
    assert lines[-1] == (
        "From 2026-11-22 00:00+08:00 to 2026-11-22 01:00+08:00, servers: 1. "
        "Rows in Redis; none are archived."
    )
    assert admin.asked == [("GET", "/admin/utilisation", {})]
    assert report.main(["--utilisation", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == USE
    assert report.main(["--utilisation", "--csv"]) == 0
    (row, total) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (row["utilisation"], row["unused_cny"]) == ("0.500000", "0.000001")
    assert total["server"] == "total"


def test_what_is_not_known_is_a_dash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {**LINE, "cost_nano": None, "unused_nano": None}
    answering(monkeypatch, tmp_path, {**USE, "lines": [line], "total": line})
    assert report.main(["--utilisation", "--tenant", "acme"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[5:] == [
        "-",
        "0.000002",
        "-",
        "0.0000005",
    ]


@pytest.mark.parametrize("kind", ["--drift", "--utilisation"])
def test_trouble_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    alone(monkeypatch, tmp_path)
    monkeypatch.setattr(report, "AdminClient", Admin(error="nobody answers"))
    assert report.main([kind]) == 1
    assert capsys.readouterr().err == "yuzui report: nobody answers\n"
    answering(monkeypatch, tmp_path, [], Marks(books="b", cursor="4-0", rows=4))
    monkeypatch.setattr(report.AdminClient, "_answer", USE)
    assert report.main([kind]) == 1
    assert "4 rows of these books are archived, but not in" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "answer"), [("--drift", [FINE]), ("--utilisation", USE)])
def test_without_the_extra_hot_rows_are_shown_and_called_that(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    answer: object,
) -> None:
    answering(monkeypatch, tmp_path, answer, Marks(books="b", cursor="4-0", rows=4))
    monkeypatch.setattr(measures, "installed", lambda: False)
    assert report.main([kind]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "Rows in Redis alone. Others are archived" in said
    assert "pip install 'yuzui[archive]'" in said
    assert report.main([kind, "--json"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)
    assert found.err.startswith("yuzui report: Rows in Redis alone.")


# ------------------------------------------------------------------ with real books and files


async def _archived(house: Rig, url: str) -> None:
    """Every row so far as if it had been booked on 22 November, and out of Redis."""
    with redis.Redis.from_url(url) as raw:
        entries = raw.xrange("yuzui:{main}:rows")
        raw.delete("yuzui:{main}:rows")
        for i, (_, fields) in enumerate(entries):
            raw.xadd("yuzui:{main}:rows", fields, id=f"1795338000000-{i}")
    assert await asyncio.to_thread(archive.main, ["run", "--once"]) == 0
    assert await house.rows() == []


async def test_both_read_hot_and_archived_rows_of_a_real_gateway(
    valkey_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def say(*argv: str) -> Any:
        capsys.readouterr()
        assert await asyncio.to_thread(report.main, [*argv, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    alone(monkeypatch, tmp_path)
    async with rig(valkey_url, workers=[ServerOptions(chunks=5)], cloud=True) as house:
        (tmp_path / "yuzui.yaml").write_text(
            f"redis_url: {valkey_url}\ndata_dir: data\nadmin_port: {house.config.admin_port}\n"
            f"admin_token: {ADMIN_TOKEN}\narchive: {{keep_hot_days: 0}}\n"
        )
        await house.ready_worker()
        pictured = {"messages": asking(picture(640, 480))}
        for model in ("local/glm-4.6v", "cloud/glm-4.6v"):
            assert (await house.ask(model=model, **pictured)).status == 200
        before = [await say("--utilisation"), await say("--drift")]
        first = await house.settled()
        await _archived(house, valkey_url)
        after = [await say("--utilisation"), await say("--drift")]
        for found in (before[0], after[0]):
            del found["to_ms"], found["total"]["utilisation"], found["total"]["cost_nano"]
            for line in (*found["lines"], found["total"]):
                for name in ("utilisation", "cost_nano", "unused_nano"):
                    line.pop(name, None)
        assert before == after
        assert after[0]["total"]["answers"] == after[1][0]["answers"] == 1

        for model in ("local/glm-4.6v", "cloud/glm-4.6v"):
            assert (await house.ask(model=model, **pictured)).status == 200
        rows = [*first, *await house.rows()]
        local = [row for row in rows if row.site == "local"]
        use = await say("--utilisation")
        assert use["total"]["answers"] == len(local) == 2
        assert use["total"]["carried_nano"] == sum(row.posted_nano for row in local)
        assert use["from_ms"] == min(row.at_ms for row in local)
        assert use["rate"]["full_nano_per_s"] > 0
        assert (use["servers"], use["total"]["cost_nano"] > 0) == (1, True)
        (drift,) = await say("--drift")
        assert drift["answers"] == 2
        there = [row for row in rows if row.site == "cloud"]  # the engine here counts no pictures
        assert drift["expected"] == sum(row.image_tokens_expected for row in there) > 0

        # bounds reach both sides
        assert (await say("--utilisation", "--until", "2020-01-01"))["lines"] == []
        assert await say("--drift", "--tenant", "nobody") == []
        theirs = await say("--utilisation", "--tenant", "t")
        assert theirs["total"]["answers"] == 2
        assert theirs["total"]["cost_nano"] is None
        assert await asyncio.to_thread(report.main, ["--utilisation"]) == 0
        assert "Rows in Redis and rows in the archive." in capsys.readouterr().out
