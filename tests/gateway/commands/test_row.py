from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.admin.admin import HotPage
from gateway.archive.columns import to_line
from gateway.archive.files import Files, Marker
from gateway.archive.layout import day_of, file_of
from gateway.commands import row
from gateway.facts import new_request_id
from gateway.ledger.entries import Entry
from gateway.ledger.marks import Marks
from tests.gateway.archive.test_query import full
from tests.gateway.commands.kit import Admin, alone

NAME = new_request_id()
BOOKED_MS = int(NAME[3:15], 16)
FIRST = replace(full(1), request_id=NAME, attempt=0, at_ms=BOOKED_MS)
SECOND = replace(FIRST, attempt=1, final=True)


def answering(monkeypatch: pytest.MonkeyPatch, hot: list[Any], marks: Marks) -> None:
    pages = {"/admin/rows": hot, "/admin/entries": HotPage(marks=marks, entries=[])}
    monkeypatch.setattr(row, "AdminClient", Admin(more=pages))


def test_a_row_that_is_hot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone(monkeypatch, tmp_path)
    answering(monkeypatch, [SECOND, FIRST], Marks())
    assert row.main([NAME]) == 0
    said = capsys.readouterr().out
    assert said.count(NAME) == 2
    assert "posted CNY" in said
    assert "0.00000001" in said
    assert row.main([NAME, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["attempt"] for one in found] == [0, 1]
    assert found[0]["posted_nano"] == 10


def test_a_row_that_is_archived(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone(monkeypatch, tmp_path)
    files = Files.open(tmp_path / ".yuzui" / "archive")
    files.mark(Marker(books="b", created=""))
    entries = [Entry(id="1-0", row=FIRST), Entry(id="2-0", row=SECOND)]
    lines = [to_line(one) for one in entries]
    files.write(file_of(day_of(BOOKED_MS), "cloud", None, "2-0"), lines)
    answering(monkeypatch, [], Marks(books="b", cursor="2-0", rows=2))
    assert row.main([NAME, "--json"]) == 0
    assert [one["attempt"] for one in json.loads(capsys.readouterr().out)] == [0, 1]
    assert row.main([new_request_id()]) == 1
    assert "the books know of no request" in capsys.readouterr().err


def test_nobody_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone(monkeypatch, tmp_path)
    monkeypatch.setattr(row, "AdminClient", Admin(error="no gateway answers"))
    assert row.main([NAME]) == 1
    assert "no gateway answers" in capsys.readouterr().err
