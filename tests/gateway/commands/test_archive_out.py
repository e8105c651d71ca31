from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from gateway.admin.admin import HotPage
from gateway.archive.files import Marker
from gateway.commands import archive, archive_out
from gateway.ledger.entries import Entry
from gateway.ledger.marks import Marks
from tests.gateway.archive.test_query import full, put
from tests.gateway.commands.kit import Admin, alone

ENTRIES = [
    Entry(id=f"{n + 1}-0", row=replace(full(n), tenant="=cmd()" if n % 2 else "b", posted_nano=-n))
    for n in range(6)
]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Four rows archived, two hot."""
    alone(monkeypatch, tmp_path)
    files, cursor = put(tmp_path / ".yuzui" / "archive", ENTRIES[:4])
    files.mark(Marker(books="b", created=""))
    page = HotPage(marks=Marks(books="b", cursor=cursor, rows=4), entries=ENTRIES[4:])
    monkeypatch.setattr(archive_out, "AdminClient", Admin(more={"/admin/entries": page}))
    return tmp_path


def test_csv_with_names_that_are_no_formulas(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert archive.main(["export"]) == 0
    told = capsys.readouterr()
    rows = list(csv.DictReader(told.out.splitlines()))
    assert [row["request_id"] for row in rows] == [f"yz-{n}" for n in range(6)]
    assert rows[1]["tenant"] == "'=cmd()"
    assert rows[1]["posted_nano"] == "-1", "a number is a number"
    assert told.err == "6 rows\n"


def test_json_lines(here: Path) -> None:
    assert archive.main(["export", "-o", "rows.json", "--tenant", "b"]) == 0
    rows = [json.loads(line) for line in (here / "rows.json").read_text().splitlines()]
    assert [row["request_id"] for row in rows] == ["yz-0", "yz-2", "yz-4"]
    assert rows[0]["flags"] == ["a", "b"]


def test_parquet(here: Path) -> None:
    assert archive.main(["export", "-o", "rows.parquet"]) == 0
    table = pq.read_table(here / "rows.parquet")
    assert table["posted_nano"].to_pylist() == [0, -1, -2, -3, -4, -5]
    assert not (here / "rows.parquet.part").exists()


def test_sql(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = "SELECT tenant, sum(requests) AS n, count(*) AS rows FROM rows GROUP BY 1 ORDER BY 1"
    assert archive.main(["query", asked]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["tenant", "n", "rows"]
    assert archive.main(["query", "--json", asked]) == 0
    assert [row["rows"] for row in json.loads(capsys.readouterr().out)] == [3, 3]
    assert archive.main(["query", "--csv", asked]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "'=cmd(),0,3"


@pytest.mark.parametrize(
    ("argv", "said", "code"),
    [
        (["export", "-o", "rows.xls"], "rows.xls says no format by its name: give --format", 2),
        (["export", "--format", "parquet"], "give --output", 2),
        (["export", "--since", "soon"], "--since 'soon'", 2),
        (["query", " \n"], "no question was asked", 2),
        (["query", "-- only a remark"], "no question was asked", 1),
        (["query", "SELECT nothing FROM rows"], "nothing", 1),
        (["query", "COPY rows TO '/tmp/x.csv'"], "disabled", 1),
    ],
)
def test_what_cannot_be_done_says_why(
    here: Path, argv: list[str], said: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert archive.main(argv) == code
    assert said in capsys.readouterr().err


def test_an_export_that_fails_leaves_no_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(archive_out, "_text", broken)
    assert archive.main(["export", "-o", "rows.csv"]) == 1
    assert list(here.glob("rows*")) == []
