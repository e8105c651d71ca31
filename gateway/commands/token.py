"""`yuzui token issue`: a token for a caller, signed with this installation's private key."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from gateway.commands.options import add_config, load_config
from gateway.data_dir import DataDir
from gateway.keys import KeyUnusable, issue, make_private_key
from policies.sensitivity import NAMES
from policies.types import SloClass

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="yuzui token",
        description="Issue a token. It is signed with the private key that `yuzui up` made in the "
        "data folder; a gateway with keys of its own (auth.*) does not know that key.",
    )
    act = parser.add_subparsers(dest="act", required=True, metavar="issue")
    make = act.add_parser("issue", help="print a new token")
    add_config(make)
    make.add_argument("--tenant", required=True, help="whose budgets and rows the requests are")
    make.add_argument("--subject", default="cli", metavar="NAME", help="who asks (default: cli)")
    make.add_argument("--org", help="organisation, a further budget scope")
    make.add_argument("--ttl", default="30d", help="how long it is good: 3600s, 12h, 30d")
    make.add_argument("--model", action="append", default=[], help="allow only this (repeatable)")
    make.add_argument("--budget", action="append", default=[], help="draw also on this kind:name")
    make.add_argument("--sensitivity", choices=sorted(NAMES), help="floor for all its requests")
    make.add_argument("--slo", choices=[c.value for c in SloClass], help="class of its requests")
    args = parser.parse_args(argv)
    config = load_config(parser, args)
    if "" in args.model:
        parser.error("--model takes a name")
    DataDir(config.data_dir).make()
    try:
        token = issue(
            make_private_key(config.data_dir),
            tenant=args.tenant,
            subject=args.subject,
            ttl_s=_seconds(args.ttl),
            issuer=config.auth.issuer,
            audience=config.auth.audience,
            org=args.org,
            models=args.model,
            budgets=args.budget,
            sensitivity=NAMES[args.sensitivity] if args.sensitivity else None,
            slo=SloClass(args.slo) if args.slo else None,
        )
    except (ValueError, KeyUnusable) as error:
        print(f"yuzui token: {error}", file=sys.stderr)
        return 2
    print(token)
    return 0


def _seconds(text: str) -> int:
    """Raises ValueError for anything that is not a number and one of s, m, h, d."""
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not re.fullmatch("[0-9]{1,9}", number):
        raise ValueError(f"--ttl {text!r} is not a time such as 3600s, 12h or 30d")
    return int(number) * _UNITS[unit]
