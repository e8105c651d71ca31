"""One connection to Redis or Valkey that everybody in the process shares.

Commands of one turn of the event loop are written together and answered in order, so a command
costs a few microseconds of the gateway's CPU instead of some seventy with a pooled client. Replies
are parsed by hiredis.

What can go wrong is one exception, `LedgerUnavailable`. Its `ambiguous` says whether the command
may have been carried out: never when it was not written or the server refused it, possibly when
the connection was lost or the reply is late. A late reply is still read and dropped in its place,
so the order of the others is kept; the same holds for a caller that was cancelled.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
import ssl
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, cast

import hiredis

from gateway.redis.target import Target, parse_url
from gateway.tasks import spawn
from policies.types import Value

_log = logging.getLogger(__name__)

# A thousand requests a second with a Redis that stalls for several seconds stay below this; beyond
# it waiting longer helps nobody.
IN_FLIGHT_MAX: Final = 10_000
CONNECT_TIMEOUT_S: Final = 5.0
BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0  # "back within 2 s after Redis is"
WATCH_S: Final = 0.1  # how late a timeout may be noticed
STALLED_SHARE: Final = 0.5  # of the timeout: so late a reply, and new commands are refused
STALL_S: Final = 0.3  # the loop itself stood still when the watch comes that late
# A connection that has not answered for this many timeouts is taken for dead and cut.
DEAD_AFTER_TIMEOUTS: Final = 3.0

# The server refused the command before doing any of it.
_REFUSED: Final = (
    "LOADING", "READONLY", "MASTERDOWN", "OOM", "MISCONF", "BUSY", "NOREPLICAS", "CLUSTERDOWN",
    "NOAUTH", "WRONGPASS", "NOPERM", "TRYAGAIN",
)  # fmt: skip


_RUN_ID: Final = re.compile(rb"run_id:([0-9a-f]+)")


class LedgerUnavailable(Exception):
    """The books cannot be reached. `ambiguous`: the command may have been carried out anyway."""

    def __init__(self, message: str, *, ambiguous: bool) -> None:
        super().__init__(message)
        self.ambiguous = ambiguous


class LedgerFault(Exception):
    """Redis answered with an error that no healthy server gives: a bug, or foreign data."""


class Script:
    """A Lua script, known to the server by the hash of its source; `name` is for people."""

    def __init__(self, source: str, name: str = "") -> None:
        self.source = source
        self.name = name
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class Bound:
    """A script with the keys it is called with, packed once: packing them for every call would
    cost more than everything else that is done for it."""

    def __init__(self, script: Script, keys: tuple[str, ...]) -> None:
        self.name = script.name
        self._head_parts = 3 + len(keys)
        self._by_sha = _parts("EVALSHA", script.sha, len(keys), *keys)
        self._in_full = _parts("EVAL", script.source, len(keys), *keys)

    def call(self, count: int, packed: bytes, *, in_full: bool = False) -> bytes:
        """The command with `count` arguments that were packed by `parts`."""
        head = self._in_full if in_full else self._by_sha
        return b"*%d\r\n%b%b" % (self._head_parts + count, head, packed)


def pack(*command: str | bytes | int) -> bytes:
    """A whole command as it goes over the wire."""
    packed: bytes = hiredis.pack_command(command)
    return packed


def _parts(*values: str | bytes | int) -> bytes:
    """Values as they stand inside a command, without the line that counts them."""
    packed = pack(*values)
    return packed[packed.index(b"\n") + 1 :]


class Packed(Value, frozen=True, kw_only=True):
    """Arguments of a script that were packed before and are used again."""

    count: int
    data: bytes

    @classmethod
    def of(cls, *values: str | bytes | int) -> Packed:
        return cls(count=len(values), data=_parts(*values))


_Repeat = tuple[Bound, int, bytes]  # a script call, should it have to be sent in full


class _Wire(asyncio.Protocol):
    """One connection: writes once a turn, matches replies in order, notices silence."""

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop = loop
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        # future, give-up time, and for a script what repeats it should the server not know it
        self._waiting: deque[tuple[asyncio.Future[Any], float, _Repeat | None]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._looked_s = time.monotonic()
        self._asleep_s = 0.0  # for how long the loop stood still altogether
        self.lost: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._watch = self._loop.call_later(WATCH_S, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._transport = None
        self._out.clear()
        while self._waiting:
            future, _, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(
                    LedgerUnavailable("the connection to Redis was lost", ambiguous=True)
                )
        if not self.lost.done():
            self.lost.set_result(None)

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    @property
    def stalled(self) -> bool:
        """Whether a reply is so late that nobody else should wait for one."""
        late_s = self._awake_s() + STALLED_SHARE * self._timeout_s
        return bool(self._waiting) and late_s > self._waiting[0][1]

    def send(self, command: bytes, repeat: _Repeat | None = None) -> asyncio.Future[Any]:
        """Queues a command; it is written at the end of this turn of the loop."""
        if self._transport is None or self._transport.is_closing():
            raise LedgerUnavailable("the connection to Redis was lost", ambiguous=False)
        if self.stalled:  # those before us wait already: nobody else need find out the slow way
            raise LedgerUnavailable("Redis does not answer at present", ambiguous=False)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._enqueue(future, command, repeat)
        return future

    def _enqueue(self, future: asyncio.Future[Any], command: bytes, repeat: _Repeat | None) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(command)
        self._waiting.append((future, self._awake_s() + self._timeout_s, repeat))

    def _awake_s(self) -> float:
        """The clock of timeouts: it stands still while the loop does. (Not the loop's own clock,
        which uvloop sets once a turn, and turns are long under load.)"""
        return time.monotonic() - self._asleep_s

    def _flush(self) -> None:
        if self._transport is not None and self._out:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                future, _, repeat = waiting.popleft()
                if isinstance(reply, hiredis.ReplyError):
                    self._error(future, reply, repeat)
                elif not future.done():
                    future.set_result(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            # nonsense, or a reply that nobody asked for: the order is lost
            _log.error("redis_protocol_error: %s", error)
            self.abort()

    def _error(
        self, future: asyncio.Future[Any], error: hiredis.ReplyError, repeat: _Repeat | None
    ) -> None:
        text = str(error)
        code = text.partition(" ")[0]
        if not future.done():
            if code == "NOSCRIPT" and repeat is not None:
                # a restart or SCRIPT FLUSH forgot it; EVAL also teaches it to the server again
                bound, count, packed = repeat
                self._enqueue(future, bound.call(count, packed, in_full=True), None)
                return
            if code in _REFUSED:
                future.set_exception(
                    LedgerUnavailable(f"Redis refuses commands: {text}", ambiguous=False)
                )
            else:
                future.set_exception(LedgerFault(text))
        if code == "READONLY":
            self.abort()  # a failover happened: the name may now lead to the new primary

    def _look(self) -> None:
        """Fails the calls whose time is up; they keep their place in the order of replies."""
        self._watch = self._loop.call_later(WATCH_S, self._look)
        gap_s = time.monotonic() - self._looked_s
        self._looked_s += gap_s
        if gap_s > STALL_S:  # it was us who were late: what has arrived is not read yet
            self._asleep_s += gap_s - WATCH_S
        now = self._awake_s()
        for future, until, _ in self._waiting:
            if until > now:
                break
            if not future.done():
                future.set_exception(
                    LedgerUnavailable("Redis did not answer in time", ambiguous=True)
                )
        if self._waiting:
            overdue_s = now - self._waiting[0][1]
            if overdue_s > (DEAD_AFTER_TIMEOUTS - 1) * self._timeout_s:
                _log.error("redis_silent: no reply for %.1f s, reconnecting", overdue_s)
                self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class RedisLink:
    """A connection that comes back by itself. Make it with `connect`."""

    def __init__(self, target: Target, scripts: tuple[Script, ...], call_timeout_s: float) -> None:
        self._target = target
        self._scripts = scripts
        self._call_timeout_s = call_timeout_s
        self._wire: _Wire | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.run_id = ""  # of the server process that the connection leads to

    @classmethod
    async def connect(
        cls, url: str, *, scripts: tuple[Script, ...] = (), call_timeout_s: float = 1.0
    ) -> RedisLink:
        """Connects once; from then on the link keeps itself alive. Raises LedgerUnavailable when
        the server cannot be reached now, ValueError for a bad URL."""
        link = cls(parse_url(url), scripts, call_timeout_s)
        wire = await link._open()
        link._keeper = spawn(link._keep(wire), name="redis-link")
        return link

    @property
    def up(self) -> bool:
        return self._wire is not None

    @property
    def ready(self) -> bool:
        """Whether a command would be sent now."""
        return self._wire is not None and not self._wire.stalled

    def call(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """Sends one command. The future gives the reply as hiredis reads it (bulk strings are
        bytes), or raises LedgerUnavailable or LedgerFault; a full or broken link raises at once."""
        return self._send(pack(*command), None)

    def run(
        self, bound: Bound, *args: str | bytes | int, more: Sequence[Packed] = ()
    ) -> asyncio.Future[Any]:
        """Runs a script by its hash, and in full when the server has forgotten it. `more` stands
        behind `args`. Otherwise as `call`."""
        count, packed = len(args), _parts(*args)
        for part in more:
            count += part.count
            packed += part.data
        return self._send(bound.call(count, packed), (bound, count, packed))

    def _send(self, command: bytes, repeat: _Repeat | None) -> asyncio.Future[Any]:
        wire = self._wire
        if wire is None:
            raise LedgerUnavailable("there is no connection to Redis", ambiguous=False)
        if wire.in_flight >= IN_FLIGHT_MAX:
            raise LedgerUnavailable("too many commands wait for Redis", ambiguous=False)
        return wire.send(command, repeat)

    async def close(self) -> None:
        """Closes the connection; commands in flight fail. May be called twice."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        if self._wire is not None:
            self._wire.abort()
            await self._wire.lost
            self._wire = None

    async def _keep(self, wire: _Wire) -> None:
        """Waits for the loss of the connection and replaces it, for ever."""
        while True:
            await asyncio.shield(wire.lost)
            self._wire = None
            _log.warning("redis_lost: %r", self._target)
            delay_s = BACKOFF_FIRST_S
            while True:
                # full jitter: gateways that lost the same server do not come back as one
                await asyncio.sleep(random.uniform(0, delay_s))  # noqa: S311
                try:
                    wire = await self._open()
                    break
                except LedgerUnavailable as error:
                    _log.warning("redis_unreachable: %s", error)
                    delay_s = min(2 * delay_s, BACKOFF_MAX_S)
            _log.warning("redis_back: %r", self._target)

    async def _open(self) -> _Wire:
        """One attempt: connect, authenticate, load the scripts. Raises LedgerUnavailable."""
        target, loop = self._target, asyncio.get_running_loop()
        wire = _Wire(loop, self._call_timeout_s)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                if target.path is not None:
                    await loop.create_unix_connection(lambda: wire, target.path)
                else:
                    tls = ssl.create_default_context(cafile=target.ca_file) if target.tls else None
                    await loop.create_connection(lambda: wire, target.host, target.port, ssl=tls)
                await self._greet(wire)
        except (OSError, TimeoutError, LedgerUnavailable, LedgerFault) as error:
            wire.abort()
            text = f"Redis at {target} cannot be used: {error or type(error).__name__}"
            raise LedgerUnavailable(text, ambiguous=False) from error
        except BaseException:
            wire.abort()  # cancelled in the middle: do not leave a socket behind
            raise
        self._wire = wire
        return wire

    async def _greet(self, wire: _Wire) -> None:
        target = self._target
        replies = []
        if target.password is not None:
            names = (target.username,) if target.username else ()
            replies.append(wire.send(pack("AUTH", *names, target.password)))
        if target.db:
            replies.append(wire.send(pack("SELECT", target.db)))
        replies.append(wire.send(pack("PING")))  # answers LOADING until the books are read
        replies.extend(wire.send(pack("SCRIPT", "LOAD", s.source)) for s in self._scripts)
        if self._scripts:  # books are kept over it
            replies.append(wire.send(pack("INFO", "server")))
        last: Any = None
        for last in await asyncio.gather(*replies, return_exceptions=True):
            if isinstance(last, BaseException):
                raise last
        found = _RUN_ID.search(last)
        self.run_id = found.group(1).decode() if found else ""
