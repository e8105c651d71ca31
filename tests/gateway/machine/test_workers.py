"""The workers that `yuzui up` runs, as processes: watched, killed when they hang, rolled."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import msgspec
import pytest

from gateway.config import Config
from gateway.data_dir import DataDir, Running
from gateway.machine import workers
from gateway.machine.stack import Stack, _probe
from gateway.machine.workers import LocalWorkers, WorkerStatus, count_gpus, planned
from gateway.processes import Child, ChildState
from gateway.tasks import spawn
from tests.gateway.rig import until
from tests.ports import free_port

CPU = {"gpus": 0, "cores": 16, "cores_per_worker": 8}


@pytest.mark.parametrize(
    ("wanted", "machine", "expected"),
    [
        ("auto", CPU, [("--threads", "8"), ("--threads", "8")]),
        ("auto", {**CPU, "cores": 2}, [()]),
        ("auto", {**CPU, "gpus": 1}, [()]),
        ("auto", {**CPU, "gpus": 2}, [("--device", "cuda:0"), ("--device", "cuda:1")]),
        (3, {**CPU, "gpus": 2}, [("--device", f"cuda:{n}") for n in (0, 1, 0)]),
        (0, CPU, []),
        (1, CPU, [()]),
        (32, CPU, [("--threads", "1")] * 32),
    ],
)
def test_how_many_and_on_what(
    wanted: int | str, machine: dict[str, int], expected: list[tuple[str, ...]]
) -> None:
    found = planned(wanted, **machine)
    assert [command.options for command in found] == expected
    assert [command.name for command in found] == [f"w{n + 1}" for n in range(len(found))]


def test_cards(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "sda"):
        (tmp_path / name).touch()
    assert count_gpus({}, tmp_path) == 2
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path) == 1
    assert count_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == 0
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "-1"}, tmp_path) == 0
    assert count_gpus({}, tmp_path / "none") == 0


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LOOK_EVERY_S", 0.2)
    monkeypatch.setattr(workers, "SEEN_S", 0.1)  # no gateway is here to see anything


class House:
    """hang_s: longer than a probe waits, so that one which hangs is seen before it is killed."""

    def __init__(self, folder: Path, *commands: list[str], hang_s: float = 3.0) -> None:
        self.said: list[str] = []
        self.data = DataDir(folder)
        self.data.make()
        self.children: list[tuple[Child, str]] = []
        for number, more in enumerate(commands, start=1):
            port = free_port()
            command = [sys.executable, "-m", "tests.scripted_worker", "--port", str(port), *more]
            it = Child(
                f"worker-{number}", command, env=dict(os.environ), logs=self.data.logs,
                say=self.said.append, probed=True,
            )  # fmt: skip
            self.children.append((it, f"http://127.0.0.1:{port}"))
        self.workers = LocalWorkers(
            self.children, data=self.data, hang_s=hang_s, drain_s=60.0, probe=_probe,
            say=lambda text: self.said.append(text),
        )  # fmt: skip

    def status(self) -> list[WorkerStatus]:
        return msgspec.json.decode(self.data.workers(), type=list[WorkerStatus])

    def states(self) -> list[str]:
        return [worker.state for worker in self.status()]


@asynccontextmanager
async def running(house: House) -> AsyncIterator[House]:
    for it, _ in house.children:
        await it.start()
    watching = spawn(house.workers.watch(), name="watch")
    try:
        yield house
    finally:
        watching.cancel()
        await asyncio.gather(*(it.stop(5) for it, _ in house.children))


async def test_a_hanging_worker_is_killed_and_started_again(tmp_path: Path) -> None:
    async with running(House(tmp_path, [], [])) as house:
        await until(lambda: house.states() == ["running", "running"])
        hanging, well = (it for it, _ in house.children)
        before = hanging.pid
        assert before is not None
        os.kill(before, signal.SIGSTOP)
        await until(lambda: house.states()[:1] == ["hanging"])
        await until(lambda: house.states() == ["running", "running"])
        assert hanging.pid != before
        assert (hanging.restarts, well.restarts) == (1, 0)
        assert any("has not answered for 3 s and is killed" in line for line in house.said)
        assert house.status()[0].why == "signal SIGKILL"


async def test_they_are_restarted_one_after_the_other(tmp_path: Path) -> None:
    async with running(House(tmp_path, [], [])) as house:
        await until(lambda: house.states() == ["running", "running"])
        before = [it.pid for it, _ in house.children]
        rolling = spawn(house.workers.roll(), name="roll")
        down = 0
        while not rolling.done():
            answers = await asyncio.gather(*(_probe(f"{u}/health") for _, u in house.children))
            down = max(down, sum(status != 200 for status in answers))
        assert rolling.result()
        assert down <= 1
        assert all(it.pid != old for (it, _), old in zip(house.children, before, strict=True))
        assert all(it.failures == 0 for it, _ in house.children)


async def test_one_that_does_not_come_back_ends_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.processes.BACKOFF_FIRST_S", 0.01)
    async with running(House(tmp_path, [], [])) as house:
        await until(lambda: house.states() == ["running", "running"])
        broken, spared = (it for it, _ in house.children)
        broken._command += ["--fail-after-s", "0"]
        assert not await house.workers.roll()
        assert broken.state is ChildState.GIVEN_UP
        assert spared.restarts == 0
        assert "the others are left alone" in house.said[-1]
        house.workers.write_status()
        assert house.status()[0].state == "given_up"


async def test_only_those_that_were_named(tmp_path: Path) -> None:
    async with running(House(tmp_path, [], [])) as house:
        await until(lambda: house.states() == ["running", "running"])
        assert await house.workers.roll(["worker-2"])
        assert [it.restarts for it, _ in house.children] == [0, 1]


async def test_a_folder_that_cannot_be_written_keeps_nobody_from_being_looked_after(
    tmp_path: Path,
) -> None:
    async with running(House(tmp_path, [], hang_s=0.5)) as house:
        await until(lambda: house.states() == ["running"])
        ((it, _),) = house.children
        (tmp_path / "workers.json.tmp").mkdir()  # stands in the way, as a full disk would
        await until(lambda: any("shows old news" in line for line in house.said))
        before = it.pid
        assert before is not None
        os.kill(before, signal.SIGSTOP)
        await until(lambda: it.restarts == 1)
        assert house.states() == ["running"]  # as it was
        assert sum("old news" in line for line in house.said) == 1  # not in every round
        (tmp_path / "workers.json.tmp").rmdir()
        await until(lambda: house.status()[0].restarts == 1)


async def test_a_probe_that_fails_here_ends_neither_watch_nor_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the supervisor itself can start no thread."""
    asked = 0

    async def probe(url: str) -> int | None:
        nonlocal asked
        asked += 1
        if asked % 2:
            raise RuntimeError("can't start new thread")
        return await _probe(url)

    house = House(tmp_path, [])
    monkeypatch.setattr(house.workers, "_probe", probe)
    async with running(house):
        await until(lambda: house.states() == ["running"])
        assert await house.workers.roll()
        assert any("can't start new thread" in line for line in house.said)


async def test_one_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its lives takes longer than a quick end, and none was of use."""
    monkeypatch.setattr(workers, "FIRST_ANSWER_S", 0.3)
    monkeypatch.setattr("gateway.processes.STEADY_S", 0.1)
    monkeypatch.setattr("gateway.processes.BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr("gateway.processes.QUICK_ENDS_MAX", 3)
    house = House(tmp_path, [], hang_s=0.1)
    ((mute, _),) = house.children
    mute._command[:] = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    async with running(house):
        await until(lambda: mute.state is ChildState.GIVEN_UP)
        assert (mute.failures, mute.why) == (3, "signal SIGKILL")


async def test_one_that_was_well_is_never_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.processes.STEADY_S", 0.0)
    monkeypatch.setattr("gateway.processes.BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr("gateway.processes.QUICK_ENDS_MAX", 2)
    async with running(House(tmp_path, [])) as house:
        ((it, _),) = house.children
        for number in (1, 2, 3):
            await until(lambda: it._well_s is not None)
            pid = it.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda number=number: it.restarts == number)  # type: ignore[misc]


async def test_requests_of_one_moment_restart_each_worker_once(tmp_path: Path) -> None:
    async with running(House(tmp_path, [], [])) as house:
        stack = Stack(
            Config.load(environ={}, overrides={"data_dir": tmp_path}),
            environ={},
            say=house.said.append,
        )
        stack._supervised = house.workers
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, stack.restart_workers)
        try:
            with house.data.lock():
                running_here = Running(pid=os.getpid(), url="u", admin_url="a")
                house.data.write_running(running_here)
                await until(lambda: house.states() == ["running", "running"])
                house.data.ask_restart(["worker-2"])
                house.data.ask_restart(["worker-1"])
                await until(lambda: bool(stack._rolls))
                await until(lambda: not stack._rolls)
        finally:
            loop.remove_signal_handler(signal.SIGUSR1)
        assert [it.restarts for it, _ in house.children] == [1, 1]


async def test_an_answer_that_runs_is_finished_however_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short patience is for the end of everything, after the gateways have drained."""
    monkeypatch.setattr(workers, "WORKER_STOP_S", 0.1)
    async with running(House(tmp_path, ["--chunks", "40", "--pace-ms", "50"])) as house:
        await until(lambda: house.states() == ["running"])
        ((it, url),) = house.children
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "go"}]}
        async with aiohttp.ClientSession() as http:
            async with http.post(f"{url}/v1/chat/completions", json=body) as response:
                await response.content.readany()
                rolling = spawn(house.workers.roll(), name="roll")
                rest = await response.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        assert await rolling
        assert it.restarts == 1


async def test_those_of_no_use_are_restarted_before_one_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.processes.BACKOFF_FIRST_S", 0.01)
    async with running(House(tmp_path, [], [])) as house:
        await until(lambda: house.states() == ["running", "running"])
        (well, _), (broken, _) = house.children
        broken._command += ["--fail-after-s", "0"]
        broken.kill("is broken by the test")
        await until(lambda: house.states() == ["running", "given_up"])
        assert not await house.workers.roll()
        assert well.restarts == 0
        assert await house.workers.roll(["worker-1"])  # by name: as with a single worker
        del broken._command[-2:]
        await until(lambda: house.states() == ["running", "given_up"])
        assert await house.workers.roll()
        assert [line for line in house.said if line.startswith("restarting")][-2:] == [
            "restarting worker-2", "restarting worker-1",
        ]  # fmt: skip


async def test_the_one_that_answers_waits_for_one_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(House(tmp_path, [], [])) as house:
        await until(lambda: house.states() == ["running", "running"])
        (_, _), (loading, its_url) = house.children
        before = loading.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        await until(lambda: not loading.running or loading.pid != before)
        seen = []

        async def note(patience_s: float) -> None:
            seen.append(await _probe(f"{its_url}/health"))

        monkeypatch.setattr(house.children[0][0], "restart", note)
        assert await house.workers.roll(["worker-1"])
        assert seen == [200]
        monkeypatch.setattr(workers, "READY_PATIENCE_S", 0.2)
        stopped = loading.pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        assert not await house.workers.roll(["worker-1"])
        with suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGCONT)  # so that its end need not be waited for
        assert "worker-1 is left alone" in house.said[-1]
