from __future__ import annotations

import subprocess
import sys

import pytest

from gateway.archive.extra import ExtraMissing, installed, load

WITHOUT = """
import sys
for name in ("pyarrow", "duckdb", "fsspec", "resvg_py"):
    sys.modules[name] = None  # what an import of it then says: ModuleNotFoundError
sys.argv = ["yuzui", *{argv!r}]
from gateway.cli import main
sys.exit(main())
"""


def test_what_is_installed_is_loaded() -> None:
    assert installed()
    assert load("gateway.archive.files").Files


def test_a_module_of_ours_that_is_missing_is_a_bug_and_not_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"gateway\.archive\.nowhere"):
        load("gateway.archive.nowhere")


def test_without_the_extra_a_command_says_how_to_install_it(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(argv=["archive", "run", "--once"])],
        capture_output=True, text=True, timeout=60, env={"YUZUI_REDIS_URL": valkey_url},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("yuzui archive: this needs ")
    assert "pip install 'yuzui[archive]'" in done.stderr
    monkeypatch.setitem(sys.modules, "duckdb", None)
    monkeypatch.delitem(sys.modules, "gateway.archive.query", raising=False)
    with pytest.raises(ExtraMissing, match="duckdb"):
        load("gateway.archive.query")
