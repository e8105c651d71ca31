"""Free ports for servers that tests start.

Not what the kernel gives to `bind(0)`: from the same range it gives ports to every outgoing
connection, so one that is free now may be somebody's a moment later, before the server of the test
listens on it. These lie outside of that range, and none is given out twice.
"""

from __future__ import annotations

import socket
from pathlib import Path
from random import Random

_FIRST, _LAST = 10_000, 65_000
_TRIES = 1_000
# Its own: hypothesis and plugins seed the common one, and two runs beside each other must differ.
_random = Random()
_given: set[int] = set()


def _for_connections() -> range:
    """The ports that the kernel gives to outgoing connections."""
    try:
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except (OSError, ValueError):
        return range(49_152, 65_536)  # as IANA has it
    return range(int(first), int(last) + 1)


_OURS = sorted(set(range(_FIRST, _LAST)) - set(_for_connections())) or [0]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on. Raises RuntimeError when none is found."""
    for _ in range(_TRIES):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", _random.choice(_OURS)))
            except OSError:
                continue  # somebody has it
            port = int(probe.getsockname()[1])
        if port not in _given:
            _given.add(port)
            return port
    raise RuntimeError("no port is free")
