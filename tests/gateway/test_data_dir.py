from __future__ import annotations

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
    ours = Running(pid=1, url="u", admin_url="a")
    data.write_running(ours)
    assert data.running() == ours
    data.write_running(Running(pid=2**22 + 1, url="u", admin_url="a"))  # above every real pid
    assert data.running() is None
    data.forget_running()
    assert not (tmp_path / "running.json").exists()
    assert data.workers() == b"[]"
    assert data.asked_restart() == []
    assert not data.ask_restart([])
