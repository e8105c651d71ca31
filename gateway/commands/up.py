"""`yuzui up`: everything on this machine, in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from gateway.commands.options import add_config, load_config
from gateway.config import Config, inherited
from gateway.data_dir import InUse
from gateway.keys import KeyUnusable
from gateway.machine.stack import Stack, StartFailed
from gateway.redis.embedded import EmbeddedError
from gateway.tasks import spawn

_BANNER = """
Yuzui is ready.

  clients  {url}/v1        (OpenAI)   {url}/api/v3   (Ark SDK)
  admin    {admin_url}   (for `yuzui budget`, `report`, `explain`)
  cloud    {cloud}
  workers  {workers}
  data     {data}   (the books, keys, logs)
  token    {token}

A first question about a picture:

  curl -s {url}/v1/chat/completions \\
    -H "Authorization: Bearer {bearer}" \\
    -H 'Content-Type: application/json' -d @{hello_file}

Ctrl-C drains and stops; a second one waits for no answer.
"""
# What the pasted curl sends: a red circle and a blue square, drawn on white.
_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAHAAAABwAgMAAAC7jhzYAAAADFBMVEX////cHh4ePNwAAAB"
    "l4ESnAAAAx0lEQVR42u2UPRKCMBBGH4iNVQrpOQqHUMfjeQLHypr7xILKBkYsSPiJiyMOjc5+BUv45u1ulkxApVL9nyL/"
    "sscWoRm7mEI6RUY7oLoAm1P75XHsyC3AeiJtPniGpktuRDNhGALTBPsamb5YLpgdYeQhiIpHjSRzSfPyGz4l35r99vIl0/"
    "6W2Z/mYsm0pV81c8nar+q5ZFeqlMhC3KYzS7FZd1Lrvp/7ISQbsSSrNtgM4CqP7wZQIZPYDM5Tg7dg9VZWqVTf6wnjyx+b"
    "iz0MMgAAAABJRU5ErkJggg=="
)
_HELLO = {
    "model": "glm-4.6v",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": _PICTURE}},
                {"type": "text", "text": "What is in this picture?"},
            ],
        }
    ],
}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="yuzui up",
        description="Run everything on this machine: an embedded Valkey for the books (or "
        "redis_url), local GLM workers, the gateway. Stays in the foreground; Ctrl-C drains, "
        "a second one does not wait for it.",
    )
    add_config(parser)
    parser.add_argument("--strict", action="store_true", help="flush the books before each answer")
    args = parser.parse_args(argv)
    config = load_config(parser, args, {"strict": True} if args.strict else None)
    return asyncio.run(_run(config, args.config))


async def _run(config: Config, file: Path | None) -> int:
    stack = make_stack(config, file)
    return await run_stack(stack, stop_on_signals(stack))


def stop_on_signals(stack: Stack) -> asyncio.Event:
    """Set by the first Ctrl-C (or SIGTERM). The second one waits for no answer that still runs."""
    stop = asyncio.Event()

    def asked() -> None:
        if stop.is_set():
            _say("not waiting any longer: what still runs is cut off")
            stack.hasten()
        stop.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, asked)
    return stop


def make_stack(config: Config, file: Path | None, *, emulate_cloud: bool = False) -> Stack:
    """The parts as settings and file say; their processes read the same file."""
    environ = inherited()
    if file is not None:
        environ["YUZUI_CONFIG"] = str(file.absolute())
    return Stack(config, environ=environ, say=_say, emulate_cloud=emulate_cloud)


def _say(text: str) -> None:
    """A terminal that is gone or a disk that is full keeps nobody from being looked after."""
    with suppress(OSError):
        print(text, flush=True)


async def run_stack(
    stack: Stack, stop: asyncio.Event, *, then: Callable[[], Awaitable[None]] | None = None
) -> int:
    """Starts, shows where it listens, does `then`, waits for `stop`, drains; the exit code."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, stack.restart_workers)
    print("starting the books, the workers and the gateway ...", flush=True)
    starting = asyncio.ensure_future(stack.start())  # noqa: TID251 - awaited right below
    stopping = asyncio.ensure_future(stop.wait())  # noqa: TID251
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return 0  # stopped as asked
        starting.result()
        print(_banner(stack), flush=True)
        if then is not None:
            await _unless(stopping, then)
        return await _until_the_end(stack, stopping)
    except (StartFailed, InUse, EmbeddedError, KeyUnusable) as error:
        print(f"yuzui up: {error}", file=sys.stderr)
        return 1
    finally:
        await stack.stop()
        _say(f"stopped; the books are kept in {stack.data.path}")


async def _until_the_end(stack: Stack, stopping: asyncio.Future[Any]) -> int:
    """Waits until somebody wants it to stop (0), or there is nothing left that could answer (1)."""
    losing = spawn(stack.lost(), name="what is lost")
    await asyncio.wait({losing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if stopping.done():
        losing.cancel()
        _say("draining ...")
        return 0
    print(f"yuzui up: {losing.result()}", file=sys.stderr)
    return 1


async def _unless(stopping: asyncio.Future[Any], then: Callable[[], Awaitable[None]]) -> None:
    """Does `then`, or as much of it as there is time for before everything stops."""
    doing: asyncio.Future[Any] = asyncio.ensure_future(then())  # noqa: TID251 - awaited below
    await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if doing.done():
        doing.result()
    else:
        doing.cancel()
        await asyncio.wait({doing})


def _banner(stack: Stack) -> str:
    config, data = stack.config, stack.data
    hello_file = data.path / "hello.json"
    hello_file.write_bytes(msgspec.json.encode(_HELLO))
    return _BANNER.format(
        url=stack.url,
        admin_url=stack.admin_url,
        cloud=config.ark.base_url if config.ark.enabled else "off (set ARK_API_KEY)",
        workers=", ".join(config.workers) or "none",
        data=_short(data.path),
        token=f"{stack.token}   (tenant demo, 30 days; also in {_short(data.token_file)})"
        if stack.token
        else "yours: the keys in the settings are not ours to sign with",
        bearer=f"$(cat {_short(data.token_file)})" if stack.token else "YOUR_TOKEN",
        hello_file=_short(hello_file),
    )


def _short(path: Path) -> str:
    """Relative to the current folder where that is shorter to type."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
