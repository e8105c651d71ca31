"""`yuzui demo`: everything on this machine with an emulated cloud, and a guided tour."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from gateway.admin.client import AdminClient
from gateway.commands.options import add_config, load_config
from gateway.commands.report import as_table
from gateway.commands.tour import SLOTS, TTFT_S, Tour
from gateway.commands.up import make_stack, run_stack, stop_on_signals
from gateway.machine.stack import Stack

_INTRO = """
The cloud of this demo is an emulator on this machine: what it answers is made up, what it charges
follows Ark's price list. The local answers are real: a very small GLM-4.6V looks at the picture.
"""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="yuzui demo",
        description="Run everything on this machine with an emulated Ark, play ten requests that "
        "show local, overflow, pin, deadline, budget and fallback, then the report.",
    )
    add_config(parser)
    parser.add_argument("--stay", action="store_true", help="keep running after the tour")
    args = parser.parse_args(argv)
    if args.config is None:  # a demo writes neither into the books nor the settings of the house
        args.config = _settings(Path(".yuzui/demo"))
    config = load_config(parser, args, {"ark.api_key": "emulated"})
    stack = make_stack(config, args.config, emulate_cloud=True)
    return asyncio.run(_run(stack, stay=args.stay))


def _settings(folder: Path) -> Path:
    """A settings file for the tour: few slots and impatient callers, so that a crowd overflows on
    a fast machine too."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / "yuzui.yaml"
    file.write_text(
        f"data_dir: .\nlimits:\n  ttft_interactive_s: {TTFT_S}\n"
        f"pool:\n  worker_options: --slots {SLOTS}\n"
    )
    return file


async def _run(stack: Stack, *, stay: bool) -> int:
    stop = stop_on_signals(stack)

    async def tour() -> None:
        await asyncio.to_thread(_play, stack)
        if not stay:
            stop.set()

    return await run_stack(stack, stop, then=tour)


def _play(stack: Stack) -> None:
    admin = AdminClient(stack.config)
    print(_INTRO, flush=True)
    tour = Tour(stack.url, stack.token or "", stack.emulator_url, admin, print)
    tour.play()
    print("\nThe ledger of these requests and of the crowd (yuzui report):\n")
    print(as_table(admin.call("GET", "/admin/report", query={"by": "backend"})), flush=True)
