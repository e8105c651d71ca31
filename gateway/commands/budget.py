"""`yuzui budget`: limits on what may be spent, per scope and period."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from gateway.admin_client import AdminClient, AdminError
from gateway.commands.options import add_config, load_config
from gateway.record import cny
from gateway.tables import table
from policies.budget import Period
from policies.types import MONEY_NANO_MAX, NANO_PER_CNY

_PERIODS = [period.value for period in Period]
_NANO = Decimal(1) / NANO_PER_CNY
_CNY_MAX = MONEY_NANO_MAX // NANO_PER_CNY  # what a counter holds exactly
_SCOPES = "kind:name, kind one of org, tenant, key, user, model, backend"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="yuzui budget",
        description="Budgets hold money before a request is sent, so they cannot be overspent. "
        "A budget counts from the moment it is set. Several may apply to one request: all of "
        "them must have room.",
    )
    act = parser.add_subparsers(dest="act", required=True, metavar="set | list | remove")
    put = act.add_parser("set", help="set or change a limit")
    put.add_argument("scope", help=f"{_SCOPES}; backend:cloud is everything sent to Ark")
    put.add_argument("--limit-cny", required=True, help="such as 0.05; at most nine decimals")
    put.add_argument("--period", choices=_PERIODS, default="month", help="(default: month)")
    put.add_argument("--zone", help="IANA time zone of its midnights (default: the gateway's)")
    show = act.add_parser("list", help="limits, and what is posted and held")
    drop = act.add_parser("remove", help="remove a limit")
    drop.add_argument("scope", help=_SCOPES)
    drop.add_argument("--period", choices=_PERIODS, default="month", help="(default: month)")
    for each in (put, show, drop):
        add_config(each)
        each.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    try:
        budgets = _act(args, AdminClient(load_config(parser, args)))
    except (AdminError, ValueError) as error:
        print(f"yuzui budget: {error}", file=sys.stderr)
        return 1
    print(_as_json(budgets) if args.json else _as_table(budgets))
    return 0


def _act(args: argparse.Namespace, client: AdminClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]]
    if args.act == "set":
        asked = {"scope": args.scope, "limit_nano": nano(args.limit_cny), "period": args.period}
        found = client.call("PUT", "/admin/budgets", body={**asked, "zone": args.zone})
    elif args.act == "remove":
        query = {"scope": args.scope, "period": args.period}
        found = client.call("DELETE", "/admin/budgets", query=query)
    else:
        found = client.call("GET", "/admin/budgets")
    return found


def nano(text: str) -> int:
    """Yuan as written to nano-CNY, exactly. Raises ValueError."""
    try:
        amount = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not an amount in CNY such as 0.05") from None
    if not amount.is_finite() or not 0 <= amount <= _CNY_MAX:
        raise ValueError(f"{text!r} is not an amount from 0 to {_CNY_MAX} CNY")
    if amount != amount.quantize(_NANO):  # compared exactly, whatever the number of digits
        raise ValueError(f"{text!r} has more than nine decimals")
    return int(amount * NANO_PER_CNY)


def _as_json(budgets: list[dict[str, Any]]) -> str:
    """Amounts in CNY as exact decimal numbers, and in nano-CNY; moments in ISO 8601."""
    plain = [
        {
            "scope": b["scope"],
            "period": b["period"],
            "zone": b["zone"],
            "limit": msgspec.Raw(cny(b["limit_nano"]).encode()),
            "posted": msgspec.Raw(cny(b["posted_nano"]).encode()),
            "held": msgspec.Raw(cny(b["held_nano"]).encode()),
            "limit_nano": b["limit_nano"],
            "posted_nano": b["posted_nano"],
            "held_nano": b["held_nano"],
            "resets_at": _moment(b["resets_at_s"]),
        }
        for b in budgets
    ]
    return msgspec.json.format(msgspec.json.encode(plain), indent=2).decode()


def _as_table(budgets: list[dict[str, Any]]) -> str:
    if not budgets:
        return "no budgets; `yuzui budget set backend:cloud --limit-cny 50 --period day` sets one"
    rows = [
        [
            b["scope"],
            b["period"],
            cny(b["limit_nano"]),
            cny(b["posted_nano"]),
            cny(b["held_nano"]),
            _moment(b["resets_at_s"]) or "never",
        ]
        for b in budgets
    ]
    return table(["budget", "period", "limit CNY", "posted", "held", "resets at"], rows, left=2)


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
