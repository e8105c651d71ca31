"""What holds for every test: no settings of this machine, no traffic beyond it, seeded examples,
and no midnight in the middle of it."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import time

import pytest
from hypothesis import HealthCheck, settings

# A developer's own settings must not change a result, and a real key must never be used here.
for _name in list(os.environ):
    if _name.startswith("YUZUI_") or _name in ("ARK_API_KEY", "OPENAI_API_KEY"):
        del os.environ[_name]

# The same examples in every run, so that a red build is red for whoever looks. `deep` draws new
# ones, and many: pytest --hypothesis-profile deep
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=60, derandomize=True, **_COMMON)
settings.register_profile("deep", max_examples=100_000, print_blob=True, **_COMMON)
settings.load_profile("fast")


class LeftTheMachine(BaseException):
    """A test tried to reach another machine. Not an Exception: no handler may swallow it."""


def _stay_here(event: str, args: tuple[object, ...]) -> None:
    """Refuse to look up or connect to anything but this machine, whatever library tries it."""
    if event in ("socket.connect", "socket.sendto"):
        address = args[1]
        host = address[0] if isinstance(address, tuple) and address else None  # else: a Unix socket
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if isinstance(host, str) and not _is_here(host.partition("%")[0]):
        raise LeftTheMachine(f"{event} of {host}")


def _is_here(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("", "localhost", socket.gethostname())
    return address.is_loopback or address.is_unspecified


sys.addaudithook(_stay_here)


# Where days end in the tests: in UTC (folders of the archive) and in Shanghai (budgets and bills).
_DAYS_BEGIN_S = (0, 16 * 3600)  # in seconds of a UTC day
_LONGEST_TEST_S = 30.0


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Waits for a new day that is about to begin: what a test books is of one day, like its sums.

    Tests that are about midnight have clocks of their own.
    """
    left_s = min((begins_s - time.time()) % 86_400 for begins_s in _DAYS_BEGIN_S)
    if left_s < _LONGEST_TEST_S:
        time.sleep(left_s + 0.1)
