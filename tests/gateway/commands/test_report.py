from __future__ import annotations

import csv
import json
from decimal import Decimal
from pathlib import Path

import pytest

from gateway.admin.admin import HotPage
from gateway.commands import report
from gateway.ledger.marks import Marks
from gateway.reports.report import Line, Report
from tests.gateway.commands.kit import Admin, alone

LINE = Line(
    group="local:w1", requests=3, tokens_in=40, tokens_out=5, image_tokens=12, cost_nano=324_000,
    saved_nano=-1, unreconciled=1,
)  # fmt: skip
FOUND = Report(by="backend", lines=[LINE], total=Line(group="total", requests=3, cost_nano=324_000))


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Admin:
    alone(monkeypatch, tmp_path)
    made = Admin(FOUND, more={"/admin/entries": HotPage(marks=Marks(), entries=[])})
    monkeypatch.setattr(report, "AdminClient", made)
    return made


def test_a_table(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "backend"
    assert lines[2].split() == ["local:w1", "3", "40", "5", "0.000324", "-0.000000001", "1"]
    assert lines[3].split()[0] == "total"
    assert admin.asked == [("GET", "/admin/report", {"by": "backend"})]


def test_csv(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert rows[0] == {
        "backend": "local:w1", "requests": "3", "tokens_in": "40", "tokens_out": "5",
        "cost_cny": "0.000324", "saved_cny": "-0.000000001", "unreconciled": "1",
    }  # fmt: skip
    assert [row["backend"] for row in rows] == ["local:w1", "total"]


def test_json(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--json", "--by", "backend"]) == 0
    found = json.loads(capsys.readouterr().out, parse_float=Decimal)
    assert found["by"] == "backend"
    assert found["lines"][0]["cost_cny"] == Decimal("0.000324")
    assert found["lines"][0]["cost_nano"] == 324_000
    assert found["total"]["saved_cny"] == 0


def test_days_are_those_of_the_settings(admin: Admin, tmp_path: Path) -> None:
    (tmp_path / "yuzui.yaml").write_text("timezone: Asia/Shanghai\n")
    assert report.main(["--since", "2026-11-22", "--until", "2026-11-23"]) == 0
    query = admin.asked[0][2]
    assert int(query["since"]) == 1_795_276_800_000  # 16:00 of the day before in UTC
    assert int(query["until"]) - int(query["since"]) == 86_400_000


def test_a_tenant_of_its_own(admin: Admin) -> None:
    assert report.main(["--tenant", "acme", "--by", "reason"]) == 0
    assert admin.asked == [("GET", "/admin/report", {"by": "reason", "tenant": "acme"})]


@pytest.mark.parametrize("day", ["yesterday", "2026-13-01", "2026-11-22T10", ""])
def test_a_day_that_is_none(admin: Admin, day: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--since", day]) == 2
    assert "is not a day such as 2026-11-01" in capsys.readouterr().err
    assert not admin.asked


def test_days_in_the_wrong_order(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--since", "2026-11-22", "--until", "2026-11-22"]) == 2
    assert "--since 2026-11-22 is not before --until 2026-11-22" in capsys.readouterr().err
    assert not admin.asked


def test_settings_that_are_wrong_end_it_with_their_place(
    admin: Admin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "yuzui.yaml").write_text("timezone: Mars/Olympus\n")
    with pytest.raises(SystemExit) as ended:
        report.main([])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("yuzui report: ")
    assert "yuzui.yaml:1" in said


def test_nobody_there(
    monkeypatch: pytest.MonkeyPatch, admin: Admin, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "AdminClient", Admin(error="no gateway answers"))
    assert report.main([]) == 1
    assert capsys.readouterr().err == "yuzui report: no gateway answers\n"


@pytest.mark.parametrize(
    "argv", [["--drift", "--utilisation"], ["--by", "day", "--drift"], ["--json", "--csv"]]
)
def test_two_reports_at_once_are_none(
    admin: Admin, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        report.main(argv)
    assert ended.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err
    assert not admin.asked
