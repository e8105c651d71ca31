"""The books as a command reads them: hot rows from the admin port, the others from the archive.

A row is hot, or archived, or both for a while; the archive's cursor says which counts where. The
admin port names the cursor together with the rows behind it, and should rows leave Redis while
they are being read, reading begins anew: no row is missed and none is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gateway.admin.client import AdminClient
from gateway.archive.extra import load
from gateway.archive.layout import parse_id
from gateway.config import Config
from gateway.ledger.entries import Entry
from gateway.ledger.marks import PAGE_ROWS, Marks

if TYPE_CHECKING:
    from gateway.archive.query import Query

_NO_ENTRY: Final = "9999999999999999-0"  # behind every row: a page without any
ATTEMPTS_MAX: Final = 5  # trimming takes rows of days ago; twice in a row is not expected


class BooksError(Exception):
    """The books cannot be read as a whole; the text says why and what to do."""


class _Page(msgspec.Struct):
    marks: Marks
    entries: list[Entry]


def hot_rows(client: AdminClient) -> tuple[Marks, list[Entry]]:
    """Where the archive stands, and every row behind its cursor. Raises AdminError, BooksError."""
    for _ in range(ATTEMPTS_MAX):
        first = page = _page(client, None)
        entries = list(page.entries)
        while len(page.entries) == PAGE_ROWS:
            page = _page(client, entries[-1].id)
            entries += page.entries
        if not _passed(page.marks.trimmed, first.marks.cursor):
            return first.marks, entries
    raise BooksError("rows leave Redis faster than they can be read; try again later")


def marks_of(client: AdminClient) -> Marks:
    """Where the archive stands. Raises AdminError."""
    return _page(client, _NO_ENTRY).marks


def _page(client: AdminClient, after: str | None) -> _Page:
    query = None if after is None else {"after": after}
    return msgspec.convert(client.call("GET", "/admin/entries", query=query), _Page)


def _passed(trimmed: str | None, cursor: str | None) -> bool:
    """Whether rows behind the cursor may have left the stream."""
    return trimmed is not None and parse_id(trimmed) > parse_id(cursor or "0-0")


@contextmanager
def open_books(config: Config, client: AdminClient, **bounds: Any) -> Iterator[Query]:
    """Hot and archived rows as one, between the bounds of `query.Query`.

    Raises AdminError, BooksError, ExtraMissing.
    """
    query: Any = load("gateway.archive.query")
    files: Any = load("gateway.archive.files")
    marks, entries = hot_rows(client)
    try:
        place = None if marks.cursor is None else open_archive(config, marks)
        with query.Query(place, marks.cursor, entries, **bounds) as found:
            yield found
    except files.ArchiveError as error:
        raise BooksError(str(error)) from error


def open_archive(config: Config, marks: Marks) -> Any:
    """The archive of these books (`files.Files`). Raises ExtraMissing, BooksError."""
    files: Any = load("gateway.archive.files")
    try:
        found = files.Files.open(config.archive_place)
        marker = found.marker()
    except files.ArchiveError as error:
        raise BooksError(str(error)) from error
    if marker is None or marker.books != marks.books:
        raise BooksError(
            f"{marks.rows} rows of these books are archived, but not in {found.shown}: "
            "set archive.url (YUZUI_ARCHIVE_URL) to where they are"
        )
    return found
