"""`yuzui worker`: whose option is whose."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pytest

from backends.glm import options as glm_options
from backends.glm.options import parse_options
from gateway.commands import worker
from gateway.commands.worker import announcement_parser


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that the worker was given."""
    given: list[list[str]] = []

    def main(argv: Sequence[str]) -> int:
        given.append(list(argv))
        return 0

    monkeypatch.setattr(worker, "worker_main", main)
    return given


def test_no_option_is_the_workers_and_the_announcements() -> None:
    ours, theirs = flags_of(announcement_parser()), flags_of(glm_options._parser())
    assert "--slots" in theirs
    assert "--announce" in ours
    assert not ours & theirs


def test_the_workers_options_reach_the_worker(ran: list[list[str]]) -> None:
    line = ["--slots", "3", "--port", "0", "--name", "w9"]
    assert worker.main(line) == 0
    assert ran == [line]
    assert parse_options(ran[0]).capacity.slots == 3


def test_an_announcement_option_without_an_announcement_is_a_mistake(
    ran: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Dropped silently, a worker for public requests would be one for all of them."""
    with pytest.raises(SystemExit) as caught:
        worker.main(["--label", "public", "--slots", "3"])
    assert caught.value.code == 2
    assert "--label says what is announced: add --announce URL" in capsys.readouterr().err
    assert ran == []


def test_help_names_both(ran: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    worker.main(["--help"])
    assert "--announce URL" in capsys.readouterr().out
    assert ran == [["--help"]]
