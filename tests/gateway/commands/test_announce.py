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
from gateway.tasks import spawn
from tests.gateway.rig import Answered, Rig, rig, until
from tests.ports import free_port


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


async def listed(house: Rig, wanted: list[tuple[str, str]]) -> None:
    """Returns when the gateway's workers are these: name and health."""
    async with asyncio.timeout(300):  # loading gives way to whoever else wants the core
        while True:
            found = await house.admin("GET", "/admin/workers")
            if [(worker["name"], worker["health"]) for worker in found] == wanted:
                return
            await asyncio.sleep(0.05)


async def _keep_asking(house: Rig, answers: list[Answered]) -> None:
    """Until somebody else than the worker answers."""
    while not answers or answers[-1].header("route") == "local:gpu7":
        answers.append(await house.ask(stream=True, max_tokens=24))


@pytest.mark.slow
async def test_a_worker_that_announces_itself_from_its_start_to_its_end(
    books_url: str, tmp_path: Path
) -> None:
    """The real worker and its own model. Killed: its last beat runs out, and the gateway has
    stopped asking before. Told to end: it is out of Redis when its process is."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = ("worker", "--port", str(port), "--announce", url, "--announce-name", "gpu7")
    command += ("--redis", books_url, "--threads", "1")
    beats = Heartbeats(books_url)
    house_of = {"pool.heartbeats": True}
    process = start(tmp_path, *command)
    try:
        async with rig(books_url, workers=[], cloud=True, settings=house_of) as house:
            assert (await house.ask()).header("route") != "local:gpu7"  # it is still loading
            await listed(house, [("gpu7", "up")])
            assert (await house.ask(max_tokens=4)).header("route") == "local:gpu7"
            process.kill()
            await listed(house, [("gpu7", "down")])  # refused connections are heard at once
            assert (await house.ask()).header("route") != "local:gpu7"
            await listed(house, [])
            assert await beats.read() == []
            await asyncio.to_thread(process.communicate)

            process = start(tmp_path, *command)
            await listed(house, [("gpu7", "up")])
            answers: list[Answered] = []
            callers = [spawn(_keep_asking(house, answers), name="caller") for _ in range(3)]
            await until(lambda: len(answers) > 10)
            process.send_signal(signal.SIGTERM)
            out, _ = await asyncio.to_thread(process.communicate, timeout=120)
            assert await beats.read() == []
            await asyncio.gather(*callers)
            assert all(answer.ended_well for answer in answers)
            assert answers[0].header("route") == "local:gpu7" != answers[-1].header("route")
            assert process.returncode == 0, out.decode()
            assert b'"state": "announced"' in out
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
