"""The emulator as a process, and its settings."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from backends.ark.emulator.__main__ import _flags, _parser, main
from backends.ark.emulator.settings import KeyRow, SettingsError, load
from tests.backends.ark.kit import KEY, post


async def test_it_starts_says_where_and_stops() -> None:
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "backends.ark.emulator", "--port", "0", "--first-ms", "0",
         "--token-ms", "0", "--api-key", KEY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[4],
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            url = msgspec.json.decode(process.stdout.readline())["listening"]
            assert url.startswith("http://127.0.0.1:")
            assert (await post(url))[0] == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert KEY.encode() not in process.stderr.read()
        finally:
            process.kill()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "X-Emulator-Inject" in text
    assert "made up" in text


def test_a_wrong_setting_names_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "emulator.yaml"
    file.write_text("latency: {token_sm: 3}\n")
    assert main(["--config", str(file)]) == 2
    assert "token_sm" in capsys.readouterr().err
    assert main(["--first-ms", "soon"]) == 2
    assert main(["--config", str(tmp_path / "missing.yaml")]) == 2


def test_flags_count_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "emulator.yaml"
    file.write_text("seed: 3\nlatency: {token_ms: 3, first_ms_min: 1, first_ms_max: 1}\n")
    settings = load(str(file), {"latency": {"token_ms": 5.0}})
    assert (settings.seed, settings.latency.token_ms, settings.latency.first_ms_min) == (3, 5.0, 1)


def test_flags_of_the_bill() -> None:
    given = vars(_parser().parse_args(["--bill-delay-s", "5", "--bill-faults", "0.04"]))
    del given["config"]
    billing = load(None, _flags(given)).billing
    assert (billing.delay_s, billing.split_delay_s, billing.usage_delay_s) == (5.0, 5.0, 5.0)
    faults = billing.faults
    assert faults.missing == faults.changed == faults.doubled == faults.foreign == 0.01


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "chunk_tokens: 0",
        "latency: {first_ms_min: 9, first_ms_max: 1}",
        "models: {mine: glm-9}",
        "faults: [{fault: {code: X}}]",
        "a: {b",
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, text: str) -> None:
    file = tmp_path / "emulator.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError):
        load(str(file), {})


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--port 65536", "port: expected int <= 65535"),
        ("--port=-1", "port: expected int >= 0"),
        ("--host a..b --port 0", "--host 'a..b' is not known: set --host"),
        ("--rpm=-1", "limits.*.rpm: expected int >= 0"),
        ("--concurrency 0", "concurrency: expected int >= 1"),
        ("--token-ms nan", "latency.token_ms: expected float >= 0.0"),
        ("--token-ms inf", "latency.token_ms: expected float <= 86400000.0"),
        ("--first-ms 1:nan", "latency.first_ms_max: expected float >= 0.0"),
        ("--first-ms 5:1", "latency.first_ms_min is larger"),
        ("--answer-tokens 0", "answer_tokens: expected int >= 1"),
        ("--bill-delay-s inf", "billing.delay_s: expected float <= 31536000.0"),
        ("--bill-faults nan", "billing.faults.missing: expected float >= 0.0"),
        ("--config /", "--config /: Is a directory"),
        ("--config /dev/zero", "--config /dev/zero: "),
        ("--config {latin}", "is not UTF-8"),
        ("--config {dates}", "month must be in 1..12"),
    ],
)
def test_wrong_arguments_name_themselves(
    argv: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin").write_bytes(b"host: \xe9\n")
    (tmp_path / "dates").write_text("seed: 2026-99-99\n")
    files = {name: str(tmp_path / name) for name in ("latin", "dates")}
    assert main(argv.format(**files).split()) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_port_in_use_is_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    assert f"port {port} of 127.0.0.1 is in use" in capsys.readouterr().err


def test_a_key_does_not_print_itself() -> None:
    assert KEY not in repr(KeyRow(key=KEY))
