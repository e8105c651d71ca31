"""Where a call may go: reading a destination strictly, and the addresses that are never meant."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_URL = re.compile(
    r"(https?)://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?"
    r"([/?][\x21\x22\x24-\x5b\x5d-\x7e]*)?"
)


class EgressDenied(Exception):
    """The destination is not on the list, or it resolves to an address that is never allowed."""


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int


def never_allowed(address: str) -> bool:
    """Link-local addresses (there live the metadata services of clouds) and those of no host.

    Private addresses are fine: that is where workers are, and the operator has listed the name.
    """
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        else:
            ip = ip.ipv4_mapped or ip.sixtofour or ip
    return ip.is_link_local or ip.is_multicast or ip.is_unspecified


# Shared address space of carriers and clouds (RFC 6598), which Kubernetes clusters use for pods.
_SHARED = ipaddress.IPv4Network("100.64.0.0/10")


def is_inside(address: str) -> bool:
    """Whether this is an address of this machine or of a private network, and not a name. What
    finds workers by itself may find them only there."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped or ip.sixtofour or ip in _NAT64):
        return False
    inside = ip.is_private or (ip.version == 4 and ip in _SHARED)
    return inside and (ip.is_loopback or not ip.is_reserved) and not never_allowed(address)


def origin_of(url: str) -> Origin:
    """Scheme, host and port. Raises EgressDenied for anything but a plain http(s) URL."""
    return read_url(url)[0]


def read_url(url: str) -> tuple[Origin, str]:
    """The origin, and what is asked for there: the path, with the query if there is one.

    Raises EgressDenied for anything but a plain http(s) URL. One strict expression is the parser:
    no user part, no backslash, no fragment, no blank, nothing outside of ASCII; so no second
    parser can read another host in it.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise EgressDenied("the destination is not a plain http(s) URL")
    scheme, host, port, target = match.groups()
    host = host.lower()
    if host.startswith("["):
        try:
            host = ipaddress.IPv6Address(host[1:-1]).compressed
        except ValueError:
            raise EgressDenied("the destination is not a plain http(s) URL") from None
    number = int(port) if port else {"http": 80, "https": 443}[scheme]
    if not 0 < number < 65536:
        raise EgressDenied("the destination is not a plain http(s) URL")
    if not target or target.startswith("?"):
        target = f"/{target or ''}"
    return Origin(scheme, host, number), target
