from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.commands import explain
from policies.types import Sensitivity, SoftLimit, Steer
from tests.gateway.commands.kit import Admin, alone
from tests.policies.builders import budget, cloud, decide, facts, full, snapshot, worker


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone(monkeypatch, tmp_path)


def explained(monkeypatch: pytest.MonkeyPatch, admin: Admin, *argv: str) -> int:
    monkeypatch.setattr(explain, "AdminClient", admin)
    return explain.main(argv)


def test_a_plan_as_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decision = decide(facts(), snapshot(worker(), clouds=(cloud("big"),)))
    assert explained(monkeypatch, Admin(decision)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "label     internal (from header)",
        "route     local:w1",
        "reason    local_fits",
        "",
        "target     verdict  first token ms  finish ms   hold CNY",
        "---------  -------  --------------  ---------  ---------",
        "local:w1   chosen               70       2070  0.0060301",
        "cloud:big  next                500       2167     0.0102",
    ]


def test_budgets_that_steer_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    soft = (SoftLimit(at_percent=50, steer=Steer.CHEAPER),)
    near = replace(budget("tenant:acme", limit=10**12, posted=6 * 10**11), soft=soft, period="day")
    world = snapshot(clouds=(cloud("big"), cloud("small")), budgets=(near,))
    assert explained(monkeypatch, Admin(decide(facts(), world))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "route     cloud:small"
    assert lines[3] == ("budget    tenant:acme (day) is at its soft limit, 60 % used: cheaper")


def test_a_refusal_as_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decision = decide(facts(level=Sensitivity.SENSITIVE), snapshot(full()))
    assert explained(monkeypatch, Admin(decision)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "label     sensitive (from header)"
    assert lines[1].startswith("refused   sensitive_local_unavailable: the request must stay")
    assert lines[-1].split() == ["local:w1", "full", "-", "-", "-"]


def test_the_whole_decision_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decision = decide(facts(), snapshot(worker()))
    assert explained(monkeypatch, Admin(decision), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["why"]["reason"] == "local_fits"
    assert found["attempts"][0]["target"] == "w1"


def test_what_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Admin(decide(facts(), snapshot(worker())))
    argv = ["--model", "cloud/glm", "--sensitivity", "public", "--prompt", "hello", "--tenant", "b"]
    argv += ["--image", "1280x720", "--image", "640X480", "--output-tokens", "9"]
    assert explained(monkeypatch, admin, *argv, "--deadline-ms", "500", "--slo", "batch") == 0
    assert admin.asked == [
        (
            "POST",
            "/admin/explain",
            {
                "model": "cloud/glm",
                "tenant": "b",
                "sensitivity": "public",
                "prompt": "hello",
                "images": [(1280, 720), (640, 480)],
                "output_tokens": 9,
                "deadline_ms": 500,
                "slo": "batch",
            },
        )
    ]


@pytest.mark.parametrize("size", ["1280", "x", "1280x", "x720", "-1x5", "0x5", "5x0", "1x2x3",
                                  "²x²", "１x１", "1_0x1", "12345678x1", ""])  # fmt: skip
def test_a_size_that_is_none(
    monkeypatch: pytest.MonkeyPatch, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    admin = Admin()
    assert explained(monkeypatch, admin, f"--image={size}") == 2
    assert f"--image {size!r} is not a size such as 1280x720" in capsys.readouterr().err
    assert not admin.asked
