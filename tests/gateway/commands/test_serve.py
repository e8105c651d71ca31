"""Which settings `yuzui serve` begins with, and what it says to the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway import cli, logs
from tests.gateway.commands.kit import alone
from tests.ports import free_port

SETTINGS = """
auth: {{secret: "a secret of 32 bytes or more, yes it is"}}
redis_url: redis://127.0.0.1:{nobody}
{who}
"""


@pytest.fixture(autouse=True)
def others_keep_their_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What serve sets up is this process's, and would stay so for the tests after these."""
    monkeypatch.setattr(logs, "setup", lambda *_, **__: None)


def serve(folder: Path, who: str) -> int:
    path = folder / "yuzui.yaml"
    path.write_text(SETTINGS.format(nobody=free_port(), who=who))
    return cli.main(["serve", "--config", str(path)])


@pytest.mark.parametrize(
    "who",
    [
        "workers: [http://127.0.0.1:9001]",
        "pool: {workers: [{url: 'http://127.0.0.1:9001'}]}",
        "pool: {dns: [{url: 'http://localhost:9001'}]}",
        "pool: {heartbeats: true}",
        "ark: {api_key: k}",
    ],
)
def test_any_way_to_an_answer_is_enough(
    who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone(monkeypatch, tmp_path)
    assert serve(tmp_path, who) == 1, "it has begun, and found no books"
    assert "nothing could answer" not in capsys.readouterr().err


def test_without_any_it_names_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone(monkeypatch, tmp_path)
    assert serve(tmp_path, "") == 2
    said = capsys.readouterr().err
    for name in ("YUZUI_WORKERS", "pool.workers", "pool.dns", "pool.heartbeats", "ARK_API_KEY"):
        assert name in said
