"""The archive's files: Parquet on a disk or in an object store, written whole or not at all.

A place is a folder, or a URL: s3://bucket/prefix?endpoint_override=host:port&scheme=http (MinIO,
Volcano TOS and others that speak S3; keys from the usual AWS_* variables), or any other scheme
that fsspec has a package for. On a disk a file is written beside its name, flushed and renamed; an
object appears when its upload is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import fsspec
import msgspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from gateway.archive import columns as cols
from gateway.archive.layout import MARKER, File, parse
from policies.types import Value

PART: Final = ".part"  # of a file that is being written; overwritten by whoever writes it again
ROWS_PER_GROUP: Final = 100_000
_ARROW: Final = {
    cols.STRING: pa.string(),
    cols.INT: pa.int64(),
    cols.FLOAT: pa.float64(),
    cols.BOOL: pa.bool_(),
    cols.STRINGS: pa.list_(pa.string()),
    cols.JSON: pa.string(),
}
SCHEMA: Final = pa.schema([(name, _ARROW[kind]) for name, kind in cols.COLUMNS.items()])


class ArchiveError(Exception):
    """The archive cannot be used; the message says where, why, and what to do."""


class Marker(Value, frozen=True, kw_only=True):
    """Whose books an archive holds."""

    books: str
    created: str  # ISO 8601


class Files:
    """One archive. Every method raises ArchiveError when the place cannot be used."""

    def __init__(self, filesystem: Any, root: str, *, shown: str, local: bool) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._local = local
        self.shown = shown  # the place as people may see it

    @classmethod
    def open(cls, place: str | Path) -> Files:
        """An archive at a folder or URL, which need not exist yet."""
        text = str(place)
        scheme = text.partition("://")[0] if "://" in text else ""
        try:
            if scheme in ("", "file"):
                root = Path(text.removeprefix("file://")).absolute()
                return cls(pafs.LocalFileSystem(), str(root), shown=str(root), local=True)
            shown = text.partition("?")[0]
            if scheme == "s3":
                filesystem, root_path = pafs.FileSystem.from_uri(text)
                return cls(filesystem, root_path, shown=shown, local=False)
            other, root_path = fsspec.core.url_to_fs(text)
            wrapped = pafs.PyFileSystem(pafs.FSSpecHandler(other))
            return cls(wrapped, root_path, shown=shown, local=False)
        except (ValueError, ImportError, OSError, pa.ArrowException) as error:
            raise ArchiveError(f"the archive {text.partition('?')[0]!r}: {error}") from error

    def marker(self) -> Marker | None:
        """Whose books these are; None when the archive is new."""
        try:
            with self._fs.open_input_stream(f"{self._root}/{MARKER}") as file:
                return msgspec.json.decode(file.read(), type=Marker)
        except FileNotFoundError:
            return None
        except (OSError, pa.ArrowException, msgspec.DecodeError) as error:
            raise ArchiveError(f"{self.shown}/{MARKER} cannot be read: {error}") from error

    def mark(self, marker: Marker) -> None:
        self.put(MARKER, msgspec.json.encode(marker))

    def list(self) -> list[File]:
        """Every data file, counted or not."""
        selector = pafs.FileSelector(self._root, recursive=True, allow_not_found=True)
        try:
            found = self._fs.get_file_info(selector)
        except (OSError, pa.ArrowException) as error:
            raise ArchiveError(f"{self.shown} cannot be listed: {error}") from error
        start = len(self._root) + 1
        files = [parse(info.path[start:]) for info in found if info.is_file]
        return [file for file in files if file is not None]

    def write(self, file: File, lines: Sequence[Mapping[str, Any]] | pa.Table) -> None:
        """Writes a data file whole. Written again with the same lines it is the same file."""
        table = lines if isinstance(lines, pa.Table) else table_of(lines)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", row_group_size=ROWS_PER_GROUP)
        self.put(file.path, sink.getvalue())

    def put(self, path: str, data: Any) -> None:
        """Bytes under a name, all of them or none, durable when this returns."""
        target = f"{self._root}/{path}"
        try:
            if self._local:
                _put_on_disk(Path(target), data)
                return
            with self._fs.open_output_stream(target) as out:
                out.write(data)
        except (OSError, pa.ArrowException) as error:
            raise ArchiveError(f"{self.shown}/{path} cannot be written: {error}") from error

    def delete(self, files: Iterable[File]) -> None:
        for file in files:
            try:
                self._fs.delete_file(f"{self._root}/{file.path}")
            except FileNotFoundError:
                continue
            except (OSError, pa.ArrowException) as error:
                raise ArchiveError(
                    f"{self.shown}/{file.path} cannot be deleted: {error}"
                ) from error

    def dataset(self, files: Sequence[File]) -> Any:
        """The files as one dataset with the columns of now; those that a file lacks are null."""
        paths = [f"{self._root}/{file.path}" for file in files]
        if not paths:
            return ds.dataset(SCHEMA.empty_table())
        return ds.dataset(paths, schema=SCHEMA, format="parquet", filesystem=self._fs)

    def rows(self, file: File) -> int:
        """How many lines a file has; reads its end only."""
        try:
            path = f"{self._root}/{file.path}"
            return int(pq.read_metadata(path, filesystem=self._fs).num_rows)
        except (OSError, pa.ArrowException) as error:
            raise ArchiveError(f"{self.shown}/{file.path} cannot be read: {error}") from error

    def read(self, file: File) -> pa.Table:
        """One file with every column that it has, also those that only a later version knows."""
        try:
            return pq.read_table(f"{self._root}/{file.path}", filesystem=self._fs)
        except (OSError, pa.ArrowException) as error:
            raise ArchiveError(f"{self.shown}/{file.path} cannot be read: {error}") from error


def write_table(table: pa.Table, path: Path) -> int:
    """An Arrow table as one Parquet file on this machine; how many rows it has."""
    pq.write_table(table, path, compression="zstd", row_group_size=ROWS_PER_GROUP)
    return int(table.num_rows)


def table_of(lines: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Lines as an Arrow table with the columns of now."""
    return pa.Table.from_pylist(list(lines), schema=SCHEMA)


def lines_of(dataset: Any, condition: Any = None) -> Iterator[dict[str, Any]]:
    """The lines of a dataset one by one; condition: a pyarrow expression."""
    for batch in dataset.to_batches(filter=condition):
        yield from batch.to_pylist()


def _put_on_disk(path: Path, data: Any) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    with open(part, "wb", opener=_private) as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name is durable too
    finally:
        os.close(folder)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
