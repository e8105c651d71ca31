"""`yuzui worker`: one local GLM worker; with --announce it also tells the gateways of itself."""

from __future__ import annotations

import argparse
import asyncio
import threading
from collections.abc import Sequence

import structlog

from backends.glm.__main__ import main as worker_main
from gateway.commands.announce import add_announcement, announcement
from gateway.commands.options import add_config, load_config
from gateway.pool.heartbeats import Announcement, announce

_log = structlog.get_logger("yuzui.announce")

PATIENCE_S = 3.0  # for taking the announcement back at the end


def main(argv: Sequence[str]) -> int:
    """The worker's own options are the worker's; those of the announcement are taken out here."""
    parser = announcement_parser()
    args, rest = parser.parse_known_args(argv)
    if args.announce is None:
        if "-h" in rest or "--help" in rest:
            print(_HELP)
        elif len(rest) < len(argv):
            # dropped, a label or a tenant would be a promise that nobody keeps
            stray = next(arg for arg in argv if arg not in rest)
            parser.error(f"{stray} says what is announced: add --announce URL, or leave it out")
        return worker_main(rest)
    said, redis_url = announcement(parser, args, load_config(parser, args), name=None)
    beside = _Beside(said, redis_url)
    beside.start()
    try:
        return worker_main(rest)
    finally:
        beside.stop()


def announcement_parser() -> argparse.ArgumentParser:
    """The options that are not the worker's. It has none of its own names: one that is in both
    would be taken out here, and the worker would never see it."""
    parser = argparse.ArgumentParser(prog="yuzui worker", add_help=False, allow_abbrev=False)
    add_config(parser)
    add_announcement(parser, required=False)
    return parser


_HELP = (
    "Besides what follows: --announce URL [--announce-name ID] [--redis URL] [--label LEVEL]\n"
    "[--tenant NAME] [--weight W] [--config FILE] writes the worker into the gateways' Redis, as\n"
    "`yuzui announce` does for any engine.\n"
)


class _Beside:
    """The announcement on a loop and thread of its own. A process that is stopped or hangs stops
    announcing itself too."""

    def __init__(self, said: Announcement, redis_url: str) -> None:
        self._said = said
        self._redis_url = redis_url
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="announce", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(PATIENCE_S)

    def _run(self) -> None:
        asyncio.run(self._announce())

    async def _announce(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await announce(self._said, self._redis_url, self._stop, told=self._told)

    def _told(self, state: str) -> None:
        _log.info("announcement", worker=self._said.name, url=self._said.url, state=state)
