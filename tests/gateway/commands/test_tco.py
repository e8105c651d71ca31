from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.admin.admin import HotPage
from gateway.commands import tco
from gateway.ledger.entries import Entry
from gateway.ledger.marks import PAGE_ROWS, Marks
from tests.gateway.archive.test_query import put
from tests.gateway.commands.kit import Admin, alone
from tests.gateway.tco.kit import rows
from tests.gateway.tco.test_png import LATIN

ENTRIES = [Entry(id=f"{n + 1}-0", row=one) for n, one in enumerate(rows(200))]
POOL = {"workers": [{"slots": 4}, {"slots": None}]}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    alone(monkeypatch, tmp_path)
    assert len(ENTRIES) < PAGE_ROWS
    pages = {"/admin/entries": HotPage(marks=Marks(), entries=ENTRIES), "/admin/pool": POOL}
    monkeypatch.setattr(tco, "AdminClient", Admin(more=pages))
    return tmp_path


def test_tables(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tco.main([]) == 0
    said = capsys.readouterr().out
    assert "Buy or rent" in said
    assert "Provisional" in said
    assert "all in the cloud" in said
    assert "price of a server" in said


def test_json_is_exact(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tco.main(["--json", "--servers", "3,1", "--bought", "2026-12-01"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["servers"] for one in found["study"]["scenarios"]] == [1, 3]
    assert found["booked"]["requests"] == 200
    assert isinstance(found["study"]["cloud_nano"], int)
    assert found["context"]["bought"] == "2026-12-01"
    assert found["context"]["server"]["slots"] == 4


def test_pages(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gateway.tco.png.find_fonts", lambda: [LATIN])  # a bare machine has none
    assert tco.main(["--html", "a.html", "--png", "a.png"]) == 0
    assert (here / "a.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert (here / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "written: a.html" in capsys.readouterr().err


def test_bounds_choose_the_rows(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tco.main(["--since", "2026-11-24"]) == 1
    assert "at least two answered requests" in capsys.readouterr().err
    assert tco.main(["--tenant", "nobody"]) == 1


def test_archived_rows_are_studied_too(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, cursor = put(here / ".yuzui" / "archive", ENTRIES[:150])
    from gateway.archive.files import Marker

    files.mark(Marker(books="b", created=""))
    marks = Marks(books="b", cursor=cursor, rows=150)
    pages = {"/admin/entries": HotPage(marks=marks, entries=ENTRIES[150:]), "/admin/pool": POOL}
    monkeypatch.setattr(tco, "AdminClient", Admin(more=pages))
    assert tco.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["booked"]["requests"] == 200


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--servers", "one"], "--servers 'one'"),
        (["--servers", "0"], "from 1 to 1000"),
        (["--bought", "soon"], "--bought 'soon'"),
        (["--token-ms", "-1"], "--token-ms '-1'"),
        (["--since", "soon"], "--since 'soon'"),
    ],
)
def test_options_that_cannot_be_name_themselves(
    here: Path, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tco.main(argv) == 2
    assert said in capsys.readouterr().err


def test_slots_must_be_known(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages: dict[str, Any] = {
        "/admin/entries": HotPage(marks=Marks(), entries=ENTRIES),
        "/admin/pool": {"workers": []},
    }
    monkeypatch.setattr(tco, "AdminClient", Admin(more=pages))
    assert tco.main([]) == 1
    assert "give --slots" in capsys.readouterr().err
    assert tco.main(["--slots", "8"]) == 0


def test_the_article(capsys: pytest.CaptureFixture[str]) -> None:
    assert tco.main(["--from", "article"]) == 0
    said = capsys.readouterr().out
    for figure in ("0.00925 CNY", "0.00185 CNY", "27,750 CNY", "55,500 CNY", "2.5 months",
                   "5.5 months", "92.5 CNY", "450,451 calls a month"):  # fmt: skip
        assert figure in said
    assert said.count("DIFFERS") == 2
    assert tco.main(["--from", "article", "--json"]) == 0
    found = {one["what"]: one for one in json.loads(capsys.readouterr().out)}
    assert (found["call"]["found"], found["call"]["agrees"]) == (9_250_000, False)
    with pytest.raises(SystemExit):
        tco.main(["--from", "article", "--html", "x.html"])
