from __future__ import annotations

import time
from pathlib import Path

import jwt
import pytest

from gateway.commands import token
from tests.gateway.commands.kit import alone


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone(monkeypatch, tmp_path)


def claims(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """What the printed token says. That it is good is for the tests of keys and auth."""
    printed = capsys.readouterr().out.strip()
    return dict(jwt.decode(printed, options={"verify_signature": False}))


def test_a_token_with_everything(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["issue", "--tenant", "acme", "--subject", "app", "--org", "group", "--ttl", "12h"]
    argv += ["--model", "glm-4.6v", "--budget", "label:trial", "--sensitivity", "sensitive"]
    assert token.main([*argv, "--slo", "batch"]) == 0
    found = claims(capsys)
    wanted = {
        "tenant": "acme", "sub": "app", "org": "group", "models": ["glm-4.6v"],
        "budgets": ["label:trial"], "sensitivity": "sensitive",
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert "batch" in found.values()


def test_a_plain_token_is_good_for_a_month(capsys: pytest.CaptureFixture[str]) -> None:
    assert token.main(["issue", "--tenant", "acme"]) == 0
    found = claims(capsys)
    assert found["sub"] == "cli"
    assert abs(float(str(found["exp"])) - time.time() - 30 * 86_400) < 3_600
    assert "models" not in found


def test_all_tokens_of_a_folder_are_signed_with_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kids = set()
    for _ in range(2):
        assert token.main(["issue", "--tenant", "acme"]) == 0
        kids.add(jwt.get_unverified_header(capsys.readouterr().out.strip())["kid"])
    assert len(kids) == 1
    assert (tmp_path / ".yuzui").stat().st_mode & 0o077 == 0, "the key is its owner's alone"


@pytest.mark.parametrize(
    ("text", "seconds"), [("3600s", 3_600), ("5m", 300), ("12h", 43_200), ("30d", 2_592_000)]
)
def test_a_time(text: str, seconds: int) -> None:
    assert token._seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "30", "1.5h", "-1h", "1 h", "h1", "1w", "²d", "１d", "1_0d", "9" * 30 + "d"]
)
def test_a_time_that_is_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert token.main(["issue", "--tenant", "acme", f"--ttl={text}"]) == 2
    assert f"--ttl {text!r} is not a time such as" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [["--tenant", "a b"], ["--tenant", "acme", "--ttl", "0s"], ["--tenant", "acme", "--ttl",
     "999999999d"], ["--tenant", "acme", "--budget", "nonsense"]],
    ids=lambda argv: argv[-1],
)  # fmt: skip
def test_claims_that_would_be_refused_later_are_refused_now(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert token.main(["issue", *argv]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("yuzui token: ")
    assert not captured.out
