"""`yuzui announce` and `yuzui worker --announce` as processes, in a real Redis."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backends.scripted_server import ScriptedServer, ServerOptions
from gateway.pool.heartbeats import Heartbeats


def start(folder: Path, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", *command],
        cwd=folder, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


async def named(beats: Heartbeats, names: list[str]) -> None:
    async with asyncio.timeout(60):
        while [m.name for m in await beats.read()] != names:  # noqa: ASYNC110 - a real Redis
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_an_engine_is_announced_until_the_command_ends(
    books_url: str, tmp_path: Path
) -> None:
    beats = Heartbeats(books_url)
    async with ScriptedServer(ServerOptions()) as engine:
        options = ("--url", engine.url, "--name", "gpu7", "--redis", books_url)
        more = ("--label", "public", "--tenant", "acme", "--weight", "2", "--slots", "4")
        process = start(tmp_path, "announce", *options, *more)
        try:
            await named(beats, ["gpu7"])
            (member,) = await beats.read()
            assert (member.weight, member.slots, member.tenants) == (2.0, 4, {"acme"})
            process.send_signal(signal.SIGTERM)
            out, _ = await asyncio.to_thread(process.communicate, timeout=30)
            assert process.returncode == 0
            assert f"gpu7 at {engine.url}: announced" in out.decode()
            assert list(await beats.read()) == []
        finally:
            process.kill()
            await beats.close()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--url", "http://10.0.0.7"), "no Redis is named"),
        (("--url", "ftp://x", "--redis", "redis://127.0.0.1"), "not a plain http(s) URL"),
        (("--url", "http://10.0.0.7", "--redis", "redis://x", "--weight", "0"), "positive"),
    ],
)
def test_mistakes_name_themselves(options: tuple[str, ...], complaint: str, tmp_path: Path) -> None:
    process = start(tmp_path, "announce", *options)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert complaint in out.decode()
