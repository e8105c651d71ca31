"""The worker as its users start it: a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

pytestmark = pytest.mark.slow

Start = Callable[..., Awaitable[asyncio.subprocess.Process]]

READY_S = 90  # importing torch on a busy core takes seconds


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts workers; none outlives its test, whatever becomes of the test."""
    started: list[asyncio.subprocess.Process] = []

    async def one(*arguments: str) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "backends.glm", "--port", "0", "--threads", "1", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
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


async def test_what_cannot_be_loaded_ends_with_1_and_a_reason(start: Start, tmp_path: Path) -> None:
    process = await start("--model", str(tmp_path / "nowhere"))
    lines = await finished(process)
    assert process.returncode == 1
    assert lines[-1]["event"] == "load_failed"
    assert "not a folder" in lines[-1]["error"]


async def test_a_signal_while_loading_ends_it(start: Start, checkpoint_path: Path) -> None:
    process = await start("--model", str(checkpoint_path))
    await listening(process)
    os.kill(process.pid, signal.SIGINT)
    await finished(process)
    assert process.returncode == 0
