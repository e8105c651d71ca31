"""`yuzui up` as a process: started, used, killed in parts, stopped; the books survive all of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest

from backends.scripted_server import ScriptedServer, ServerOptions
from gateway import processes
from gateway.commands.up import make_stack, run_stack
from gateway.config import Config
from gateway.data_dir import DataDir
from gateway.machine import stack as stack_module
from gateway.machine.stack import Stack, StartFailed, _check_free, _reachable, answers
from tests.ports import free_port

PATIENCE_S = 60.0
SLOW = ServerOptions(chunks=2_000, pace_ms=20)


class House:
    """One `yuzui up` in a folder of its own. early: a signal for it while it starts."""

    def __init__(self, folder: Path, worker: str, *, early: signal.Signals | None = None) -> None:
        self.folder = folder
        self.port, self.admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {
            **os.environ,
            "YUZUI_PORT": str(self.port),
            "YUZUI_ADMIN_PORT": str(self.admin_port),
            "YUZUI_WORKERS": worker,
        }
        self.out = folder / "up.log"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "up"],
                cwd=folder, env=self.env, stdout=out, stderr=out,
            )  # fmt: skip
        if early is not None:
            until(lambda: "starting the books" in self.text)
            self.process.send_signal(early)
        until(lambda: "Yuzui is ready" in self.text or self.process.poll() is not None)
        assert self.process.poll() is None, self.text

    @property
    def text(self) -> str:
        return self.out.read_text()

    @property
    def token(self) -> str:
        return (self.folder / ".yuzui" / "token").read_text().strip()

    def run(self, *command: str) -> str:
        """A command from this folder, without flags."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", *command],
            cwd=self.folder, env=os.environ, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def gateway_pids(self) -> list[int]:
        """Processes of `yuzui serve` that this `up` has started."""
        return children_of(self.process.pid, b"gateway.cli\0serve\0")

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)


def children_of(parent: int, words: bytes) -> list[int]:
    """Processes that it has started and whose command line has these words in it. What ends while
    we look (a killed one, just reaped) is none any more."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            its_parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            if its_parent == parent and words in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.05)


@pytest.fixture
async def worker() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer(SLOW) as server:
        yield server


@pytest.fixture
async def house(tmp_path: Path, worker: ScriptedServer) -> AsyncIterator[House]:
    found = await asyncio.to_thread(House, tmp_path, worker.url)
    yield found
    await asyncio.to_thread(found.stop)


async def stream(house: House) -> bytes:
    """A stream as far as it came."""
    body = {"model": "glm-4.6v", "stream": True, "messages": [{"role": "user", "content": "go"}]}
    headers = {"Authorization": f"Bearer {house.token}"}
    seen = b""
    async with aiohttp.ClientSession() as http:
        with contextlib.suppress(aiohttp.ClientError):
            async with http.post(
                f"{house.url}/v1/chat/completions", json=body, headers=headers
            ) as response:
                assert response.status == 200
                async for data in response.content.iter_any():
                    seen += data
    return seen


def report(house: House) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(house.run("report", "--json"))
    return found["total"]


@pytest.mark.slow
async def test_a_gateway_that_is_killed_in_mid_stream_leaves_its_row(
    house: House, worker: ScriptedServer
) -> None:
    limit = ("budget", "set", "tenant:demo", "--limit-cny", "100")
    await asyncio.to_thread(house.run, *limit)
    asking = asyncio.ensure_future(stream(house))  # noqa: TID251 - awaited below
    while not worker.running:  # noqa: ASYNC110 - a real socket has no event
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    (budget,) = msgspec.json.decode(await asyncio.to_thread(house.run, "budget", "list", "--json"))
    assert budget["held_nano"] > 0
    (before,) = house.gateway_pids()
    os.kill(before, signal.SIGKILL)
    seen = await asking
    assert seen
    assert b"[DONE]" not in seen

    await asyncio.to_thread(until, lambda: set(house.gateway_pids()) - {before})
    await asyncio.to_thread(until, lambda: _works(house))
    # its lease runs out within ten seconds; then the hold is posted in full, once
    await asyncio.to_thread(until, lambda: report(house)["unreconciled"] == 1)
    (after,) = msgspec.json.decode(await asyncio.to_thread(house.run, "budget", "list", "--json"))
    assert after["held_nano"] == 0
    assert after["posted_nano"] == budget["held_nano"] == report(house)["cost_nano"]
    assert "signal SIGKILL; starting again" in house.text


@pytest.mark.slow
async def test_who_asks_for_a_restart_while_it_starts_does_not_end_it(
    tmp_path: Path, worker: ScriptedServer
) -> None:
    house = await asyncio.to_thread(House, tmp_path, worker.url, early=signal.SIGUSR1)
    assert await asyncio.to_thread(house.stop) == 0


@pytest.mark.slow
async def test_valkey_that_is_killed_comes_back_and_requests_are_answered(
    house: House, worker: ScriptedServer
) -> None:
    worker.frames = worker.frames[:3] + worker.frames[-4:]  # a stream that ends
    assert (await stream(house)).endswith(b"data: [DONE]\n\n")
    before = await asyncio.to_thread(report, house)
    (server,) = children_of(house.process.pid, b"valkey-server")
    os.kill(server, signal.SIGKILL)
    await asyncio.to_thread(until, lambda: "valkey answers again" in house.text)
    assert "valkey ended with signal SIGKILL; starting again" in house.text
    await asyncio.to_thread(until, lambda: answers(f"{house.url}/readyz"))
    assert (await stream(house)).endswith(b"data: [DONE]\n\n")
    await asyncio.to_thread(until, lambda: report(house)["requests"] == before["requests"] + 1)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["books", "gateway"])
async def test_it_ends_when_nothing_can_be_answered_any_more(
    tmp_path: Path, worker: ScriptedServer, part: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In this process, so that six starts and the pauses between them need not be waited for."""
    monkeypatch.setattr(processes, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(processes, "QUICK_ENDS_MAX", 2)
    set_to = {"data_dir": tmp_path / "d", "workers": worker.url, "port": 0, "admin_port": 0}
    stack = make_stack(Config.load(environ={}, overrides=set_to), None)

    async def break_it() -> None:
        if part == "books":
            (log,) = (tmp_path / "d" / "valkey" / "appendonlydir").glob("*.incr.aof")
            log.write_bytes(b"nonsense" + log.read_bytes())
            (pid,) = children_of(os.getpid(), str(tmp_path).encode())
        else:
            (gateway,) = stack.gateways
            gateway._command.append("--no-such-flag")
            pid = gateway.pid or 0
        os.kill(pid, signal.SIGKILL)

    assert await run_stack(stack, asyncio.Event(), then=break_it) == 1
    said = {"books": "there are no books", "gateway": "nobody listens"}
    assert said[part] in capsys.readouterr().err


def _works(house: House) -> bool:
    try:
        house.run("budget", "list")
    except AssertionError:
        return False
    return True


@pytest.mark.slow
async def test_ctrl_c_drains_and_keeps_the_books(house: House, worker: ScriptedServer) -> None:
    worker.frames = worker.frames[:3] + worker.frames[-4:]  # a stream that ends
    seen = await stream(house)
    assert seen.endswith(b"data: [DONE]\n\n")
    before = await asyncio.to_thread(report, house)
    assert before["requests"] == 1
    second = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", "up",
        cwd=house.folder, env=house.env, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    _, complaint = await second.communicate()
    assert second.returncode == 1
    assert b"another yuzui is running" in complaint
    assert DataDir(house.folder / ".yuzui").running() is not None  # it has left the first one alone

    assert await asyncio.to_thread(house.stop) == 0
    assert "stopped; the books are kept" in house.text
    assert DataDir(house.folder / ".yuzui").running() is None
    again = await asyncio.to_thread(House, house.folder, worker.url)
    try:
        assert await asyncio.to_thread(report, again) == before
    finally:
        await asyncio.to_thread(again.stop)


@pytest.mark.slow
async def test_a_second_ctrl_c_waits_for_no_answer(house: House, worker: ScriptedServer) -> None:
    asking = asyncio.ensure_future(stream(house))  # noqa: TID251 - awaited below
    while not worker.running:  # noqa: ASYNC110 - a real socket has no event
        await asyncio.sleep(0.02)
    house.process.send_signal(signal.SIGINT)
    await asyncio.to_thread(until, lambda: "draining" in house.text)
    assert worker.running  # a stream of 40 s, which a drain would wait for
    assert await asyncio.to_thread(house.stop) == 0
    assert "gateway-1 had to hurry and was killed" in house.text
    assert b"[DONE]" not in await asking


def run_up(folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", "up"],
        cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
async def stack(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stack]:
    """With two scripted workers in place of ours, which load for a second."""
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nshift 2\nsleep 1\nexec {sys.executable} -m tests.scripted_worker "$@"\n'
    )
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    settings = {"data_dir": tmp_path / "d", "local_workers": 2}
    it = Stack(
        Config.load(environ={}, overrides=settings), environ=dict(os.environ), say=said.append
    )
    it.data.make()
    yield it
    await it.stop()


async def test_workers_load_side_by_side_and_for_as_long_as_after_a_restart(
    stack: Stack, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_module, "START_PATIENCE_S", 0.1)
    monkeypatch.setattr(stack_module, "STILL_EVERY_S", 0.2)
    await stack._start_workers()
    assert [child.restarts for child in stack.workers] == [0, 0]
    for child in stack.workers:
        assert any(line.startswith(f"{child.name} is still loading") for line in said)


async def test_no_outgoing_connection_takes_the_port_of_a_worker_that_is_away(
    stack: Stack,
) -> None:
    """A connection that asks for the port gets it while nobody keeps it, and not any more."""
    await stack._start_workers()
    there, away = stack.workers
    port, its = (urlsplit(url).port for url in stack.config.workers)
    assert port is not None
    assert its is not None
    await away.stop(5)
    with socket.socket() as outgoing:
        with pytest.raises(OSError, match="in use"):
            outgoing.bind(("127.0.0.1", its))
    with socket.create_server(("127.0.0.1", its), reuse_port=False):
        pass  # it is kept for whoever listens
    for kept in stack._ports:
        kept.close()
    with socket.socket() as outgoing:  # the control: before, it was anybody's
        outgoing.bind(("127.0.0.1", its))
        outgoing.connect(("127.0.0.1", port))
    assert there.running


def test_a_wrong_setting_names_itself_and_its_line(tmp_path: Path) -> None:
    (tmp_path / "yuzui.yaml").write_text("port: 8080\nworkerz: 3\n")
    done = run_up(tmp_path)
    assert done.returncode == 2
    assert "yuzui.yaml:2" in done.stderr
    assert "workerz" in done.stderr
    assert "workers" in done.stderr
    done = run_up(tmp_path, YUZUI_CONFIG=os.devnull, YUZUI_PORT="http")
    assert done.returncode == 2
    assert "YUZUI_PORT" in done.stderr


def test_serve_refuses_to_start_without_a_key(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "serve"],
        cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no verification key" in done.stderr


# ------------------------------------------------------------------ addresses


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"),  # noqa: S104
     ("::1", "[::1]")],
)  # fmt: skip
def test_where_a_listener_is_reached(host: str, address: str) -> None:
    assert _reachable(host) == address


def test_a_port_that_is_taken_and_a_host_that_is_none_name_what_to_set() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(StartFailed, match="in use; set YUZUI_PORT"):
            _check_free("127.0.0.1", other.getsockname()[1])
    for host in ("a..b", "192.0.2.1"):
        with pytest.raises(StartFailed, match="set YUZUI_HOST and YUZUI_ADMIN_HOST to addresses"):
            _check_free(host, 0)
    _check_free("127.0.0.1", 0)


def test_a_port_of_ipv6_is_looked_at_as_one() -> None:
    try:
        other = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no ::1")
    with other:
        with pytest.raises(StartFailed, match="in use; set YUZUI_PORT"):
            _check_free("::1", other.getsockname()[1])
    _check_free("::1", 0)
