"""`yuzui tco`: buy or rent, from the traffic in the ledger."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from gateway.admin.client import AdminClient, AdminError
from gateway.archive.books import BooksError, hot_rows, marks_of, open_books
from gateway.archive.extra import ExtraMissing
from gateway.commands.options import add_config, exit_code, load_config
from gateway.commands.report import day_range
from gateway.commands.tables import table
from gateway.config import Config
from gateway.tco.gather import NothingToStudy, Traffic, gather
from gateway.tco.page import html
from gateway.tco.png import NoFont, png
from gateway.tco.sheet import Context, Sheet, sheet
from gateway.tco.words import LANGUAGES
from policies.article import Check, checks
from policies.budget import cny
from policies.tco import Study, study
from policies.tco_parts import Server

MANY = 20_000  # requests whose study takes seconds: then say so
_EPILOG = """\
examples
  yuzui tco                                   tables for the terminal
  yuzui tco --since 2026-11-01 --html buy-or-rent.html --png buy-or-rent.png
  yuzui tco --lang zh --html 买还是租.html
  yuzui tco --json | jq .study.scenarios
  yuzui tco --from article                    the worked example, without a gateway

What a server costs stands in yuzui.yaml under local_cost; the shipped figures are guesses.
"""
_ARTICLE = {
    "call": "a call of 300 + 150 tokens",
    "month": "100,000 calls a day, a month",
    "payback_stated": "150,000 of hardware, 60,000 a month of cloud",
    "payback_corrected": "150,000 of hardware, the month above",
    "rent_below": "10,000 calls a month",
    "breakeven": "break-even, three years",
}


def main(argv: Sequence[str]) -> int:
    args, config = _options(argv)
    if config is None:
        print(_article_json() if args.json else _article_text())
        return 0
    try:
        traffic, slots = _traffic(args, config)
        context = _context(args, config, slots)
        if len(traffic.jobs) > MANY:
            print(f"replaying {len(traffic.jobs):,} requests ...", file=sys.stderr, flush=True)
        made = study(
            traffic.jobs,
            context.server,
            span_s=traffic.span_s,
            wait_ms_max=round(1000 * context.wait_s),
            bought=context.bought,
            servers=_counts(args.servers),
        )
        pages = {lang: sheet(made, traffic, context, words) for lang, words in LANGUAGES.items()}
        _write(args, pages[args.lang])
    except (
        AdminError, BooksError, ExtraMissing, NothingToStudy, NoFont, ValueError, OSError,
    ) as error:  # fmt: skip
        print(f"yuzui tco: {error}", file=sys.stderr)
        return exit_code(error)
    print(_as_json(made, traffic, context) if args.json else as_text(pages[args.lang]))
    return 0


def _options(argv: Sequence[str]) -> tuple[argparse.Namespace, Config | None]:
    parser = argparse.ArgumentParser(
        prog="yuzui tco",
        description="What the traffic in the ledger cost, what it would have cost all in the "
        "cloud and all on servers of one's own, when a server has paid for itself, from which "
        "volume on, and what happens when an assumption is wrong.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    add = parser.add_argument
    add("--from", dest="from_", choices=("ledger", "article"), default="ledger",
        help="whose traffic (default: ledger)")  # fmt: skip
    add("--since", metavar="DAY", help="requests from this day on, such as 2026-11-01")
    add("--until", metavar="DAY", help="before this day")
    add("--tenant", metavar="NAME", help="of this tenant alone")
    add("--servers", default="1,2,4", metavar="N,N", help="how many to look at (1,2,4)")
    add("--slots", type=int, metavar="N", help="of a server (as the workers report)")
    add("--wait-s", type=float, metavar="S", help="wait for a slot before a request overflows "
        "(limits.ttft_interactive_s)")  # fmt: skip
    add("--bought", metavar="DAY", help="when servers were or will be paid (today)")
    add("--token-ms", metavar="MS", help="of a slot per output token, where the rows do not say")
    add("--time-scale", type=int, default=1, metavar="N", help="the rows came N times faster than "
        "the traffic they stand for (a replay)")  # fmt: skip
    add("--lang", choices=sorted(LANGUAGES), default="en", help="of the report (en)")
    add("--html", type=Path, metavar="FILE", help="write the one-page report")
    add("--png", type=Path, metavar="FILE", help="the same as a picture")
    add("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if args.time_scale < 1:
        parser.error("--time-scale is 1 or more")
    if args.slots is not None and args.slots < 1:
        parser.error("--slots is 1 or more")
    if args.wait_s is not None and not 0 <= args.wait_s <= 86_400:
        parser.error("--wait-s is 0 to 86400 seconds")
    if args.from_ == "article" and (args.html or args.png):
        parser.error("--html and --png show the traffic of the ledger; the article is a table")
    return args, None if args.from_ == "article" else load_config(parser, args)


# ------------------------------------------------------------------ what is studied


def _traffic(args: argparse.Namespace, config: Config) -> tuple[Traffic, int]:
    """The rows as traffic, and how many slots a server has."""
    client = AdminClient(config)
    slots = args.slots or _slots(client)
    token_ms = None if args.token_ms is None else Fraction(_decimal("--token-ms", args.token_ms))
    bounds = {f"{name}_ms": ms for name, ms in day_range(args, config).items()}
    options: dict[str, Any] = {"time_scale": args.time_scale, "token_ms": token_ms}
    if marks_of(client).cursor is not None:
        with open_books(config, client, tenant=args.tenant, **bounds) as books:
            return gather(books.rows(), **options), slots
    rows = [one.row for one in hot_rows(client)[1]]
    since, until = bounds.get("since_ms", 0), bounds.get("until_ms", 2**63)
    chosen = [
        row for row in rows
        if since <= row.at_ms < until and args.tenant in (None, row.tenant)
    ]  # fmt: skip
    return gather(chosen, **options), slots


def _slots(client: AdminClient) -> int:
    """Of one server: the most that a worker reports."""
    workers = client.call("GET", "/admin/pool")["workers"]
    found = max((worker.get("slots") or 0 for worker in workers), default=0)
    if not found:
        raise NothingToStudy("no worker says how many slots it has: give --slots")
    return int(found)


def _context(args: argparse.Namespace, config: Config, slots: int) -> Context:
    today = datetime.now(ZoneInfo(config.timezone)).date()
    bought = today
    if args.bought is not None:
        try:
            bought = date.fromisoformat(args.bought)
        except ValueError:
            raise ValueError(f"--bought {args.bought!r} is not a day such as 2026-11-01") from None
    wait_s = config.limits.ttft_interactive_s if args.wait_s is None else args.wait_s
    return Context(
        server=server_of(config, slots),
        zone=config.timezone,
        made=today,
        bought=bought,
        version=metadata.version("yuzui"),
        wait_s=wait_s,
        time_scale=args.time_scale,
        slots_from_option=args.slots is not None,
    )


def server_of(config: Config, slots: int) -> Server:
    """What the settings say of one server."""
    cost = config.local_cost

    def exact(figure: float) -> Decimal:
        return Decimal(str(figure))

    return Server(
        price_cny=exact(cost.server_price_cny),
        residual_cny=exact(cost.residual_cny),
        years=exact(cost.years),
        idle_watts=exact(cost.idle_watts),
        load_watts=exact(cost.load_watts),
        cny_per_kwh=exact(cost.kwh_price_cny),
        upkeep_cny_per_year=exact(cost.upkeep_cny_per_year),
        slots=slots,
    )


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--servers {text!r} is not a list such as 1,2,4") from None
    if not all(1 <= count <= 1_000 for count in counts) or len(counts) > 6:
        raise ValueError("--servers takes up to six numbers from 1 to 1000")
    return tuple(sorted(set(counts)))


def _decimal(name: str, text: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or value <= 0:
        raise ValueError(f"{name} {text!r} is not a number above 0")
    return value


# ------------------------------------------------------------------ what is told


def _write(args: argparse.Namespace, page: Sheet) -> None:
    if args.html is not None:
        args.html.write_text(html(page), encoding="utf-8")
        print(f"written: {args.html}", file=sys.stderr)
    if args.png is not None:
        args.png.write_bytes(png(page))
        print(f"written: {args.png}", file=sys.stderr)


def as_text(page: Sheet) -> str:
    """The sheet for a terminal."""
    parts = [page.title, page.period, page.made, "", page.verdict]
    for one in page.tables:
        parts += ["", one.title, "", table(one.head, one.rows)]
    return "\n".join([*parts, "", page.notes_title, *(f"- {note}" for note in page.notes)])


def _as_json(made: Study, traffic: Traffic, context: Context) -> str:
    """Money in nano-CNY, exact; shares in basis points."""
    found = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "context": context,
        "booked": traffic.booked,
        "slot_ms_per_token": {
            "prompt": float(traffic.prompt_ms),
            "completion": float(traffic.completion_ms),
        },
        "study": made,
    }
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode()


def _article_text() -> str:
    rows = [
        [_ARTICLE[one.what], _figure(one.printed, one.unit), _figure(one.found, one.unit),
         "" if one.printed is None else "agrees" if one.agrees else "DIFFERS", one.steps]
        for one in checks()
    ]  # fmt: skip
    head = ["", "the article prints", "it comes to", "", "how"]
    return "\n".join(
        [
            "The article's case, computed anew from the figures that it gives itself.",
            "",
            table(head, rows, left=1),
            "",
            "Its price of a call is a fifth of what its own figures add up to, and its month twice",
            "what they come to (nor is it 3,000,000 x 0.00185, which is 5,550). A pay-back of 2.5",
            "months is right for 60,000 a month, which its own traffic does not reach: at 27,750 a",
            "month it takes 5.5. Its rule holds: below 10,000 calls a month, rent. A server is",
            "worth it only from about 450,000 calls a month on, before power and upkeep.",
        ]
    )


def _figure(value: int | Decimal | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "cny":
        whole, _, rest = cny(int(value)).partition(".")
        return f"{int(whole):,}" + ("" if rest == "0" else f".{rest}") + " CNY"
    return f"{value:,} {unit}" + (" a month" if unit == "calls" else "")


def _article_json() -> str:
    def plain(one: Check) -> dict[str, Any]:
        return {**msgspec.structs.asdict(one), "agrees": one.agrees}

    return msgspec.json.format(
        msgspec.json.encode([plain(one) for one in checks()]), indent=2
    ).decode()
