"""What was loaded by a call is loaded again, and a damaged file stops no worker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends.glm.checkpoint.files import LoadError
from backends.glm.engine.adapters import Adapters
from backends.glm.engine.remembered import FILE_BYTES_MAX, Remembered, load_remembered
from tests.backends.glm.engine.test_adapters import Fake


def read(folder: Path) -> Fake:
    if folder.name == "gone":
        raise LoadError("it is gone")
    return Fake(folder.name)


def test_the_next_start_of_the_same_worker_has_them(tmp_path: Path) -> None:
    kept = Remembered(tmp_path, "w1")
    kept.add("faq", "shop")
    kept.add("other", "x/y")
    kept.drop("other")
    kept.drop("never")
    assert Remembered(tmp_path, "w1").read() == {"faq": "shop"}
    assert Remembered(tmp_path, "w2").read() == {}
    assert [file.name for file in tmp_path.iterdir()] == [".loaded-w1.json"]  # nothing half-written


def test_what_was_there_stays_when_more_is_added_after_a_restart(tmp_path: Path) -> None:
    Remembered(tmp_path, "w1").add("faq", "shop")
    again = Remembered(tmp_path, "w1")
    load_remembered(Adapters(read, tmp_path), again, lambda *_: None)
    again.add("more", "b")
    assert Remembered(tmp_path, "w1").read() == {"faq": "shop", "more": "b"}


def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    assert Remembered(tmp_path, "../../etc/x").file.parent == tmp_path


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a":1}', b"x" * (FILE_BYTES_MAX + 1)])
def test_a_file_that_cannot_be_read_is_no_file(tmp_path: Path, content: bytes) -> None:
    kept = Remembered(tmp_path, "w1")
    kept.file.write_bytes(content)
    assert kept.read() == {}


def test_one_that_cannot_be_loaded_is_told_and_the_others_are(tmp_path: Path) -> None:
    wanted = {"a": "shop", "b": "gone", "out": "../secret", "taken": "x", "no name!": "y"}
    kept = Remembered(tmp_path, "w1")
    kept.file.write_text(json.dumps(wanted))
    adapters = Adapters(read, tmp_path)
    adapters.add("taken", Fake("the command line's"))
    told: dict[str, str] = {}
    load_remembered(adapters, kept, told.__setitem__)
    assert set(adapters.loaded) == {"a", "taken"}
    assert adapters.loaded["taken"] == Fake("the command line's")
    assert set(told) == {"b", "out", "no name!"}
    assert "it is gone" in told["b"]
    assert "inside" in told["out"]
