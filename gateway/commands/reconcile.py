"""`yuzui reconcile`: a day of the books against what Ark billed for it."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import sys
import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.admin.client import AdminClient, AdminError
from gateway.archive.books import BooksError, marks_of, open_books
from gateway.archive.extra import ExtraMissing
from gateway.archive.layout import parse_id
from gateway.commands.options import add_config, load_config
from gateway.commands.report import FIRST_YEAR, LAST_YEAR
from gateway.commands.tables import table
from gateway.config import Config
from gateway.ledger.rows import Row
from gateway.prices.cards import load_book
from gateway.reports.reconcile import (
    BEIJING,
    Day,
    How,
    Pulled,
    corrections,
    day_range_ms,
    reconcile_day,
)
from policies.bill import Finding, Status, hour
from policies.budget import cny
from policies.types import NANO_PER_CNY

if TYPE_CHECKING:
    from backends.ark.control import ArkControl

_EPILOG = """\
needs
  the keys of the account, VOLC_ACCESSKEY and VOLC_SECRETKEY (an API key cannot read bills), and
  the vendor's SDK: pip install 'yuzui[reconcile]'

what it says
  matched   booked and billed alike          missing   booked, and not in the bill
  extra     billed, and not in the books     drift     other tokens
  price     the same tokens for other money  usage     Ark counted other tokens than the books
  disputed  bill and count disagree where several requests are open; look at it by hand
  resolved  a request that stood in the books at its bound (its client had left, its gateway had
            died): what it really was is booked as a correction, once, and every budget gets the
            rest back; --dry-run only says so

exit code
  0  books and bill agree within the tolerance      1  something could not be asked
  2  wrong usage                                    3  they do not agree

A day is one of Beijing. Its bill is complete some ten minutes after it, split by endpoint up to two
days later; without a --day, the day before yesterday is taken. Of today, those hours are compared
that are billed and counted for certain.
"""
_OFF = 3
_CORRECTIONS_AT_ONCE = 200
_SHOWN_MAX = 50
# A period is billed up to ten minutes after it, and Ark's count may be half an hour late.
LATE_MS = 35 * 60_000
GRACE_MS = 60_000  # a hold outlives its attempt, and the sweeper comes every second
_decode = msgspec.json.Decoder(Row).decode


def main(argv: Sequence[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    config = load_config(parser, args)
    day = args.day or (datetime.now(UTC).astimezone(BEIJING) - timedelta(days=2)).date()
    if hour(_now_ms() - LATE_MS) <= day_range_ms(day)[0]:
        print(f"yuzui reconcile: nothing of {day} can be billed yet", file=sys.stderr)
        return 1
    if importlib.util.find_spec("volcenginesdkbilling") is None:
        print(
            "yuzui reconcile: the vendor's SDK is not installed; "
            "`pip install 'yuzui[reconcile]'` brings it",
            file=sys.stderr,
        )
        return 1
    from backends.ark.control import ArkControl, ControlError

    try:
        control = ArkControl(**_keys(args, config))
        client = AdminClient(config)
        found = asyncio.run(_reconcile(day, control, client, config, with_usage=not args.no_usage))
        booked = [] if args.dry_run else _book(client, found)
    except (AdminError, BooksError, ControlError, ExtraMissing, ValueError) as error:
        print(f"yuzui reconcile: {error}", file=sys.stderr)
        return 1
    within = _within(found, args.tolerance_nano)
    print(_as_json(found, booked, within) if args.json else _as_text(found, booked, args))
    return 0 if within else _OFF


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="yuzui reconcile",
        description="Asks Ark what it billed for a day and compares it with the books: period by "
        "period of five minutes, by model, tier, endpoint and kind of tokens.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_config(parser)
    add = parser.add_argument
    add("--day", type=_day, metavar="DAY", help="such as 2026-11-25")
    add("--emulator", metavar="URL", help="ask an emulator instead: http://127.0.0.1:18080")
    add("--dry-run", action="store_true", help="say what open requests were, and book nothing")
    add("--no-usage", action="store_true", help="do without Ark's own count (GetInferenceUsage)")
    add(
        "--tolerance-cny", dest="tolerance_nano", type=_nano, default="0.01", metavar="CNY",
        help="how far apart books and bill may be, nothing set off (default: 0.01)",
    )  # fmt: skip
    add("--json", action="store_true", help="print JSON")
    return parser


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = date.min
    if not FIRST_YEAR <= day.year <= LAST_YEAR:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a day such as 2026-11-25")
    return day


def _nano(text: str) -> int:
    try:
        amount = Decimal(text) * NANO_PER_CNY
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or amount < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount in CNY such as 0.01")
    return int(amount)


def _keys(args: argparse.Namespace, config: Config) -> dict[str, Any]:
    """How to ask. An emulator takes any keys. Raises ValueError."""
    ark = config.ark
    if args.emulator:
        return {"access_key": "emulated", "secret_key": "emulated", "host": args.emulator}
    if ark.access_key is None or ark.secret_key is None:
        raise ValueError(
            "Ark's bills need the account's keys: set VOLC_ACCESSKEY and VOLC_SECRETKEY "
            "(ark.access_key and ark.secret_key), or name an emulator with --emulator"
        )
    return {
        "access_key": ark.access_key.reveal(),
        "secret_key": ark.secret_key.reveal(),
        "host": ark.control_url,
    }


async def _reconcile(
    day: date, control: ArkControl, client: AdminClient, config: Config, *, with_usage: bool
) -> Day:
    async def pull(day: date) -> Pulled:
        return Pulled(
            bill=await control.bill(day),
            splits=await control.splits(day),
            usage=await control.usage(day) if with_usage else None,
        )

    trimmed = marks_of(client).trimmed

    async def rows(since_ms: int, until_ms: int) -> AsyncIterator[Row]:
        """From Redis; should rows of that time have left it, from there and the archive."""
        if trimmed is not None and parse_id(trimmed)[0] >= since_ms:
            with open_books(config, client, since_ms=since_ms, until_ms=until_ms) as books:
                for row in books.rows():
                    yield row
            return
        query = {"form": "lines", "since": str(since_ms), "until": str(until_ms)}
        for line in client.lines("/admin/rows", query=query):
            yield _decode(line)

    return await reconcile_day(
        day,
        rows,
        pull,
        How(
            book=load_book(config.prices.cards),
            endpoints=config.ark.endpoints,
            lasts_ms=int(1000 * config.limits.cloud.total_s) + GRACE_MS,
            until_ms=_now_ms() - LATE_MS,
        ),
    )


def _book(client: AdminClient, found: Day) -> list[dict[str, Any]]:
    """Books what the open requests were. Each is booked once, however often this runs."""
    wanted = list(corrections(found))
    done: list[dict[str, Any]] = []
    for i in range(0, len(wanted), _CORRECTIONS_AT_ONCE):
        part = wanted[i : i + _CORRECTIONS_AT_ONCE]
        done += client.call("POST", "/admin/corrections", body=part)
    return done


def _within(found: Day, tolerance_nano: int) -> bool:
    """Whether nothing is off beyond the tolerance. Tokens that only the count knows of, rows that
    cannot be read and holds that stay open have no amount and are off in any case."""
    uncounted = any(
        each.status in (Status.USAGE, Status.DISPUTED) for each in found.result.findings
    )
    open_ones = bool(found.result.disputed or found.unread)
    return found.off_nano <= tolerance_nano and not (uncounted or open_ones)


# ------------------------------------------------------------ what is printed


def _as_text(found: Day, booked: list[dict[str, Any]], args: argparse.Namespace) -> str:
    result, sums = found.result, found.result.sums
    witness = "bill, split and count" if found.by_endpoint else "bill and count"
    if not found.counted:
        witness = witness.replace(" and count", "").replace(", split", " and split")
    lines = [f"{found.day}: {witness} against the books"]
    if found.to_ms < day_range_ms(found.day)[1]:
        lines.append(f"up to {_moment(found.to_ms)}; what came later may not be billed yet")
    lines.append("")
    rows = [
        ["booked", "rows whose tokens are known", cny(sums.booked)],
        ["resolved", f"{len(result.resolved)} that stood at their bound", cny(sums.resolved)],
        ["disputed", f"{len(result.disputed)} that still do", cny(sums.disputed)],
        ["findings", f"{len(result.findings)} that do not match", cny(sums.findings)],
        ["rounding", f"of {result.matched} items that do", cny(sums.rounding)],
        ["billed", "by list price", cny(sums.billed)],
    ]
    if sums.discount:
        rows.append(["discount", "of what was billed", cny(-sums.discount)])
    lines += [table(["", "", "CNY"], rows, left=2)]
    lines += [f"other product {name}: {cny(nano)} CNY" for name, nano in found.others.items()]
    if found.unread:
        some = ", ".join(found.unread[:5])
        lines.append(f"{len(found.unread)} rows name a card or tier that is not loaded: {some}")
    if result.findings:
        lines += ["", table(_HEAD, [_line(each) for each in result.findings[:_SHOWN_MAX]], left=6)]
        if len(result.findings) > _SHOWN_MAX:
            lines.append(f"and {len(result.findings) - _SHOWN_MAX} more; --json has them all")
    lines += ["", _about_holds(found, booked, args)]
    return "\n".join(lines)


_HEAD = ["period", "what", "model", "endpoint", "tier", "kind", "booked", "billed", "CNY off"]


def _line(each: Finding) -> list[str]:
    return [
        _moment(each.period_ms),
        each.status.value,
        each.lane.model,
        each.lane.endpoint or "-",
        each.tier or "-",
        each.kind,
        str(each.booked_tokens),
        str(each.billed_tokens),
        cny(each.nano),
    ]


def _now_ms() -> int:
    return int(time.time() * 1000)


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(BEIJING).strftime("%m-%d %H:%M")


def _about_holds(found: Day, booked: list[dict[str, Any]], args: argparse.Namespace) -> str:
    if not found.result.resolved:
        return "no open request to resolve"
    back = -sum(each.difference_nano for each in found.result.resolved)
    if args.dry_run:
        count = len(found.result.resolved)
        return f"open requests that would be corrected: {count}, {cny(back)} CNY given back"
    gone = sum("gone" in each for each in booked)
    new = [each for each in booked if not each.get("already", True)]
    given = -sum(each["difference_nano"] for each in new)
    text = f"corrections booked: {len(new)}, {cny(given)} CNY given back to their budgets"
    if gone:
        text += f"\n{gone} came too late: their rows have left Redis for the archive"
    return text


def _as_json(found: Day, booked: list[dict[str, Any]], within: bool) -> str:
    result = found.result
    plain = {
        "day": found.day.isoformat(),
        "until": datetime.fromtimestamp(found.to_ms / 1000, BEIJING).isoformat(),
        "agrees": found.agrees,
        "within_tolerance": within,
        "by_endpoint": found.by_endpoint,
        "counted": found.counted,
        "matched": result.matched,
        "sums_nano": result.sums,
        "off_nano": found.off_nano,
        "others_nano": found.others,
        "unread_rows": found.unread,
        "findings": [
            {
                "status": each.status.value,
                "period": datetime.fromtimestamp(each.period_ms / 1000, BEIJING).isoformat(),
                "model": each.lane.model,
                "endpoint": each.lane.endpoint,
                "tier": each.tier,
                "kind": each.kind,
                "booked_tokens": each.booked_tokens,
                "billed_tokens": each.billed_tokens,
                "booked_nano": each.booked_nano,
                "billed_nano": each.billed_nano,
            }
            for each in result.findings
        ],
        "resolved": [
            {
                "hold_id": each.hold.hold_id,
                "by": each.by,
                "tier": each.tier,
                "tokens": each.tokens,
                "nano": sum(each.nano),
                "difference_nano": each.difference_nano,
            }
            for each in result.resolved
        ],
        "disputed": [each.hold_id for each in result.disputed],
        "corrections": booked,
    }
    return msgspec.json.format(msgspec.json.encode(plain, enc_hook=dict), indent=2).decode()
