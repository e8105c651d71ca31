"""Gateway processes for experiments: forked from one that has imported everything, so that one
costs milliseconds instead of most of a second. A child runs the real thing, `serve_until`; it can
be told a point of the exchange at which it kills itself with SIGKILL.

    python -m tests.proof.gateways      the fork server: lines of JSON in, process ids out
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

import structlog
import uvloop

from gateway.app import serve_until
from gateway.config import Config
from gateway.ledger.ledger import Ledger
from gateway.redis.link import Bound, RedisLink
from gateway.serve import _Attempts
from tests.ports import free_port

POINTS = (
    "before_reserve", "reserve_sent", "reserved", "sent_mark", "upstream_open", "mid_stream",
    "end_before_settle", "settle_sent",
)  # fmt: skip
_PR_SET_PDEATHSIG = 1


# ------------------------------------------------------------------ inside a child


class Bomb:
    """Kills this process when the point is reached for the n-th time."""

    def __init__(self, nth: int) -> None:
        self._left = nth

    def reached(self) -> bool:
        self._left -= 1
        return self._left == 0

    def strike(self) -> None:
        if self.reached():
            die()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(10)  # not one instruction more of the gateway


def arm(point: str, bomb: Bomb) -> None:
    """Puts the bomb at its point. The functions stay what they are."""
    match point:
        case "before_reserve":
            Ledger.reserve = _before(Ledger.reserve, bomb)  # type: ignore[method-assign]
        case "reserved":
            Ledger.reserve = _after(Ledger.reserve, bomb)  # type: ignore[method-assign]
        case "end_before_settle":
            Ledger.settle = _before(Ledger.settle, bomb)  # type: ignore[method-assign]
        case "upstream_open":
            _Attempts._open = _after(_Attempts._open, bomb)  # type: ignore[method-assign]
        case "mid_stream":
            _Attempts._write = _after(_Attempts._write, bomb)  # type: ignore[method-assign]
        case "sent_mark":  # the cloud's mark is on the wire; a local attempt has none
            _Attempts._open = _before(  # type: ignore[method-assign]
                _Attempts._open, bomb, unless=lambda run: run.attempt.permit is not None
            )
            _on_wire("mark_sent", bomb)
        case "reserve_sent":
            _on_wire("reserve", bomb)
        case "settle_sent":
            _on_wire("settle", bomb)


def _before(
    function: Callable[..., Any], bomb: Bomb, unless: Callable[[Any], bool] = lambda _: False
) -> Callable[..., Any]:
    @wraps(function)
    async def armed(self: Any, first: Any, *args: Any, **kwargs: Any) -> Any:
        if not unless(first):
            bomb.strike()
        return await function(self, first, *args, **kwargs)

    return armed


def _after(function: Callable[..., Any], bomb: Bomb) -> Callable[..., Any]:
    @wraps(function)
    async def armed(*args: Any, **kwargs: Any) -> Any:
        found = await function(*args, **kwargs)
        bomb.strike()
        return found

    return armed


def _on_wire(script: str, bomb: Bomb) -> None:
    """Dies in the very turn of the loop in which the command was written, before any reply."""
    run = RedisLink.run

    def armed(self: RedisLink, bound: Bound, *args: Any, **kwargs: Any) -> Any:
        future = run(self, bound, *args, **kwargs)
        if bound.name == script and bomb.reached():
            asyncio.get_running_loop().call_soon(
                die
            )  # behind the flush, which was asked for before
        return future

    RedisLink.run = armed  # type: ignore[method-assign]


async def _serve(config: Config) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve_until(config, stop)


def _child(asked: dict[str, Any]) -> None:
    """Never returns."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    code = 1
    try:
        if asked.get("point"):
            arm(asked["point"], Bomb(asked["nth"]))
        if asked.get("lease_s"):
            connect = partial(Ledger.connect, lease_s=asked["lease_s"])
            Ledger.connect = connect  # type: ignore[method-assign,assignment]
        uvloop.run(_serve(Config.load(environ={}, overrides=asked["config"])))
        code = 0
    finally:
        os._exit(code)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1):
                os.dup2(null, number)
            _child(asked)
        print(pid, flush=True)


# ------------------------------------------------------------------ outside


@dataclass
class Running:
    """One child: where it listens."""

    pid: int
    port: int
    admin_port: int
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.alive:
            os.kill(self.pid, number)

    async def gone(self, patience_s: float) -> bool:
        for _ in range(int(100 * patience_s)):
            if not self.alive:
                return True
            await asyncio.sleep(0.01)
        return not self.alive


class Gateways:
    """`async with Gateways() as gateways: await gateways.start(config)`; the rest dies with it."""

    async def __aenter__(self) -> Gateways:
        self._server = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.proof.gateways",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the experiment, which then ends us
        )  # fmt: skip
        self._turn = asyncio.Lock()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.kill()
        await self._server.wait()

    async def start(self, config: dict[str, Any], **more: Any) -> Running:
        """A gateway with these settings on free ports. more: point, nth, lease_s."""
        ports = {"port": free_port(), "admin_port": free_port()}
        asked = {"config": {**config, **ports}, **more}
        stdin, stdout = self._server.stdin, self._server.stdout
        assert stdin is not None
        assert stdout is not None
        async with self._turn:
            stdin.write(json.dumps(asked).encode() + b"\n")
            line = await stdout.readline()
        return Running(pid=int(line), config=asked["config"], **ports)


if __name__ == "__main__":
    main()
