from __future__ import annotations

import subprocess
import sys

import pytest

from gateway import cli


def _run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_lists_every_command() -> None:
    done = _run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name, (_, text) in cli.COMMANDS.items():
        assert name in done.stdout
        assert text in done.stdout


@pytest.mark.parametrize("argument", ["\udcff", "--tenant=\udce9", "a\0b"])
@pytest.mark.parametrize("command", ["row", "report", "token", "worker"])
def test_an_argument_that_is_no_text_is_refused_by_name(
    command: str, argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell passes on any bytes; those that are not UTF-8 come as lone surrogates."""
    assert cli.main([command, argument]) == 2
    said = capsys.readouterr().err
    assert said == f"yuzui {command}: the argument {argument!r} is no text in UTF-8\n"


def test_bytes_on_a_real_command_line_end_in_a_line() -> None:
    command = [sys.executable, "-m", "gateway.cli", "row", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"yuzui row: the argument 'caf")
    assert done.stderr.count(b"\n") == 1


def test_every_command_explains_itself() -> None:
    """In one fresh process, as a newcomer would ask them one after the other."""
    code = (
        "from gateway import cli\n"
        "for name in cli.COMMANDS:\n"
        "    try:\n"
        "        code = cli.main([name, '--help'])\n"
        "    except SystemExit as ended:\n"
        "        code = ended.code\n"
        "    print('END', name, code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stderr == ""
    said = done.stdout.split("END ")
    for name in cli.COMMANDS:
        assert f"END {name} 0\n" in done.stdout
        assert any(text.count("\n") > 3 and f"usage: yuzui {name}" in text for text in said), name


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "usage: yuzui COMMAND" in capsys.readouterr().out


def test_a_command_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fly"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("yuzui: there is no command 'fly'\n")
    assert not captured.out


def test_ctrl_c_ends_with_the_code_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["yuzui"])
    monkeypatch.setattr("gateway.commands.token.main", interrupted)
    assert cli.main(["token"]) == 130
