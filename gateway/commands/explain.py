"""`yuzui explain`: the decision for a described request, without sending it."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.admin.client import AdminClient, AdminError
from gateway.commands.options import add_config, exit_code, load_config
from gateway.commands.tables import table
from policies.budget import cny
from policies.types import SloClass


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="yuzui explain",
        description="Shows where a request would go now, why, and what it would hold.",
    )
    add_config(parser)
    parser.add_argument("--model", default="glm-4.6v", help="(default: glm-4.6v)")
    parser.add_argument("--tenant", default="demo", help="(default: demo)")
    parser.add_argument("--sensitivity", metavar="LABEL", help="public, internal, sensitive, ...")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="only its length counts")
    parser.add_argument(
        "--image", action="append", default=[], metavar="WxH", help="a picture (repeatable)"
    )
    parser.add_argument("--output-tokens", type=int, metavar="N", help="limit of the answer")
    parser.add_argument("--deadline-ms", type=int, metavar="MS", help="to the first token")
    parser.add_argument("--slo", choices=[c.value for c in SloClass], default="interactive")
    parser.add_argument("--json", action="store_true", help="print the whole decision as JSON")
    args = parser.parse_args(argv)
    for name in ("output_tokens", "deadline_ms"):
        given = getattr(args, name)
        if given is not None and given < 1:
            parser.error(f"--{name.replace('_', '-')} is 1 or more")
    config = load_config(parser, args)
    try:
        described = {
            "model": args.model,
            "tenant": args.tenant,
            "sensitivity": args.sensitivity,
            "prompt": args.prompt,
            "images": [_size(text) for text in args.image],
            "output_tokens": args.output_tokens,
            "deadline_ms": args.deadline_ms,
            "slo": args.slo,
        }
        decision = AdminClient(config).call("POST", "/admin/explain", body=described)
    except (AdminError, ValueError) as error:
        print(f"yuzui explain: {error}", file=sys.stderr)
        return exit_code(error)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(decision), indent=2).decode())
    else:
        print(_as_text(decision))
    return 0


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch("([1-9][0-9]{0,6})x([1-9][0-9]{0,6})", text.lower())
    if found is None:
        raise ValueError(f"--image {text!r} is not a size such as 1280x720")
    return int(found[1]), int(found[2])


def _as_text(decision: dict[str, Any]) -> str:
    why = decision["why"]
    label = why["label"]
    names = ("public", "internal", "sensitive")
    lines = [f"label     {names[label['level']]} (from {label['source']})"]
    if label.get("note"):
        lines.append(f"          {label['note']}")
    if "attempts" in decision:
        first = decision["attempts"][0]
        lines.append(f"route     {first['site']}:{first['target']}")
        lines.append(f"reason    {why['reason']}")
    else:
        lines.append(f"refused   {why['reason']}: {decision['message']}")
    lines += [f"budget    {note}" for note in why.get("budgets", ())]
    rows = [
        [
            f"{c['site']}:{c['target']}",
            c["verdict"],
            _ms(c["ttft_ms"]),
            _ms(c["finish_ms"]),
            "-" if c["hold_nano"] is None else cny(c["hold_nano"]),
        ]
        for c in why["considered"]
    ]
    head = ["target", "verdict", "first token ms", "finish ms", "hold CNY"]
    return "\n".join([*lines, "", table(head, rows, left=2)])


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
