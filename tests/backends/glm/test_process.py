"""The worker as its users start it: a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from backends.glm.checkpoint.files import LoadError
from backends.glm.priority import AS_USUAL, GIVING_WAY
from backends.glm.worker import LoadFailure

pytestmark = pytest.mark.slow

Start = Callable[..., Awaitable[asyncio.subprocess.Process]]

# Importing torch on a busy core takes seconds; loading gives way to whoever else wants the core.
READY_S = 300


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts workers; none outlives its test, whatever becomes of the test."""
    started: list[asyncio.subprocess.Process] = []

    async def one(
        *arguments: str,
        session: bool = False,
        program: tuple[str, str] = ("-m", "backends.glm"),
    ) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *program, "--port", "0", "--threads", "1", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            start_new_session=session,
        )  # fmt: skip
        started.append(process)
        return process

    yield one
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def finished(process: asyncio.subprocess.Process) -> list[dict[str, Any]]:
    """The JSON objects on stderr of a process that has ended or is about to."""
    async with asyncio.timeout(READY_S):
        _, stderr = await process.communicate()
    return [json.loads(line) for line in stderr.splitlines()]


async def listening(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(READY_S):
        url: str = json.loads(await process.stdout.readline())["listening"]
    return url


async def test_a_worker_from_start_to_drain(
    start: Start, checkpoint_path: Path, tmp_path: Path
) -> None:
    talkative = Path(shutil.copytree(checkpoint_path, tmp_path / "talkative"))
    no_such_id = 10**6  # a stop id that never comes: every answer runs to its limit
    (talkative / "generation_config.json").write_text(json.dumps({"eos_token_id": no_such_id}))
    port_file = tmp_path / "port"
    process = await start("--model", str(talkative), "--port-file", str(port_file), "--name", "w7")
    url = await listening(process)
    assert url == f"http://127.0.0.1:{int(port_file.read_text())}"
    async with aiohttp.ClientSession(url) as http:
        states = []
        async with asyncio.timeout(READY_S), http.get("/load?watch=1") as response:
            async for line in response.content:  # it listens while it loads
                states.append(json.loads(line))
                if states[-1]["state"] == "ok":
                    break
        assert states[0]["state"] == "loading"
        assert states[-1]["worker"] == "w7"
        assert states[-1]["decode_tokens_per_s"] > 0  # the warm-up has measured before "ok"
        assert states[-1]["prefill_tokens_per_s"] > 0
        body = {
            "model": "glm-4.6v",
            "stream": True,
            "max_tokens": 500,
            "reasoning_effort": "none",
            "messages": [{"role": "user", "content": "secret"}],
        }
        async with http.post("/v1/chat/completions", json=body) as stream:
            await stream.content.readline()
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(READY_S):
                while True:
                    async with http.get("/health") as health:
                        if (await health.json())["status"] == "draining":
                            break
            async with http.post("/v1/chat/completions", json=body) as refused:
                assert refused.status == 503
                assert (await refused.json())["error"]["code"] == "worker_draining"
            # What runs is finished.
            assert (await stream.read()).endswith(b"data: [DONE]\n\n")
    lines = await finished(process)
    assert process.returncode == 0
    assert [line["event"] for line in lines][-1] == "stopped"
    assert {"ready", "chat", "draining"} <= {line["event"] for line in lines}
    assert "secret" not in json.dumps(lines)
    assert not port_file.exists()


async def test_answers_get_as_long_as_drain_s_says(
    start: Start, checkpoint_path: Path, tmp_path: Path
) -> None:
    talkative = Path(shutil.copytree(checkpoint_path, tmp_path / "talkative"))
    (talkative / "generation_config.json").write_text(json.dumps({"eos_token_id": 10**6}))
    process = await start("--model", str(talkative), "--drain-s", "0", "--slots", "8")
    url = await listening(process)
    body = {"model": "glm-4.6v", "stream": True, "max_tokens": 500, "n": 8,
            "messages": [{"role": "user", "content": "go on"}]}  # fmt: skip
    async with aiohttp.ClientSession(url) as http:
        async with asyncio.timeout(READY_S), http.get("/load?watch=1") as response:
            async for line in response.content:
                if json.loads(line)["state"] == "ok":
                    break
        async with http.post("/v1/chat/completions", json=body) as stream:
            assert stream.status == 200
            await stream.content.readline()
            process.send_signal(signal.SIGTERM)
            rest = await stream.read()
    assert b"data: [DONE]" not in rest
    await finished(process)
    assert process.returncode == 0


def priorities(pid: int) -> tuple[int, dict[str, int]]:
    """Nice value of a process's session, and of each of its threads."""
    session = Path(f"/proc/{pid}/autogroup").read_text().split()[-1]
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # a thread that ended while we looked
            found[task.name] = os.getpriority(os.PRIO_PROCESS, int(task.name))
    return int(session), found


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="no autogroups here")
async def test_it_gives_way_while_it_loads_and_takes_part_once_it_serves(
    start: Start, checkpoint_path: Path
) -> None:
    process = await start("--model", str(checkpoint_path), "--threads", "2", session=True)
    url = await listening(process)
    assert priorities(process.pid)[0] == GIVING_WAY
    seen: set[int] = set()
    async with aiohttp.ClientSession(url) as http, asyncio.timeout(READY_S):
        while True:
            async with http.get("/health") as health:
                if health.status == 200:
                    break
            seen |= set(priorities(process.pid)[1].values())
            await asyncio.sleep(0.05)
        body = {"model": "glm-4.6v", "messages": [{"role": "user", "content": "hello"}]}
        async with http.post("/v1/chat/completions", json=body) as answer:
            assert answer.status == 200
    assert GIVING_WAY in seen  # the positive control
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    async with asyncio.timeout(READY_S):
        while True:  # the threads that have loaded end, and their last moments may be seen
            session, threads = priorities(process.pid)
            assert session == AS_USUAL
            if set(threads.values()) == {usual}:
                break
            await asyncio.sleep(0.05)


# A worker whose device breaks, or hangs, with the tenant of this name.
BROKEN = """
import sys, threading
from backends.glm.__main__ import main
from backends.glm.model.runner import Runner
class Broken(Runner):
    def open(self, job, *rest):
        opened = super().open(job, *rest)
        opened.generation.tenant = job.tenant
        return opened
    def step(self, work):
        if any(generation.tenant == "hang" for generation, _ in work):
            threading.Event().wait()
        return super().step(work)
    def close(self, generation):
        if generation.tenant == "break":
            raise RuntimeError("CUDA error")
        super().close(generation)
from backends.glm import startup
startup.Runner = Broken
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("tenant", "why"), [("break", "rows could not be cleared"), ("hang", "no step has ended for")]
)
async def test_an_engine_that_breaks_or_hangs_ends_the_worker_with_1(
    start: Start, checkpoint_path: Path, tenant: str, why: str
) -> None:
    """Everybody inside is told first; nobody is left to wait for what never comes."""
    arguments = ("--model", str(checkpoint_path), "--stall-s", "3")
    process = await start(*arguments, program=("-c", BROKEN))
    url = await listening(process)
    long = {
        "model": "glm-4.6v",
        "messages": [{"role": "user", "content": "Hello"}],
        "reasoning_effort": "none",
        "stream": True,
        "ignore_eos": True,
        "max_tokens": 1500,
    }
    async with aiohttp.ClientSession(url) as http, asyncio.timeout(READY_S):
        async with http.get("/load?watch=1") as watch:
            async for line in watch.content:
                if json.loads(line)["state"] == "ok":
                    break
        async with http.post("/v1/chat/completions", json=long) as other:
            assert other.status == 200
            await other.content.readline()
            fatal = {**long, "max_tokens": 1, "cache_salt": tenant}
            async with http.post("/v1/chat/completions", json=fatal) as answer:
                # Where only clearing its rows fails, its own answer is whole.
                assert answer.status == (503 if tenant == "hang" else 200)
            rest = await other.read()
            assert b"worker_failed" in rest
            assert b"[DONE]" not in rest
    lines = await finished(process)
    assert process.returncode == 1
    assert lines[-1]["event"] == "engine_failed"
    assert why in lines[-1]["error"]


def test_an_unexpected_failure_to_load_names_its_kind() -> None:
    assert LoadFailure.by(LoadError("copy the folder")).message == "copy the folder"
    assert LoadFailure.by(KeyError("rope")).message == "KeyError: 'rope'"


async def test_what_cannot_be_loaded_ends_with_1_and_a_reason(start: Start, tmp_path: Path) -> None:
    process = await start("--model", str(tmp_path / "nowhere"))
    lines = await finished(process)
    assert process.returncode == 1
    assert lines[-1]["event"] == "load_failed"
    assert "not a folder" in lines[-1]["error"]


@pytest.mark.parametrize(("host", "code"), [("a..b", 2), ("127.0.0.1", 1)])
async def test_an_address_that_is_not_to_be_had_ends_it_in_a_line(
    start: Start, tmp_path: Path, host: str, code: int
) -> None:
    """And the file of the worker that has the port stays."""
    port_file = tmp_path / "port"
    port_file.write_text("of another")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        process = await start("--host", host, "--port", port, "--port-file", str(port_file))
        (line,) = await finished(process)
    assert (process.returncode, line["event"]) == (code, "cannot_listen")
    flag = "--host" if code == 2 else "--port"
    assert f"set {flag} to" in line["error"]
    assert port_file.read_text() == "of another"


async def test_a_port_file_that_cannot_be_written_ends_it_in_a_line(start: Start) -> None:
    process = await start("--port-file", "/proc/self/port")
    (line,) = await finished(process)
    assert (process.returncode, line["event"]) == (1, "cannot_write")
    assert line["error"].startswith("--port-file /proc/self/port: ")


async def test_a_signal_while_loading_ends_it(start: Start, checkpoint_path: Path) -> None:
    process = await start("--model", str(checkpoint_path))
    await listening(process)
    os.kill(process.pid, signal.SIGINT)
    await finished(process)
    assert process.returncode == 0
