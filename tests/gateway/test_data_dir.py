from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.data_dir import DataDir, FolderUnusable, InUse, Running


def test_the_folder_and_what_is_secret_in_it_are_their_owners_alone(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "a" / "b")
    token = data.admin_token()
    assert len(token) >= 43
    assert data.admin_token() == token
    data.write_token("t")
    assert data.token_file.read_text() == "t\n"
    assert data.path.stat().st_mode & 0o777 == 0o700
    for name in ("admin-token", "token"):
        assert (data.path / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_used_says_what_to_do(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    data = DataDir(tmp_path / place)
    with pytest.raises(FolderUnusable, match=r"file.* cannot be used .*YUZUI_DATA_DIR"):
        data.make()
    with pytest.raises(FolderUnusable):
        data.admin_token()


def test_a_token_that_cannot_be_read_is_no_new_token(tmp_path: Path) -> None:
    (tmp_path / "admin-token").mkdir()
    with pytest.raises(FolderUnusable, match="YUZUI_DATA_DIR"):
        DataDir(tmp_path).admin_token()


def test_one_holds_the_folder(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    held = data.lock()
    with pytest.raises(InUse, match="another yuzui"):
        data.lock()
    held.close()
    data.lock().close()


def test_what_runs_is_known_until_it_ends(tmp_path: Path) -> None:
    data = DataDir(tmp_path)
    assert data.running() is None
    held = data.lock()
    ours = Running(pid=os.getpid(), url="u", admin_url="a")
    assert data.running() is None  # it has not said what it is yet
    data.write_running(ours)
    assert data.running() == ours
    with pytest.raises(InUse):  # to look takes nothing away
        data.lock()
    data.forget_running()
    assert not (tmp_path / "running.json").exists()
    assert data.workers() == b"[]"
    held.close()


def test_a_number_that_is_another_process_by_now_is_nobody_here(tmp_path: Path) -> None:
    """`yuzui up` was killed; what it wrote is still there, and so is a process of that number."""
    data = DataDir(tmp_path)
    held = data.lock()
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as other:
        data.write_running(Running(pid=other.pid, url="u", admin_url="a"))
        held.close()
        assert data.running() is None
        assert not data.ask_restart([])
        assert other.poll() is None  # no signal has ended it
        other.communicate(b"\n")
    assert other.returncode == 0


@pytest.mark.parametrize(
    ("requests", "heard"),
    [
        ([["worker-1"]], ["worker-1"]),
        ([["worker-2"], ["worker-1"], ["worker-2"]], ["worker-1", "worker-2"]),
        ([["worker-2"], []], []),
    ],
)
def test_requests_of_one_moment_are_all_heard_once(
    tmp_path: Path, requests: list[list[str]], heard: list[str]
) -> None:
    data = DataDir(tmp_path)
    came = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: came.append(number))
    try:
        with data.lock():
            data.write_running(Running(pid=os.getpid(), url="u", admin_url="a"))
            assert data.asked_restart() is None
            for names in requests:
                assert data.ask_restart(names)
            assert data.asked_restart() == heard
            assert data.asked_restart() is None
            assert data.ask_restart(["worker-9"])
            data.forget_running()  # of one that was killed before it could do it
            assert data.asked_restart() is None
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert came
