from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.commands import workers
from tests.gateway.commands.kit import Admin, alone


def worker(name: str = "w1", **supervised: Any) -> dict[str, Any]:
    found = {"name": "worker-1", "url": "u", "pid": 7, "state": "running", "restarts": 0}
    return {
        "name": name, "url": "http://127.0.0.1:9", "engine": "yuzui", "model": "glm-4.6v-nano",
        "health": "up", "breaker": "closed", "slots": 8, "running": 2, "waiting": 0,
        "in_flight": 2, "supervised": {**found, **supervised} if supervised is not None else None,
    }  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone(monkeypatch, tmp_path)
    monkeypatch.setattr(workers, "POLL_S", 0.0)


def test_a_table_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {**worker("gpu7"), "supervised": None, "breaker": "open", "engine": "vllm"}
    monkeypatch.setattr(workers, "AdminClient", Admin([worker(), other]))
    assert workers.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "running, pid 7" in shown
    assert "open breaker" in shown
    assert workers.main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1]["engine"] == "vllm"


def test_an_empty_pool_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "AdminClient", Admin([]))
    assert workers.main(["list"]) == 0
    assert "yuzui.yaml" in capsys.readouterr().out


class Restarting(Admin):
    """Its worker is another process after the second look."""

    looks = 0

    def call(self, method: str, path: str, **more: Any) -> Any:
        if path == "/admin/workers/restart":
            return {"restarting": ["worker-1"]}
        self.looks += 1
        return [worker(restarts=1, pid=8) if self.looks > 2 else worker()]


def test_a_restart_is_followed_to_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "AdminClient", Restarting())
    assert workers.main(["restart"]) == 0
    assert capsys.readouterr().out == "restarting worker-1\nworker-1 is back, pid 8\n"


class GivenUp(Restarting):
    """It was given up before, and is tried again a moment after we asked. ends: as what."""

    def __init__(self, before: str, ends: str) -> None:
        super().__init__()
        self.before, self.ends = before, ends

    def call(self, method: str, path: str, **more: Any) -> Any:
        found = super().call(method, path, **more)
        if isinstance(found, dict):
            return found
        if self.looks > 2:
            return [worker(state=self.ends, restarts=11, pid=8)]
        return [worker(state=self.before, restarts=5, pid=None)]


@pytest.mark.parametrize("before", ["running", "given_up"])
def test_one_that_does_not_come_back_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], before: str
) -> None:
    monkeypatch.setattr(workers, "AdminClient", GivenUp(before, "given_up"))
    assert workers.main(["restart", "worker-1"]) == 1
    assert "did not come back" in capsys.readouterr().err


def test_one_that_was_given_up_and_comes_back_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "AdminClient", GivenUp("given_up", "running"))
    assert workers.main(["restart", "worker-1"]) == 0
    assert "worker-1 is back, pid 8" in capsys.readouterr().out


def test_what_the_admin_port_refuses_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "AdminClient", Admin(error="no `yuzui up` runs workers here"))
    assert workers.main(["restart"]) == 1
    assert "no `yuzui up` runs workers here" in capsys.readouterr().err
