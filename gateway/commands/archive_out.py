"""`yuzui archive export` and `yuzui archive query`: rows taken out, and questions in SQL."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.admin.client import AdminClient
from gateway.archive.books import open_books
from gateway.archive.extra import load
from gateway.commands.report import day_range
from gateway.commands.tables import table
from gateway.config import Config

if TYPE_CHECKING:
    from gateway.archive.query import Query

FORMATS = ("csv", "json", "parquet")
_DANGEROUS = ("=", "+", "-", "@", "\t", "\r")  # how a formula begins in a spreadsheet


def add_bounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", metavar="DAY", help="requests from this day on")
    parser.add_argument("--until", metavar="DAY", help="before this day")
    parser.add_argument("--tenant", metavar="NAME", help="of this tenant alone")


def add_export(parser: argparse.ArgumentParser) -> None:
    add_bounds(parser)
    parser.add_argument("--format", choices=FORMATS, help="(default: by the name of the file)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="(default: standard out)")


def add_query(parser: argparse.ArgumentParser) -> None:
    add_bounds(parser)
    parser.add_argument("sql", help='such as "SELECT reason, count(*) FROM rows GROUP BY 1"')
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print CSV")
    form.add_argument("--json", action="store_true", help="print JSON")


def export(config: Config, args: argparse.Namespace) -> int:
    """Raises AdminError, BooksError, ExtraMissing, ValueError, OSError."""
    output: Path | None = args.output
    kind = args.format or (output.suffix.lstrip(".").lower() if output is not None else "csv")
    if kind not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"{output} says no format by its name: give --format, one of {known}")
    if kind == "parquet" and output is None:
        raise ValueError("Parquet goes into a file: give --output")
    with _books(config, args) as books:
        count = _write(books, kind, output)
    print(f"{count} rows", file=sys.stderr)
    return 0


def query(config: Config, args: argparse.Namespace) -> int:
    """Raises AdminError, BooksError, ExtraMissing, ValueError."""
    if not args.sql.strip():
        raise ValueError("no question was asked: give it as SQL to the view `rows`")
    with _books(config, args) as books:
        head, rows = books.ask(args.sql)
    if args.json:
        found = [dict(zip(head, row, strict=True)) for row in rows]
        print(msgspec.json.format(msgspec.json.encode(found, enc_hook=str), indent=2).decode())
    elif args.csv:
        _csv(sys.stdout, head, rows)
    else:
        print(table(head, [[_cell(value) for value in row] for row in rows]))
    return 0


def _books(config: Config, args: argparse.Namespace) -> Any:
    bounds = {f"{name}_ms": ms for name, ms in day_range(args, config).items()}
    return open_books(config, AdminClient(config), tenant=args.tenant, **bounds)


def _write(books: Query, kind: str, output: Path | None) -> int:
    """Beside the name first, then under it: an export that was interrupted leaves no half file."""
    if output is None:
        return _text(books, kind, sys.stdout)
    part = output.with_name(output.name + ".part")
    try:
        if kind == "parquet":
            files: Any = load("gateway.archive.files")
            count = int(files.write_table(books.table(), part))
        else:
            with part.open("w", encoding="utf-8", newline="") as file:
                count = _text(books, kind, file)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    return count


def _text(books: Query, kind: str, file: Any) -> int:
    """CSV with a head, or one JSON object a line."""
    lines = books.lines()
    count = 0
    if kind == "csv":
        head: list[str] | None = None
        writer = csv.writer(file, lineterminator="\n")
        for line in lines:
            if head is None:
                head = list(line)
                writer.writerow(head)
            writer.writerow([_safe(_cell(value)) for value in line.values()])
            count += 1
        return count
    for line in lines:
        file.write(msgspec.json.encode(line).decode() + "\n")
        count += 1
    return count


def _csv(file: Any, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_safe(_cell(value)) for value in row] for row in rows)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def _safe(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: a tenant may be named =cmd()."""
    if text.startswith(_DANGEROUS) and not text.lstrip("+-").replace(".", "", 1).isdigit():
        return "'" + text
    return text
