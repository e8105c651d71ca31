"""Listening on an address, with an error that says which setting is wrong and what helps."""

from __future__ import annotations

import errno
import socket

from aiohttp import web


class ListenError(Exception):
    """The address cannot be listened on. The text names the setting and the remedy; `code` is the
    exit code: 2 for a host that can be none; 1 for what may be different later: a port in use, an
    address that this machine has not got yet, a name server that does not answer.
    """

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


async def listen(site: web.TCPSite, *, host: str, port: int, names: tuple[str, str]) -> None:
    """Starts `site`. names: what the host and the port are called where they are set.

    Raises: ListenError.
    """
    try:
        await site.start()
    except (OSError, UnicodeError) as error:  # UnicodeError: `a..b` is no name
        raise _said(error, host, port, names) from error


def _said(
    error: OSError | UnicodeError, host: str, port: int, names: tuple[str, str]
) -> ListenError:
    host_name, port_name = names
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, UnicodeError | socket.gaierror) or number == errno.EADDRNOTAVAIL:
        what = "is no address of this machine" if number == errno.EADDRNOTAVAIL else "is not known"
        remedy = f"set {host_name} to 127.0.0.1, to 0.0.0.0 for all, or to one that `ip addr` lists"
        code = 1 if number in (errno.EADDRNOTAVAIL, socket.EAI_AGAIN) else 2
        return ListenError(f"{host_name} {host!r} {what}: {remedy}", code)
    if number == errno.EADDRINUSE:
        taken = f"port {port} of {host} is in use by another program"
        return ListenError(f"{taken}: set {port_name} to a free one", 1)
    if number in (errno.EACCES, errno.EPERM):
        barred = f"port {port} of {host} is not for this user"
        return ListenError(f"{barred}: set {port_name} to one from 1024 on", 1)
    why = error.strerror if isinstance(error, OSError) else str(error)
    return ListenError(f"cannot listen on {host} port {port} ({why}): check {host_name}", 1)
