"""`python -m tests.scripted_worker --port N ...`: a scripted engine as a process of its own.

It stands where a worker does: it can be killed, stopped and drained like one (SIGTERM: it says that
it drains, ends what has begun and exits), and is up within half a second.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time

from backends.scripted_server import ScriptedServer, ServerOptions
from tests.backends.conforming import Sglang, Vllm


async def _conform(args: argparse.Namespace) -> None:
    """vLLM's or SGLang's server, until it is told to end: it gives running answers their time."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    kind = {"vllm": Vllm, "sglang": Sglang}[args.engine]
    async with kind(port=args.port, pace_s=args.pace_ms / 1000):
        await stop.wait()


async def _serve(args: argparse.Namespace) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    options = ServerOptions(
        port=args.port,
        chunks=args.chunks,
        first_ms=args.first_ms,
        pace_ms=args.pace_ms,
        slots=args.slots,
    )
    async with ScriptedServer(options) as server:
        await stop.wait()
        server.state = "draining"
        server.changed()
        while server.running:  # noqa: ASYNC110 - moments
            await asyncio.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--first-ms", type=float, default=0.0)
    parser.add_argument("--pace-ms", type=float, default=0.0)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--engine", choices=["yuzui", "vllm", "sglang"], default="yuzui")
    parser.add_argument("--fail-after-s", type=float, help="end with exit code 3")
    args, _ = parser.parse_known_args()
    if args.fail_after_s is not None:
        time.sleep(args.fail_after_s)
        print("the checkpoint cannot be read", file=sys.stderr)
        return 3
    asyncio.run(_serve(args) if args.engine == "yuzui" else _conform(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
