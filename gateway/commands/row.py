"""`yuzui row`: everything the books know of one request."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from gateway.admin.client import AdminClient, AdminError
from gateway.archive.books import BooksError, marks_of, open_books
from gateway.archive.extra import ExtraMissing, load
from gateway.commands.options import add_config, load_config
from gateway.config import Config
from gateway.ledger.rows import Row
from policies.budget import cny


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="yuzui row",
        description="Shows the ledger rows of one request, wherever they are by now: one for each "
        "attempt that cost or may have cost money. The id stands in the answer's header "
        "x-yuzui-request-id and in the log.",
    )
    add_config(parser)
    parser.add_argument("request_id", help="such as yz-01a20333c087ae2d2a66262b00368dc6")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    config = load_config(parser, args)
    try:
        rows = find(config, args.request_id)
    except (AdminError, BooksError, ExtraMissing) as error:
        print(f"yuzui row: {error}", file=sys.stderr)
        return 1
    if not rows:
        print(f"yuzui row: the books know of no request {args.request_id}", file=sys.stderr)
        return 1
    if args.json:
        print(
            msgspec.json.format(
                msgspec.json.encode([_plain(row) for row in rows]), indent=2
            ).decode()
        )
    else:
        print("\n\n".join(as_text(row, ZoneInfo(config.timezone)) for row in rows))
    return 0


def find(config: Config, request_id: str) -> list[Row]:
    """The rows of a request, in the order of its attempts. Raises AdminError, BooksError,
    ExtraMissing."""
    client = AdminClient(config)
    asked = client.call("GET", "/admin/rows", query={"request_id": request_id})
    hot: list[Row] = msgspec.convert(asked, list[Row])
    if hot or marks_of(client).cursor is None:
        return sorted(hot, key=lambda row: row.attempt)
    query: Any = load("gateway.archive.query")
    since_ms, until_ms = query.window_of(request_id)
    with open_books(config, client, since_ms=since_ms, until_ms=until_ms) as books:
        return books.find(request_id)


def _plain(row: Row) -> dict[str, Any]:
    return {**msgspec.structs.asdict(row), "saved_nano": row.saved_nano}


def as_text(row: Row, zone: ZoneInfo) -> str:
    """One row, a field a line, what is empty left out; money in CNY, times in the zone."""
    at = datetime.fromtimestamp(row.at_ms / 1000, UTC).astimezone(zone)
    lines = [("arrived", at.isoformat(timespec="milliseconds"))]
    for name in row.__struct_fields__:
        value = getattr(row, name)
        if name == "at_ms" or value is None or value in ("", ()):
            continue
        if name.endswith("_nano"):
            lines.append((name.removesuffix("_nano") + " CNY", cny(value)))
        else:
            lines.append((name, ", ".join(value) if isinstance(value, tuple) else str(value)))
    lines.append(("saved CNY", cny(row.saved_nano)))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
