"""Children as processes: restarted, given up, restarted on request."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from gateway import processes
from gateway.processes import QUICK_ENDS_MAX, Child, ChildState, tail
from tests.gateway.rig import until

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]
FAILS = [sys.executable, "-c", "import sys; print('no such card'); sys.exit(3)"]


@pytest.fixture
def said() -> list[str]:
    return []


def child(folder: Path, said: list[str], command: list[str]) -> Child:
    return Child("worker-1", command, env=dict(os.environ), logs=folder, say=said.append)


async def test_one_that_is_killed_is_started_again(tmp_path: Path, said: list[str]) -> None:
    it = child(tmp_path, said, SLEEPS)
    await it.start()
    first = it.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: it.running and it.pid != first)
    assert (it.failures, it.restarts, it.why) == (1, 1, "signal SIGKILL")
    assert "starting again" in said[0]
    await it.stop(5)
    assert it.state is ChildState.STOPPED
    assert not it.running


async def test_one_that_ends_again_and_again_is_given_up_and_says_why(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "BACKOFF_FIRST_S", 0.01)
    it = child(tmp_path, said, FAILS)
    await it.start()
    await until(lambda: it.state is ChildState.GIVEN_UP)
    assert it.failures == QUICK_ENDS_MAX
    assert f"ended {QUICK_ENDS_MAX} times in a row" in said[-1]
    assert "exit code 3" in said[-1]
    assert "no such card" in said[-1]
    launches = it.restarts
    await it.restart(1)  # somebody has put it right, and asks for it
    await until(lambda: it.state is ChildState.GIVEN_UP and it.failures == 2 * QUICK_ENDS_MAX)
    assert it.restarts > launches
    await it.stop(1)


async def test_a_restart_that_was_asked_for_is_no_failure(tmp_path: Path, said: list[str]) -> None:
    it = child(tmp_path, said, SLEEPS)
    await it.start()
    first = it.pid
    await it.restart(5)
    assert it.running
    assert it.pid != first
    assert (it.failures, it.restarts, said) == (0, 1, [])
    await it.stop(5)


async def test_one_that_does_not_stop_is_killed(tmp_path: Path, said: list[str]) -> None:
    deaf = [sys.executable, "-c", "import signal,time\nsignal.signal(15, signal.SIG_IGN)\n"
            "print('deaf', flush=True)\ntime.sleep(600)"]  # fmt: skip
    it = child(tmp_path, said, deaf)
    await it.start()
    await until(lambda: "deaf" in tail(it.log_file))
    await it.stop(0.2)
    assert not it.running
    assert "was killed" in said[0]


@pytest.mark.parametrize("early", [True, False])
async def test_who_is_in_a_hurry_waits_for_no_end(
    tmp_path: Path, said: list[str], early: bool
) -> None:
    deaf = [sys.executable, "-c", "import signal,time\nsignal.signal(15, signal.SIG_IGN)\n"
            "print('deaf', flush=True)\ntime.sleep(600)"]  # fmt: skip
    it = child(tmp_path, said, deaf)
    await it.start()
    await until(lambda: "deaf" in tail(it.log_file))
    if early:
        it.hasten()
    stopping = asyncio.ensure_future(it.stop(600))  # noqa: TID251 - awaited below
    await asyncio.sleep(0)
    it.hasten()
    await stopping
    assert not it.running
    assert said == ["worker-1 had to hurry and was killed"]


async def test_a_hanging_one_is_killed_and_comes_back(tmp_path: Path, said: list[str]) -> None:
    it = child(tmp_path, said, SLEEPS)
    await it.start()
    first = it.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    it.kill("has not answered for 20 s")
    await until(lambda: it.running and it.pid != first)
    assert said[0] == f"worker-1 (pid {first}) has not answered for 20 s and is killed"
    await it.stop(5)
    it.kill("is gone already")  # does nothing
    assert len(said) == 2


async def test_one_that_cannot_be_launched_is_tried_again(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the machine has no memory for another process."""
    monkeypatch.setattr(processes, "BACKOFF_FIRST_S", 0.01)
    command, gone = tmp_path / "python", tmp_path / "gone"
    command.symlink_to(sys.executable)
    it = child(tmp_path, said, [str(command), *SLEEPS[1:]])
    await it.start()
    command.rename(gone)
    assert it.pid is not None
    os.kill(it.pid, signal.SIGKILL)
    await until(lambda: it.failures >= 3)
    assert it.why.startswith("no process (")
    assert "No such file" in it.why
    gone.rename(command)
    await until(lambda: it.running)

    command.rename(gone)
    await it.restart(5)  # returns although there is nothing to launch
    await until(lambda: it.state is ChildState.GIVEN_UP)
    assert "No such file" in said[-1]
    gone.rename(command)
    await it.restart(5)
    assert it.running
    await it.stop(5)


async def test_one_whose_log_cannot_be_written_runs_without(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "BACKOFF_FIRST_S", 0.01)
    it = child(tmp_path / "logs", said, SLEEPS)
    await it.start()
    assert it.running
    first = it.pid
    assert first is not None
    assert "runs without its log" in said[0]
    os.kill(first, signal.SIGKILL)
    await until(lambda: it.running and it.pid != first)
    await it.stop(5)


@pytest.mark.parametrize("state", [ChildState.WAITING, ChildState.GIVEN_UP])
async def test_who_asks_waits_for_no_pause_and_forgives_only_what_was(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, state: ChildState
) -> None:
    """A restart is one launch, however far it was; the next crash is a crash again."""
    pause_s = 600.0 if state is ChildState.WAITING else 0.01
    monkeypatch.setattr(processes, "BACKOFF_FIRST_S", pause_s)
    cured = tmp_path / "cured"
    code = f"import os,time; os.path.exists({str(cured)!r}) or os._exit(3); time.sleep(600)"
    it = child(tmp_path, said, [sys.executable, "-S", "-c", code])
    await it.start()
    await until(lambda: it.state is state)
    cured.touch()
    failures, restarts = it.failures, it.restarts
    await it.restart(5)
    assert it.running
    assert (it.failures, it.restarts) == (failures, restarts + 1)
    assert it.pid is not None
    os.kill(it.pid, signal.SIGKILL)
    await until(lambda: it.failures == failures + 1)
    await it.stop(5)


@pytest.mark.parametrize("probed", [True, False])
async def test_one_that_lives_long_and_never_gets_well_is_given_up(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, probed: bool
) -> None:
    """As a checkpoint that is too large: half a minute of loading, then no memory, for ever."""
    monkeypatch.setattr(processes, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.setattr(processes, "STEADY_S", 0.05)
    loads = [sys.executable, "-S", "-c", "import time; time.sleep(0.1); raise SystemExit(3)"]
    it = Child("x", loads, env=dict(os.environ), logs=tmp_path, say=said.append, probed=probed)
    await it.start()
    await until(lambda: it.failures > QUICK_ENDS_MAX or it.state is ChildState.GIVEN_UP)
    assert it.failures == QUICK_ENDS_MAX + (not probed)
    await it.stop(1)


async def test_an_end_by_a_signal_without_a_name(tmp_path: Path, said: list[str]) -> None:
    it = child(tmp_path, said, SLEEPS)
    await it.start()
    first = it.pid
    assert first is not None
    os.kill(first, 40)
    await until(lambda: it.running and it.pid != first)
    assert it.why == "signal 40"
    await it.stop(5)


def test_the_end_of_a_log_that_is_not_there(tmp_path: Path) -> None:
    assert tail(tmp_path / "none.log") == ""
