"""Fixtures for every test of the gateway."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from gateway.machine.stack import answers
from tests.gateway.redis_servers import (
    _redis6,
    _valkey,
    books_url,
    own_server,
    redis6_url,
    redis_url,
    valkey_url,
)
from tests.gateway.rig import PATIENCE_S

__all__ = [
    "_redis6", "_valkey", "books_url", "own_server", "redis6_url", "redis_url", "valkey_url",
]  # fmt: skip


@pytest.fixture(scope="session")
def worker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A worker process with the shipped checkpoint. While it loads it gives way to whatever else
    runs (backends.glm.priority), so on a busy machine that may take minutes."""
    port_file = tmp_path_factory.mktemp("worker") / "port"
    command = [sys.executable, "-m", "backends.glm", "--port", "0", "--threads", "1"]
    command += ["--slots", "2"]  # so few that a crowd has to queue
    process = subprocess.Popen(
        [*command, "--port-file", str(port_file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 5 * PATIENCE_S
    while not port_file.exists():
        assert process.poll() is None, "the worker ended"
        assert time.monotonic() < until, "the worker did not start"
        time.sleep(0.1)
    url = f"http://127.0.0.1:{int(port_file.read_text())}"
    while not answers(f"{url}/health"):
        assert process.poll() is None, "the worker ended"
        assert time.monotonic() < until, "the worker did not load its checkpoint"
        time.sleep(0.1)
    yield url
    process.terminate()
    process.wait(PATIENCE_S)
