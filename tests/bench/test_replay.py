from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import replay

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Two requests a second for ten seconds, and a burst that one worker cannot take."""
    rows = [
        f"2023-11-16 18:15:{n // 2:02d}.{5 * (n % 2)}000000,{50 + n},{20 + n}" for n in range(20)
    ]
    rows += [f"2023-11-16 18:15:10.{n:02d}00000,80,60" for n in range(20)]
    file = tmp_path / "trace.csv"
    file.write_text(HEAD + "\n".join(rows) + "\n")
    return file


def test_a_trace_is_read_as_it_came(trace: Path) -> None:
    found = replay.read_trace(trace, rows=3, offset=1)
    assert [(one.at_s, one.prompt, one.output) for one in found] == [
        (0.0, 51, 21), (0.5, 52, 22), (1.0, 53, 23),
    ]  # fmt: skip
    assert len(replay.read_trace(trace, rows=99)) == 40


@pytest.mark.slow
def test_a_short_replay_adds_up(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real processes, from the first request to the page."""
    out = tmp_path / "out"
    argv = ["--trace", str(trace), "--rows", "40", "--scale", "10", "--slots", "2"]
    assert replay.main([*argv, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    found = json.loads(said.splitlines()[-1])
    assert found["answered"] == found["requests"] == found["rows_archived"] == 40
    assert (found["drift_nano"], found["lost_rows"], found["rows_hot"]) == (0, 0, 0)
    assert "yuzui report --by backend" in said
    assert "cloud:doubao" in said, "nothing overflowed, so one side was not shown"
    assert "local:w1" in said
    for name in ("tco.en.html", "tco.zh.html"):
        assert (out / name).stat().st_size > 10_000


def test_without_a_trace_it_says_where_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        replay.main(["--trace", "nowhere.csv"])
    assert "AzurePublicDataset" in capsys.readouterr().err
