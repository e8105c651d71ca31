"""`yuzui report`: the ledger by backend, tenant, model, day, label or reason."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from gateway.admin.client import AdminClient, AdminError
from gateway.archive.books import BooksError, marks_of, open_books
from gateway.archive.extra import ExtraMissing
from gateway.commands import measures
from gateway.commands.options import add_config, exit_code, load_config
from gateway.commands.tables import table
from gateway.config import Config
from gateway.reports.report import GROUPS
from policies.budget import cny

FIRST_YEAR, LAST_YEAR = 1971, 9998  # midnights that every time zone has
_COLUMNS = ("requests", "tokens_in", "tokens_out", "cost_cny", "saved_cny", "unreconciled")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="yuzui report",
        description="Sums up the ledger: requests, tokens, what they cost, and what answering "
        "on the premises saved against Ark's list price. Rows in Redis and rows in the archive "
        "are read together.",
    )
    add_config(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--by", choices=GROUPS, default="backend", help="(default: backend)")
    parser.add_argument("--since", metavar="DAY", help="from this day on, such as 2026-11-01")
    parser.add_argument("--until", metavar="DAY", help="before this day")
    parser.add_argument("--tenant", metavar="NAME", help="of this tenant alone")
    what.add_argument(
        "--drift",
        action="store_true",
        help="tokens of pictures: by their rule, and as counted; exit code 3 when they differ",
    )
    what.add_argument(
        "--utilisation", action="store_true", help="of one's own servers, and what the rest costs"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="print CSV")
    form.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    config = load_config(parser, args)
    try:
        if args.drift or args.utilisation:
            return _measure(args, config)
        report = _ask(args, config)
    except (AdminError, BooksError, ExtraMissing, ValueError) as error:
        print(f"yuzui report: {error}", file=sys.stderr)
        return exit_code(error)
    if args.json:
        print(_as_json(report))
    elif args.csv:
        print(_as_csv(report), end="")
    else:
        print(as_table(report))
    return 0


def _measure(args: argparse.Namespace, config: Config) -> int:
    """Exit code 3 when a target counts pictures otherwise than its rule says."""
    client, days = AdminClient(config), day_range(args, config)
    form = "json" if args.json else "csv" if args.csv else "table"
    if args.utilisation:
        measures.use(client, config, days, args.tenant).show(form)
        return 0
    found = measures.drift(client, config, days, args.tenant)
    found.show(form)
    return 3 if found.alarming else 0


def _ask(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    """The report. Without an archive the gateway adds up; else DuckDB does, over both."""
    client, days = AdminClient(config), day_range(args, config)
    if marks_of(client).cursor is None:
        query = {"by": args.by, **_days(args, config)}
        if args.tenant is not None:
            query["tenant"] = args.tenant
        found: dict[str, Any] = client.call("GET", "/admin/report", query=query)
        return found
    bounds = {f"{name}_ms": ms for name, ms in days.items()}
    with open_books(config, client, tenant=args.tenant, **bounds) as books:
        report = books.report(by=args.by, zone=ZoneInfo(config.timezone))
        plain: dict[str, Any] = msgspec.to_builtins(report)
        return plain


def _days(args: argparse.Namespace, config: Config) -> dict[str, str]:
    """The same as parameters of a query. Raises ValueError."""
    return {name: str(ms) for name, ms in day_range(args, config).items()}


def day_range(args: argparse.Namespace, config: Config) -> dict[str, int]:
    """`since` and `until`, as far as they are given: midnights of the settings' time zone, in
    milliseconds since 1970. Raises ValueError."""
    zone = ZoneInfo(config.timezone)
    found = {}
    for name in ("since", "until"):
        day = getattr(args, name)
        if day is not None:
            try:
                start = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=zone)
            except ValueError:
                raise ValueError(f"--{name} {day!r} is not a day such as 2026-11-01") from None
            if not FIRST_YEAR <= start.year <= LAST_YEAR:
                wanted = f"a day from {FIRST_YEAR} to {LAST_YEAR}"
                raise ValueError(f"--{name} {day!r} is not {wanted}, and there are no rows then")
            found[name] = int(start.timestamp() * 1000)
    if len(found) == 2 and found["since"] >= found["until"]:
        raise ValueError(f"--since {args.since} is not before --until {args.until}")
    return found


def _lines(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [*report["lines"], report["total"]]


def _cells(line: dict[str, Any]) -> list[str]:
    money = {"cost_cny": line["cost_nano"], "saved_cny": line["saved_nano"]}
    return [cny(money[name]) if name in money else str(line[name]) for name in _COLUMNS]


def as_table(report: dict[str, Any]) -> str:
    head = [report["by"], "requests", "tokens in", "out", "cost CNY", "saved CNY", "unreconciled"]
    return table(head, [[line["group"], *_cells(line)] for line in _lines(report)])


def _as_csv(report: dict[str, Any]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([report["by"], *_COLUMNS])
    writer.writerows([line["group"], *_cells(line)] for line in _lines(report))
    return out.getvalue()


def _as_json(report: dict[str, Any]) -> str:
    def plain(line: dict[str, Any]) -> dict[str, Any]:
        money = {
            "cost_cny": msgspec.Raw(cny(line["cost_nano"]).encode()),
            "saved_cny": msgspec.Raw(cny(line["saved_nano"]).encode()),
        }
        return {**line, **money}

    found = {
        "by": report["by"],
        "lines": [plain(line) for line in report["lines"]],
        "total": plain(report["total"]),
    }
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode()
