from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.archive.books import ATTEMPTS_MAX, BooksError, hot_rows, marks_of, open_books
from gateway.archive.files import Files, Marker
from gateway.config import Config
from gateway.ledger.entries import Entry
from gateway.ledger.marks import PAGE_ROWS, Marks
from tests.gateway.archive.test_query import full, put


class Port:
    """An admin port whose rows are trimmed while they are read. `looks`: marks, page by page."""

    def __init__(self, entries: list[Entry], *looks: Marks) -> None:
        self.entries = entries
        self.looks = list(looks)
        self.asked = 0

    def call(self, method: str, path: str, *, query: Any = None, body: Any = None) -> Any:
        assert (method, path) == ("GET", "/admin/entries")
        marks = self.looks[min(self.asked, len(self.looks) - 1)]
        self.asked += 1
        after = (query or {}).get("after") or marks.cursor or "0-0"
        behind = [one for one in self.entries if _key(one.id) > _key(after)]
        page = {"marks": marks, "entries": behind[:PAGE_ROWS]}
        return msgspec.json.decode(msgspec.json.encode(page))


def _key(stream_id: str) -> tuple[int, ...]:
    return tuple(map(int, stream_id.split("-")))


def _entries(count: int) -> list[Entry]:
    return [Entry(id=f"{n + 1}-0", row=full(n)) for n in range(count)]


def test_hot_rows_come_in_pages_from_the_cursor_on() -> None:
    port: Any = Port(_entries(PAGE_ROWS + 5), Marks(cursor="3-0", trimmed="2-0"))
    marks, entries = hot_rows(port)
    assert marks.cursor == "3-0"
    assert [one.id for one in entries] == [f"{n}-0" for n in range(4, PAGE_ROWS + 6)]
    assert marks_of(port) == marks


def test_reading_begins_anew_when_rows_have_left_meanwhile() -> None:
    early, late = Marks(cursor="3-0"), Marks(cursor="900-0", trimmed="800-0")
    port: Any = Port(_entries(PAGE_ROWS + 5), early, late, late)
    marks, entries = hot_rows(port)
    assert marks.cursor == "900-0"
    assert entries[0].id == "901-0"


def test_a_store_that_never_stands_still_is_given_up() -> None:
    entries = _entries(2 * PAGE_ROWS)
    looks = [Marks(cursor=f"{n}-0", trimmed=f"{n}-0") for n in range(4 * ATTEMPTS_MAX)]
    port: Any = Port(entries, *looks)
    with pytest.raises(BooksError, match="faster than they can be read"):
        hot_rows(port)


def test_hot_and_archived_rows_are_read_as_one(tmp_path: Path) -> None:
    entries = _entries(6)
    put(tmp_path / "archive", entries[:4])
    Files.open(tmp_path / "archive").mark(Marker(books="b", created=""))
    config = Config.load(environ={}, overrides={"data_dir": tmp_path})
    port: Any = Port(entries, Marks(books="b", cursor="4-0", rows=4))
    with open_books(config, port) as books:
        assert [one.request_id for one in books.rows()] == [f"yz-{n}" for n in range(6)]


def test_an_archive_that_is_not_there_is_no_empty_report(tmp_path: Path) -> None:
    config = Config.load(environ={}, overrides={"data_dir": tmp_path})
    port: Any = Port([], Marks(books="b", cursor="4-0", rows=4))
    with pytest.raises(BooksError, match="4 rows of these books are archived, but not in"):
        open_books(config, port).__enter__()
