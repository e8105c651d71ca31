"""Every command as somebody meets it who does not know it: nothing runs, or what is given is wrong.

Whatever goes wrong is one line that begins with the command's name: no traceback, and 1 for what
failed, 2 for what was asked wrongly.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import cli
from tests.gateway.commands.kit import alone
from tests.ports import free_port

ASKS_A_GATEWAY = [
    "workers list", "workers restart", "budget list", "budget audit",
    "budget set backend:cloud --limit-cny 5", "budget raise backend:cloud --by-cny 1",
    "budget freeze backend:cloud", "budget unfreeze backend:cloud", "budget reset backend:cloud",
    "budget remove backend:cloud", "report", "report --drift", "report --utilisation", "row yz-1",
    "tco", "archive export", "archive export -o x.csv", "explain",
    "reconcile --emulator http://127.0.0.1:9 --day 2026-11-22",
]  # fmt: skip
ASKS_REDIS = [
    "archive status",
    "archive run --once",
    "archive compact",
    "archive forget --tenant a",
]
WRONG = [
    "token issue --tenant a --ttl soon", "token issue --tenant a --model=",
    "budget set backend:cloud --limit-cny lots", "budget raise backend:cloud --by-cny -1",
    "budget set backend:cloud --limit-cny 1 --soft 80", "budget freeze backend:cloud --by=",
    "report --until 0001-01-01", "report --since 9999-12-31", "reconcile --day 9999-12-31",
    "tco --wait-s nan", "tco --wait-s -1", "worker --port 99999", "ark-emulator --port 99999",
    "report --since soon", "report --until=",
    "report --since 2026-11-02 --until 2026-11-01", "tco --slots 0", "tco --slots -1",
    "archive export -o x.doc", "archive export --since soon", "archive query=", "archive forget",
    "archive forget --tenant= --yes", "explain --image big", "explain --deadline-ms 0",
    "explain --output-tokens -5", "reconcile --day soon", "prices diff a b",
    "prices show doubao-seed-2-1-lite --at then", "serve --config nowhere.yaml", "serve",
    "up --config nowhere.yaml", "worker --nonsense", "announce", "ark-emulator --port x",
]  # fmt: skip


def run(argv: str) -> int:
    words = ["archive", "query", " "] if argv == "archive query=" else argv.split()
    try:
        return cli.main(words)
    except SystemExit as ended:  # argparse has said it
        return int(str(ended.code))


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone(monkeypatch, tmp_path)
    monkeypatch.setenv("YUZUI_ADMIN_PORT", str(free_port()))
    monkeypatch.setattr(sys, "argv", ["yuzui"])


@pytest.mark.parametrize("argv", ASKS_A_GATEWAY)
def test_no_gateway_runs(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"yuzui {argv.split()[0]}: no gateway answers at http://127.0.0.1:")
    assert "is `yuzui up` running in this folder?" in said.err
    assert not said.out


@pytest.mark.parametrize("argv", ASKS_REDIS)
def test_no_redis_is_named_or_it_is_not_there(
    argv: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(argv) == 1
    said = capsys.readouterr()
    assert said.err.startswith("yuzui archive: no books are named and none run here")
    assert not said.out, "nobody is asked to confirm what cannot be done"
    port = free_port()
    monkeypatch.setenv("YUZUI_REDIS_URL", f"redis://:secret@127.0.0.1:{port}/3")
    assert run(f"{argv} --yes" if "forget" in argv else argv) == 1
    said = capsys.readouterr()
    assert said.err.startswith(f"yuzui archive: Redis at 127.0.0.1:{port}/3 cannot be used")
    assert "secret" not in said.err


@pytest.mark.parametrize("argv", WRONG)
def test_what_is_asked_wrongly_is_code_2(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(argv) == 2
    said = capsys.readouterr()
    assert f"yuzui {argv.split()[0]}" in said.err
    assert not said.out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("budget set backend:cloud --limit-cny lots", "--limit-cny: 'lots' is not an amount"),
        ("budget raise backend:cloud --by-cny nan", "--by-cny: 'nan' is not an amount"),
        ("budget set backend:cloud --limit-cny 1 --alert-at x", "--alert-at: 'x' is not a whole"),
        ("budget set backend:cloud --limit-cny 1 --soft x:cheaper", "--soft: 'x' is not a whole"),
        ("token issue --tenant a/b", "tenant 'a/b' is not a name"),
        ("token issue --tenant a --org=", "org '' is not a name"),
        ("token issue --tenant a --budget x", "budget 'x' is not a scope"),
        ("report --since 0001-01-01", "--since '0001-01-01' is not a day from 1971 to 9998"),
    ],
)
def test_what_is_wrong_names_its_flag(
    argv: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("argv", [*ASKS_A_GATEWAY[:-1], "token issue --tenant a"])
def test_a_data_folder_that_cannot_be_used(
    argv: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("YUZUI_DATA_DIR", str(tmp_path / "file"))
    assert run(argv) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"yuzui {argv.split()[0]}: the data folder {tmp_path / 'file'} cannot")
    assert said.count("\n") == 1


@pytest.mark.parametrize("host", ["a b", "a..b", "http://h", "[::1]", "x" * 64, " "])
@pytest.mark.parametrize("argv", ["report", "serve", "up"])
def test_an_address_that_is_none(
    argv: str, host: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YUZUI_ADMIN_HOST", host)
    assert run(argv) == 2
    said = capsys.readouterr().err
    assert f"YUZUI_ADMIN_HOST: admin_host: {host!r} is not allowed; expected an address" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [("redis://127.0.0.1:9/abc", "its database by number"), ("redis://a..b/0", "is no name"),
     ("redis://h?x=1", "unknown option in the Redis URL: x")],
)  # fmt: skip
@pytest.mark.parametrize("argv", ["serve", "archive status", "announce --url http://127.0.0.1:9"])
def test_books_at_no_address(
    argv: str, url: str, said: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("YUZUI_REDIS_URL", url)
    monkeypatch.setenv("YUZUI_AUTH_SECRET", "a" * 32)
    monkeypatch.setenv("YUZUI_WORKERS", "http://127.0.0.1:9")
    assert run(argv) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["prices", "show", "doubao-seed-2-1-lite-260915"]])
def test_a_reader_that_has_seen_enough_is_no_failure(argv: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "gateway.cli", *argv]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_full_disk_is_told_in_a_line() -> None:
    command = [sys.executable, "-m", "gateway.cli", "prices", "check"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (
        1, "yuzui prices: [Errno 28] No space left on device\n",
    )  # fmt: skip
