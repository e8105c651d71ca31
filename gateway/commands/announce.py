"""`yuzui announce`: stands beside any engine and tells the gateways that it is there."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

from backends.origins import EgressDenied, origin_of
from gateway.commands.options import add_config, load_config
from gateway.config import Config
from gateway.pool.heartbeats import Announcement, announce
from gateway.redis.target import parse_url
from policies.sensitivity import NAMES
from policies.types import Sensitivity

_LEVELS = [level.name.lower() for level in Sensitivity]


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="yuzui announce",
        description="Writes an engine (ours, vLLM, SGLang) into the gateways' Redis for as long as "
        "it answers GET /health. Gateways with `pool.heartbeats: true` use it from then on, and "
        "miss it seconds after it has stopped. Stays in the foreground; run it beside the engine.",
        epilog="example: yuzui announce --url http://10.0.0.7:8000 --name gpu7 --label sensitive",
    )
    add_config(parser)
    add_announcement(parser, required=True)
    args = parser.parse_args(argv)
    config = load_config(parser, args)
    said, redis_url = announcement(parser, args, config, name=None)
    return asyncio.run(_run(said, redis_url))


def add_announcement(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """The options of what is announced."""
    flag = "--url" if required else "--announce"
    parser.add_argument(
        flag, dest="announce", required=required, metavar="URL",
        help="where gateways reach this engine, by address: http://10.0.0.7:8000",
    )  # fmt: skip
    named = "--name" if required else "--announce-name"
    parser.add_argument(named, dest="announced_name", metavar="ID", help="(default: from the URL)")
    parser.add_argument("--redis", metavar="URL", help="(default: redis_url of the settings)")
    parser.add_argument(
        "--label", action="append", default=[], choices=_LEVELS,
        help="a level whose requests it may see (repeatable; default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--tenant", action="append", default=[], metavar="NAME",
        help="a tenant whose requests it may see (repeatable; default: all)",
    )  # fmt: skip
    parser.add_argument("--weight", type=float, default=1.0, help="(default: 1)")
    if required:  # beside our own worker --slots is the worker's, which says itself what it has
        parser.add_argument(
            "--slots", type=int, help="requests at once, if the engine does not say"
        )
    else:
        parser.set_defaults(slots=None)


def announcement(
    parser: argparse.ArgumentParser, args: argparse.Namespace, config: Config, *, name: str | None
) -> tuple[Announcement, str]:
    """What is said, and to which Redis; ends the program with exit code 2 for a mistake."""
    redis_url = args.redis or config.redis_url
    if redis_url is None:
        parser.error("no Redis is named: give --redis, redis_url in yuzui.yaml or YUZUI_REDIS_URL")
    try:
        parse_url(redis_url)
        origin = origin_of(args.announce)
        said = Announcement(
            name=args.announced_name or name or f"{origin.host}:{origin.port}",
            url=args.announce,
            weight=args.weight,
            slots=args.slots,
            levels=frozenset(NAMES[label] for label in args.label),
            tenants=frozenset(args.tenant),
        )
    except (EgressDenied, ValueError) as error:
        parser.error(str(error))
    return said, redis_url


async def _run(said: Announcement, redis_url: str) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def told(state: str) -> None:
        print(f"{said.name} at {said.url}: {state}", file=sys.stderr, flush=True)

    await announce(said, redis_url, stop, told=told)
    return 0
