"""Makes the connections of the exit: names looked up, addresses checked, sockets, TLS.

The address that was checked is the one that is connected to: nothing asks for the name again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable

from backends.http1 import Connection
from backends.origins import EgressDenied, Origin, never_allowed

# How long an address is used without asking again: a burst of connections asks once, and a name
# that moves is followed soon. What cannot be connected to is forgotten at once.
ADDRESSES_S = 10.0

Address = tuple[socket.AddressFamily, str]


class Dialer:
    """Connects to places that are on the list already: its memory is as long as the list."""

    def __init__(self) -> None:
        self._known: dict[Origin, tuple[float, list[Address]]] = {}  # until when, and where
        self._tls: ssl.SSLContext | None = None

    async def connect(
        self, origin: Origin, make: Callable[[], Connection], *, limit_s: float
    ) -> Connection:
        """A new connection, with TLS where the place asks for it. One address after the other:
        each gets its part of `limit_s`, so that a dead one leaves time for the next.

        Raises OSError, UnicodeError (a name that cannot be one), or EgressDenied.
        """
        addresses = await self._addresses(origin)
        failed = OSError("no address")
        for address in addresses:
            try:
                async with asyncio.timeout(limit_s / len(addresses)):
                    return await self._connect(origin, address, make)
            except OSError as error:  # among them TimeoutError and ssl.SSLError
                failed = error
        self._known.pop(origin, None)
        raise failed

    async def resolve(self, origin: Origin) -> list[str]:
        """Every address of a name now; none when the name server says so, as of a headless service
        without pods. Raises OSError (nobody has answered), UnicodeError, or EgressDenied."""
        try:
            return [address for _, address in await self._look_up(origin)]
        except socket.gaierror as error:
            if error.errno not in (socket.EAI_NONAME, socket.EAI_NODATA):
                raise
            return []

    async def _addresses(self, origin: Origin) -> list[Address]:
        loop = asyncio.get_running_loop()
        known = self._known.get(origin)
        if known is not None and loop.time() < known[0]:
            return known[1]
        addresses = await self._look_up(origin)
        self._known[origin] = loop.time() + ADDRESSES_S, addresses
        return addresses

    async def _look_up(self, origin: Origin) -> list[Address]:
        loop = asyncio.get_running_loop()
        found = _numeric(origin.host) or [
            (family, str(sockaddr[0]))
            for family, _, _, _, sockaddr in await loop.getaddrinfo(
                origin.host,
                origin.port,
                type=socket.SOCK_STREAM,
                flags=socket.AI_ADDRCONFIG,
            )
        ]
        addresses = [(family, address) for family, address in found if not never_allowed(address)]
        if not addresses:
            raise EgressDenied("the destination resolves to an address that is never allowed")
        return addresses

    async def _connect(
        self, origin: Origin, address: Address, make: Callable[[], Connection]
    ) -> Connection:
        # The socket is made here and not by the loop: uvloop's own would be invisible to the audit
        # hooks with which the tests see where this process connects to.
        loop = asyncio.get_running_loop()
        family, host = address
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, (host, origin.port))
        except BaseException:
            sock.close()
            raise
        if origin.scheme == "https":
            _, connection = await loop.create_connection(
                make, sock=sock, ssl=self._context(), server_hostname=origin.host.rstrip(".")
            )
        else:
            _, connection = await loop.create_connection(make, sock=sock)
        return connection

    def _context(self) -> ssl.SSLContext:
        """One for all: reading the certificates of the system takes tens of milliseconds."""
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


def _numeric(host: str) -> list[Address]:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return []
    return [(socket.AF_INET if version == 4 else socket.AF_INET6, host)]
