"""Where members come from while the gateway runs: a name that has many addresses, heartbeats.

A source is asked again and again for everybody that it knows of. What it says replaces what it said
before; when it cannot be asked, what it said last stays true (a name server that is down shall not
take the pool with it).

Who controls a source decides where requests are sent, pinned ones among them. So what is found has
to lie inside: on this machine or in a private network, whatever the source says.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import structlog
from msgspec.structs import replace

from backends.egress import Egress
from backends.origins import is_inside, origin_of
from backends.pool.members import Member

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
        self.name = f"dns:{origin_of(pattern.url).host}"
        self.every_s = every_s
        self._egress = egress
        self._pattern = pattern
        egress.allow(pattern.url)  # asking for its addresses is as much a way out as connecting

    async def members(self) -> Sequence[Member]:
        """Raises OSError when the name cannot be looked up."""
        origin = origin_of(self._pattern.url)
        found = []
        for address in sorted(await self._egress.addresses(self._pattern.url))[:MEMBERS_MAX]:
            if not is_inside(address):
                _log.warning("member_outside", source=self.name, address=address)
                continue
            host = f"[{address}]" if ":" in address else address
            found.append(
                replace(
                    self._pattern,
                    name=f"{self._pattern.name}-{address}",
                    url=f"http://{host}:{origin.port}",
                )
            )
        return found


class HeartbeatSource:
    """Workers that have written themselves down and have done so lately.

    read: everybody who is written down now; raises OSError when that cannot be read
    """

    def __init__(self, read: Callable[[], Awaitable[Sequence[Member]]], *, every_s: float) -> None:
        self.name = "heartbeats"
        self.every_s = every_s
        self._read = read

    async def members(self) -> Sequence[Member]:
        found = []
        for member in list(await self._read())[:MEMBERS_MAX]:
            origin = origin_of(member.url)
            if is_inside(origin.host):
                found.append(member)
            else:
                _log.warning("member_outside", source=self.name, member=member.name)
        return found
