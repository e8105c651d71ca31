"""`yuzui workers`: the local pool, and restarting the workers that `yuzui up` runs."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.admin.client import AdminClient, AdminError
from gateway.commands.options import add_config, load_config
from gateway.commands.tables import table

POLL_S = 0.5
PATIENCE_S = 1200.0  # for each worker: its longest answer, and a large checkpoint


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="yuzui workers",
        description="Shows the workers of the local pool, and restarts those that `yuzui up` runs, "
        "one after the other, without a failed request: a worker finishes what it has begun, and "
        "the next one is touched when the last one answers again.",
    )
    act = parser.add_subparsers(dest="act", required=True, metavar="list | restart")
    show = act.add_parser("list", help="who they are, whether they are well, how busy they are")
    again = act.add_parser("restart", help="restart them (all, or those named)")
    again.add_argument("names", nargs="*", metavar="NAME", help="such as w1 or worker-1")
    again.add_argument("--no-wait", action="store_true", help="return at once")
    for each in (show, again):
        add_config(each)
    show.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    client = AdminClient(load_config(parser, args))
    try:
        if args.act == "restart":
            return _restart(client, args.names, wait=not args.no_wait)
        workers = client.call("GET", "/admin/workers")
    except AdminError as error:
        print(f"yuzui workers: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(workers), indent=2).decode())
    else:
        print(_as_table(workers))
    return 0


def _restart(client: AdminClient, names: list[str], *, wait: bool) -> int:
    """Asks for it and follows it: a worker is done when it has a new process that is well."""
    before = _supervised(client)
    asked = client.call("POST", "/admin/workers/restart", body={"names": names})["restarting"]
    print(f"restarting {', '.join(asked)}", flush=True)
    left = list(asked) if wait else []
    end_s = time.monotonic() + PATIENCE_S
    while left and time.monotonic() < end_s:
        now = _supervised(client)
        for name in [n for n in left if _anew(before.get(n), now.get(n))]:
            left.remove(name)
            end_s = time.monotonic() + PATIENCE_S
            print(f"{name} is back, pid {now[name]['pid']}", flush=True)
        if any(_given_up(before.get(name), now.get(name)) for name in left):
            break
        time.sleep(POLL_S)
    if left:
        print(f"yuzui workers: {', '.join(left)} did not come back; see the logs", file=sys.stderr)
        return 1
    return 0


def _supervised(client: AdminClient) -> dict[str, dict[str, Any]]:
    found = [worker["supervised"] for worker in client.call("GET", "/admin/workers")]
    return {worker["name"]: worker for worker in found if worker}


def _anew(before: dict[str, Any] | None, now: dict[str, Any] | None) -> bool:
    if before is None or now is None or now["state"] != "running":
        return False
    return bool(now["restarts"] > before["restarts"])


def _given_up(before: dict[str, Any] | None, now: dict[str, Any] | None) -> bool:
    """Whether it was given up since we asked. It may have been before, and is tried again."""
    if before is None or now is None or now["state"] != "given_up":
        return False
    return bool(before["state"] != "given_up" or now["restarts"] > before["restarts"])


def _as_table(workers: list[dict[str, Any]]) -> str:
    if not workers:
        return "no workers: set workers in yuzui.yaml, or let `yuzui up` run some"
    rows = []
    for worker in workers:
        ours = worker["supervised"] or {}
        state = ours.get("state", "")
        rows.append(
            [
                worker["name"],
                worker["engine"],
                worker["model"] or "-",
                worker["url"],
                worker["health"]
                if worker["breaker"] == "closed"
                else f"{worker['breaker']} breaker",
                f"{worker['running']}/{worker['slots']}",
                str(worker["waiting"]),
                f"{state}, pid {ours['pid']}" if ours.get("pid") else state or "-",
                str(ours.get("restarts", "-")),
            ]
        )
    head = [
        "worker",
        "engine",
        "model",
        "url",
        "health",
        "running",
        "waiting",
        "process",
        "restarts",
    ]
    return table(head, rows, left=5)
