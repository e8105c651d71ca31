from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gateway.archive.columns import to_line
from gateway.archive.files import ArchiveError, Files, Marker, lines_of
from gateway.archive.layout import file_of
from gateway.ledger.entries import Entry
from tests.gateway.ledger.kit import row

FILE = file_of("2026-11-22", "cloud", None, "9-0")
LINES = [to_line(Entry(id="9-0", row=row("yz-1.0", 7)))]


@pytest.fixture(params=["disk", "object store"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    """A folder, and what fsspec makes of an object store (in memory)."""
    return Files.open(tmp_path / "new" if request.param == "disk" else f"memory:/{tmp_path}")


def test_written_listed_read_and_deleted(archive: Files) -> None:
    assert archive.list() == []
    assert archive.marker() is None
    archive.mark(Marker(books="b", created="2026-11-22T00:00:00+00:00"))
    archive.write(FILE, LINES)
    archive.write(FILE, LINES)  # the same file again
    assert archive.list() == [FILE]
    assert list(lines_of(archive.dataset([FILE]))) == LINES
    assert archive.read(FILE).num_rows == 1
    found = archive.marker()
    assert found is not None
    assert found.books == "b"
    archive.delete([FILE, FILE])
    assert archive.list() == []


def test_the_same_lines_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Files.open(tmp_path / name).write(FILE, LINES)
    assert (tmp_path / "a" / FILE.path).read_bytes() == (tmp_path / "b" / FILE.path).read_bytes()


def test_what_was_left_half_written_is_no_file(tmp_path: Path) -> None:
    (tmp_path / FILE.folder).mkdir(parents=True)
    part = tmp_path / (FILE.path + ".part")
    part.write_bytes(b"PAR1 half")
    archive = Files.open(tmp_path)
    assert archive.list() == []
    archive.write(FILE, LINES)
    assert not part.exists()


def test_rows_are_for_their_owner_only(tmp_path: Path) -> None:
    archive = Files.open(tmp_path / "new")
    archive.write(FILE, LINES)
    assert stat.S_IMODE((tmp_path / "new" / FILE.path).stat().st_mode) == 0o600


def test_places_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="nosuchstore"):
        Files.open("nosuchstore://bucket/prefix")
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ArchiveError, match="cannot be written"):
        Files.open(tmp_path / "file").write(FILE, LINES)
    (tmp_path / "_books.json").write_text("{")
    with pytest.raises(ArchiveError, match=r"_books\.json cannot be read"):
        Files.open(tmp_path).marker()


def test_nothing_of_a_query_is_shown() -> None:
    """Endpoints stand there, and people put keys there too."""
    shown = Files.open("s3://bucket/rows?endpoint_override=127.0.0.1:9&scheme=http").shown
    assert shown == "s3://bucket/rows"
