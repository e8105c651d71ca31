"""Workers that write themselves down in Redis, and are forgotten when they stop doing so.

    beats = Heartbeats(redis_url)
    await beats.write(announcement)     by whoever stands beside a worker, every BEAT_EVERY_S
    await beats.read()                  by every gateway: who has written within BEAT_TTL_S

Each has a key of its own that Redis itself lets expire, so no two clocks have to agree:
`yuzui:worker:<name>`, and `yuzui:workers` is the set of their names.

Who can write there decides where requests go. The same Redis holds the money, so it is trusted, and
still a worker is believed only inside (`backends.pool.discovery`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from backends.base import Failure, Timeouts
from backends.egress import Egress
from backends.pool.members import Member
from backends.pool.reports import STATUS, Status, maybe
from gateway.redis.link import LedgerFault, LedgerUnavailable, RedisLink
from policies.types import Capability, Sensitivity

BEAT_EVERY_S: Final = 2.0
BEAT_TTL_S: Final = 7.0  # three beats may be missed
_NAMES: Final = "yuzui:workers"
_PREFIX: Final = "yuzui:worker:"
NAME_CHARS_MAX: Final = 128
_PROBE: Final = Timeouts(connect_s=1.0, first_s=1.5, idle_s=1.5, total_s=1.5)

_log = structlog.get_logger("yuzui.heartbeats")


class Announcement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a worker says of itself; see `backends.pool.members.Member`. No key stands in it."""

    name: str
    url: str
    engine: str = ""
    weight: float = 1.0
    slots: int | None = None
    capabilities: frozenset[Capability] | None = None
    levels: frozenset[Sensitivity] = frozenset()
    tenants: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= NAME_CHARS_MAX or not self.name.isprintable():
            raise ValueError(f"a worker's name has 1 to {NAME_CHARS_MAX} printable characters")
        if self.engine not in ("", "yuzui", "vllm", "sglang", "openai"):
            raise ValueError("engine must be yuzui, vllm, sglang or openai")
        if not 0 < self.weight <= 1_000 or (self.slots is not None and self.slots < 1):
            raise ValueError("weight and slots must be positive")

    def member(self) -> Member:
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        return Member(**fields)


_decoder = msgspec.json.Decoder(Announcement)


class Heartbeats:
    """One connection, made when it is first needed. Every method raises OSError without Redis."""

    def __init__(self, redis_url: str) -> None:
        self._url = redis_url
        self._link: RedisLink | None = None

    async def write(self, said: Announcement, *, ttl_s: float = BEAT_TTL_S) -> bool:
        """Whether it is written down now. It is not while a worker at another URL has its name: two
        of one name would push each other out of every pool, in turn. Of two that begin at the same
        moment the later one keeps it."""
        link = await self._linked()
        try:
            if await self._is_anothers(link, said):
                return False
            body = msgspec.json.encode(said)
            await link.call("SET", _PREFIX + said.name, body, "PX", int(1000 * ttl_s))
            await link.call("SADD", _NAMES, said.name)
        except (LedgerUnavailable, LedgerFault) as error:
            raise OSError(str(error)) from None
        return True

    async def remove(self, said: Announcement) -> None:
        """Leaves another worker alone that has the same name."""
        link = await self._linked()
        try:
            if await self._is_anothers(link, said):
                return
            await link.call("DEL", _PREFIX + said.name)
            await link.call("SREM", _NAMES, said.name)
        except (LedgerUnavailable, LedgerFault) as error:
            raise OSError(str(error)) from None

    async def read(self) -> Sequence[Member]:
        """Everybody who has written lately, by name. What cannot be read is left out and logged."""
        link = await self._linked()
        try:
            names = sorted(await link.call("SMEMBERS", _NAMES))
            if not names:
                return []
            bodies = await link.call("MGET", *(_PREFIX.encode() + name for name in names))
            gone = [name for name, body in zip(names, bodies, strict=True) if body is None]
            if gone:
                await link.call("SREM", _NAMES, *gone)
        except (LedgerUnavailable, LedgerFault) as error:
            raise OSError(str(error)) from None
        return [m for name, body in zip(names, bodies, strict=True) if (m := _read(name, body))]

    async def _is_anothers(self, link: RedisLink, said: Announcement) -> bool:
        body = await link.call("GET", _PREFIX + said.name)
        found = _read(said.name.encode(), body)
        return found is not None and found.url != said.url

    async def close(self) -> None:
        if self._link is not None:
            await self._link.close()
            self._link = None

    async def _linked(self) -> RedisLink:
        if self._link is None:
            try:
                self._link = await RedisLink.connect(self._url, call_timeout_s=2.0)
            except LedgerUnavailable as error:
                raise OSError(str(error)) from None
        return self._link


def _read(name: bytes, body: bytes | None) -> Member | None:
    if body is None:
        return None
    try:
        said = _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError):
        _log.warning("heartbeat_unreadable", worker=name.decode("utf-8", "replace")[:64])
        return None
    return said.member() if said.name.encode() == name else None


async def announce(
    said: Announcement,
    redis_url: str,
    stop: asyncio.Event,
    *,
    every_s: float = BEAT_EVERY_S,
    told: Callable[[str], None] = lambda _: None,
) -> None:
    """Writes a worker down for as long as it answers its probes, until `stop`; then removes it. One
    that drains is removed as soon as it says so; one that is silent is left to expire.

    told: hears of every change: "announced", "draining", "not answering", "no Redis",
    "another worker has this name". Raises EgressDenied for an address that no gateway could reach.
    """
    egress = Egress(allowed=[said.url])
    beats = Heartbeats(redis_url)
    state = ""
    try:
        while not stop.is_set():
            now = await _state(egress, said.url)
            try:
                if now == "announced" and not await beats.write(said):
                    now = "another worker has this name"
                elif now == "draining" and now != state:
                    await beats.remove(said)
            except OSError:
                now = "no Redis"
            if now != state:
                state = now
                told(now)
            try:
                async with asyncio.timeout(every_s):
                    await stop.wait()
            except TimeoutError:
                continue
        try:
            await beats.remove(said)
        except OSError:
            pass  # it expires by itself
    finally:
        await beats.close()
        await egress.close()


async def _state(egress: Egress, url: str) -> str:
    """How the worker is. EgressDenied is the caller's to hear."""
    try:
        wire = await egress.open(
            "GET", url.rstrip("/") + "/health", headers={}, body=None, timeouts=_PROBE
        )
    except Failure:
        return "not answering"
    try:
        body = await wire.read(64 * 1024)
    except Failure:
        return "not answering"
    finally:
        await wire.close()
    if wire.status == 200:
        return "announced"
    drains = maybe(STATUS, body, Status()).status == "draining"
    return "draining" if drains else "not answering"
