"""`yuzui serve`: one gateway process before workers that run elsewhere."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

import uvloop

from backends.listen import ListenError
from gateway import logs
from gateway.app import serve_until
from gateway.commands.options import add_config, load_config
from gateway.config import Config
from gateway.data_dir import DataDir
from gateway.keys import KeyUnusable
from gateway.ledger.ledger import LedgerUnavailable
from gateway.redis.target import parse_url


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="yuzui serve",
        description="Run one gateway process. Needs at least one verification key (auth), a Redis "
        "or Valkey for the books (redis_url), and workers or an Ark key.",
    )
    add_config(parser)
    config = load_config(parser, parser.parse_args(argv))
    problem = _problem(config)
    if problem:
        print(f"yuzui serve: {problem}", file=sys.stderr)
        return 2
    logs.setup(config.log.level, text_chars_max=config.log.text_chars_max)
    config = DataDir(config.data_dir).with_admin_token(config)
    try:
        uvloop.run(_run(config))
    except ListenError as error:
        print(f"yuzui serve: {error}", file=sys.stderr)
        return error.code
    except (LedgerUnavailable, KeyUnusable, OSError) as error:
        print(f"yuzui serve: {error}", file=sys.stderr)
        return 1
    return 0


async def _run(config: Config) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    await serve_until(config, stop)


def _problem(config: Config) -> str | None:
    """Why these settings cannot serve, with the remedy."""
    if not config.auth.configured:
        return (
            "no verification key is configured, so no caller could be told from another. Set "
            "auth.keys, auth.secret (YUZUI_AUTH_SECRET), auth.jwks_file or auth.jwks_url; "
            "`yuzui up` makes a private key for this machine"
        )
    if config.redis_url is None:
        return (
            "no Redis or Valkey is named for the books: set redis_url (YUZUI_REDIS_URL); "
            "`yuzui up` starts an embedded one"
        )
    try:
        parse_url(config.redis_url)
    except ValueError as error:
        return f"redis_url (YUZUI_REDIS_URL): {error}"
    if not config.workers and not config.pool.remote and not config.ark.enabled:
        return (
            "nothing could answer: name workers (workers, YUZUI_WORKERS, pool.workers), a way to "
            "find them (pool.dns, pool.heartbeats), or a cloud (ARK_API_KEY)"
        )
    return None
