"""Where members come from while the gateway runs: a name that has many addresses, heartbeats.

A source is asked again and again for everybody that it knows of. What it says replaces what it said
before; when it cannot be asked, what it said last stays true (a name server that is down shall not
take the pool with it).

Who controls a source decides where requests are sent, pinned ones among them. So what is found has
to lie inside: on this machine or in a private network, whatever the source says.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog
from msgspec.structs import replace

from backends.egress import Egress
from backends.origins import is_inside, origin_of
from backends.pool.members import Member

# So many answers in a row must lack an address before it is gone: some name servers answer with a
# part of what they know, in turn. A worker that is really gone is found to be by its probes.
MISSES = 3
# A name with more addresses than this is not a pool of GPUs.
MEMBERS_MAX = 256

_log = structlog.get_logger("backends.pool")


class Source(Protocol):
    """name: for the log.   every_s: how often it is asked."""

    name: str
    every_s: float

    async def members(self) -> Sequence[Member]:
        """Everybody that it knows of now. Raises OSError when it cannot be asked."""
        ...


class DnsSource:
    """Every address of one name, such as a headless service of Kubernetes: one worker each.

    pattern: what is said of each of them; its URL names the name, the port and plain http (a
             certificate is for a name, and here each address is asked by itself)
    """

    def __init__(self, egress: Egress, pattern: Member, *, every_s: float) -> None:
        place = origin_of(pattern.url)  # one host may have a pool at each of several ports
        self.name = f"dns:{pattern.name}:{place.host}:{place.port}"
        self.every_s = every_s
        self._egress = egress
        self._pattern = pattern
        self._missed: dict[str, int] = {}  # by address: answers in a row that lacked it
        egress.allow(pattern.url)  # asking for its addresses is as much a way out as connecting

    async def members(self) -> Sequence[Member]:
        """Raises OSError when the name cannot be looked up."""
        now = set()
        for address in await self._egress.addresses(self._pattern.url):
            if is_inside(address):
                now.add(address)
            else:
                _log.warning("member_outside", source=self.name, address=address)
        missed = {address: count + 1 for address, count in self._missed.items()}
        missed |= dict.fromkeys(now, 0)
        self._missed = {address: count for address, count in missed.items() if count < MISSES}
        return [self._member(address) for address in sorted(self._missed)[:MEMBERS_MAX]]

    def _member(self, address: str) -> Member:
        host = f"[{address}]" if ":" in address else address
        return replace(
            self._pattern,
            name=f"{self._pattern.name}-{address}",
            url=f"http://{host}:{origin_of(self._pattern.url).port}",
        )


class HeartbeatSource:
    """Workers that have written themselves down and have done so lately.

    A Redis that was restarted has forgotten everybody until they write again. So one that is not
    written down any more stays for MISSES readings and for `keep_s`, counted from the last reading
    that failed or named it; one that is really gone is found to be by its probes.

    read:   everybody who is written down now; raises OSError when that cannot be read
    keep_s: longer than anybody takes between two beats
    """

    def __init__(
        self,
        read: Callable[[], Awaitable[Sequence[Member]]],
        *,
        every_s: float,
        keep_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = "heartbeats"
        self.every_s = every_s
        self._read = read
        self._keep_s = keep_s
        self._clock = clock
        self._known: dict[str, Member] = {}
        self._missed: dict[str, tuple[int, float]] = {}  # by name: readings, since when

    async def members(self) -> Sequence[Member]:
        """Raises OSError when it cannot be read who is written down."""
        try:
            written = {member.name: member for member in await self._inside()}
        except OSError:
            self._missed.clear()
            raise
        now_s = self._clock()
        missed = {}
        for name in self._known.keys() - written.keys():
            count, since_s = self._missed.get(name, (0, now_s))
            if count + 1 < MISSES or now_s - since_s <= self._keep_s:
                missed[name] = count + 1, since_s
        kept = {name: self._known[name] for name in sorted(missed)}
        self._known, self._missed = {**written, **kept}, missed
        return list(self._known.values())

    async def _inside(self) -> Sequence[Member]:
        found = []
        for member in list(await self._read())[:MEMBERS_MAX]:
            origin = origin_of(member.url)
            if is_inside(origin.host):
                found.append(member)
            else:
                _log.warning("member_outside", source=self.name, member=member.name)
        return found
