"""`yuzui budget`: limits on what may be spent, per scope and period."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from gateway.admin.client import AdminClient, AdminError
from gateway.commands.budget_print import audit_json, audit_table, budgets_json, budgets_table
from gateway.commands.options import add_config, exit_code, load_config
from policies.budget import Period
from policies.types import MONEY_NANO_MAX, NANO_PER_CNY, Steer

_PERIODS = [period.value for period in Period]
_NANO = Decimal(1) / NANO_PER_CNY
_CNY_MAX = MONEY_NANO_MAX // NANO_PER_CNY  # what a counter holds exactly
_SCOPES = "kind:name, kind one of org, tenant, key, user, model, backend, label"
_ABOUT = """\
Budgets hold money before a request is sent, so they cannot be overspent. A request draws on every
budget of its scopes: its organisation, tenant, key, user, model, backend and labels. All of them
must have room, and the money is held on all of them or on none.

A budget counts from the moment it is set. Raising keeps the count; another time zone or first day,
and `reset`, begin it anew. What was changed, by whom, from what to what: `yuzui budget audit`.
"""
_EXAMPLES = """\
examples:
  yuzui budget set backend:cloud --limit-cny 50 --period day     at most 50 yuan a day for Ark
  yuzui budget set tenant:acme --limit-cny 2000 --start-day 15   a month from the 15th to the 14th
  yuzui budget set label:team=vision --limit-cny 300 --period week \\
      --soft 80:prefer_local --soft 90:cheaper --pace --alert-at 50,80,100
  yuzui budget set user:ada --limit-cny 5 --period day --soft-only --soft 100:lower_priority
  yuzui budget raise tenant:acme --by-cny 500
  yuzui budget freeze key:default --period total                 refuse everything at once

soft limits (--soft PERCENT:ACTION) steer before the hard limit stops:
  prefer_local     wait for a worker instead of overflowing to the cloud
  lower_priority   treat the request as batch: it may wait longer for a worker
  cheaper          of the cloud models that can answer, take the cheapest first
"""


def main(argv: Sequence[str]) -> int:
    parser, args = _parse(argv)
    client = AdminClient(load_config(parser, args))
    if args.by:
        client.actor = args.by
    try:
        if args.act == "audit":
            trail = client.call("GET", "/admin/budgets/audit", query=_named(args))
            print(audit_json(trail) if args.json else audit_table(trail))
            return 0
        budgets = _act(args, client)
    except (AdminError, ValueError) as error:
        print(f"yuzui budget: {error}", file=sys.stderr)
        return exit_code(error)
    print(budgets_json(budgets) if args.json else budgets_table(budgets))
    return 0


# ------------------------------------------------------------------ what may be written


def _parse(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="yuzui budget",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    act = parser.add_subparsers(dest="act", required=True, metavar="ACTION")
    put = act.add_parser("set", help="make a budget, or change what is named of it")
    put.add_argument("scope", help=f"{_SCOPES}; backend:cloud is everything sent to Ark")
    put.add_argument("--limit-cny", required=True, help="such as 0.05; at most nine decimals")
    put.add_argument("--zone", help="IANA time zone of its midnights (default: the gateway's)")
    put.add_argument(
        "--start-day", type=int, metavar="N",
        help="first day of its week (1 Monday to 7) or month (1 to 28); default 1",
    )  # fmt: skip
    put.add_argument(
        "--soft", action="append", metavar="PERCENT:ACTION",
        help="steer from this share on; may be repeated; `--soft none` takes all away",
    )  # fmt: skip
    hard = put.add_mutually_exclusive_group()
    hard.add_argument("--soft-only", action="store_true", help="count and steer, never refuse")
    hard.add_argument("--hard", action="store_true", help="refuse at the limit (the default)")
    put.add_argument(
        "--pace", action=argparse.BooleanOptionalAction,
        help="soft limits also apply while spending runs ahead of the period's clock",
    )  # fmt: skip
    put.add_argument(
        "--alert-at", metavar="P,P", help="percents at which somebody is told (default 80,100)"
    )
    put.add_argument(
        "--forecast", action=argparse.BooleanOptionalAction,
        help="tell when at this pace the period will not end within the limit (default: yes)",
    )  # fmt: skip
    act.add_parser("list", help="limits, and what is posted and held")
    more = act.add_parser("raise", help="add to a limit; the count goes on")
    more.add_argument("scope", help=_SCOPES)
    more.add_argument("--by-cny", required=True, help="how much is added")
    for name, text in (
        ("freeze", "refuse everything from now on; what is under way ends as usual"),
        ("unfreeze", "take that back"),
        ("reset", "count from nothing again; the audit trail keeps what was posted"),
        ("remove", "remove a budget"),
    ):
        act.add_parser(name, help=text).add_argument("scope", help=_SCOPES)
    trail = act.add_parser("audit", help="who changed what, when, from what to what")
    trail.add_argument("scope", nargs="?", help="of this scope only")
    for name, each in act.choices.items():
        add_config(each)
        each.add_argument("--json", action="store_true", help="print JSON")
        if name == "list":
            continue
        default = None if name == "audit" else "month"
        note = "" if name == "audit" else " (default: month)"
        each.add_argument("--period", choices=_PERIODS, default=default, help=f"its period{note}")
        if name != "audit":
            each.add_argument("--by", metavar="NAME", help="who does it (default: your account)")
    args = parser.parse_args(argv)
    args.by = getattr(args, "by", None)
    if args.by is not None and not (0 < len(args.by) <= 128 and args.by.isprintable()):
        parser.error("--by takes 1 to 128 characters that can be printed")
    return parser, args


# ------------------------------------------------------------------ what is asked of the gateway


def _act(args: argparse.Namespace, client: AdminClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]]
    if args.act == "set":
        found = client.call("PUT", "/admin/budgets", body=_asked(args))
    elif args.act == "remove":
        found = client.call("DELETE", "/admin/budgets", query=_named(args))
    elif args.act == "list":
        found = client.call("GET", "/admin/budgets")
    else:
        body: dict[str, Any] = dict(_named(args))
        if args.act == "raise":
            body["add_nano"] = _amount("--by-cny", args.by_cny)
        found = client.call("POST", f"/admin/budgets/{args.act}", body=body)
    return found


def _named(args: argparse.Namespace) -> dict[str, str]:
    named = {"scope": args.scope, "period": args.period}
    return {name: value for name, value in named.items() if value is not None}


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if args.soft is not None:
        options["soft"] = [] if args.soft == ["none"] else [_soft(text) for text in args.soft]
    if args.alert_at is not None:
        options["alerts"] = [
            _percent("--alert-at", text) for text in args.alert_at.split(",") if text
        ]
    if args.soft_only or args.hard:
        options["hard"] = args.hard
    for name in ("pace", "forecast"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    asked = {
        "scope": args.scope,
        "limit_nano": _amount("--limit-cny", args.limit_cny),
        "period": args.period,
    }
    return {**asked, "zone": args.zone, "start_day": args.start_day, "options": options}


def _soft(text: str) -> dict[str, Any]:
    percent, colon, steer = text.partition(":")
    if not colon or steer not in list(Steer):
        known = ", ".join(Steer)
        raise ValueError(f"--soft {text!r} is not PERCENT:ACTION such as 80:prefer_local ({known})")
    return {"at_percent": _percent("--soft", percent), "steer": steer}


def _percent(flag: str, text: str) -> int:
    try:
        return int(text.strip().removesuffix("%"))
    except ValueError:
        raise ValueError(f"{flag}: {text!r} is not a whole number of percent") from None


def _amount(flag: str, text: str) -> int:
    """`nano` of a flag's value. Raises ValueError that names the flag."""
    try:
        return nano(text)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None


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
