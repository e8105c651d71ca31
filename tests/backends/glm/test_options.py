from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backends.glm.__main__ import main
from backends.glm.nano import CHECKPOINT
from backends.glm.nano import NAME as NANO
from backends.glm.options import NAME_DEFAULT, parse_options


def test_defaults() -> None:
    options = parse_options(["--model", "some/folder"])
    assert options.host == "127.0.0.1"
    assert options.names[0] == NAME_DEFAULT
    assert options.worker in options.names
    assert "folder" in options.names
    assert options.max_model_len is None


def test_without_a_model_the_built_in_one_is_served() -> None:
    options = parse_options([])
    assert options.model == CHECKPOINT
    assert options.names[:2] == (NANO, NAME_DEFAULT)
    assert parse_options(["--served-name", "x"]).names[0] == "x"


def test_names() -> None:
    options = parse_options(
        ["--model", "m", "--name", "gpu1", "--served-name", "a", "--served-name", "b"]
    )
    assert (options.worker, options.names) == ("gpu1", ("a", "b", "gpu1", "m"))


@pytest.mark.parametrize(
    "argv",
    [["--model", "m", "--port", "-1"], ["--model", "m", "--queue", "x"],
     ["--model", "m", "--dtype", "int3"], ["--model", "m", "--max-model-len", "1"]],
)  # fmt: skip
def test_mistakes_exit_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_help_teaches_and_loads_nothing_heavy() -> None:
    """In a process of its own, where nothing has imported torch yet."""
    code = (
        "import sys\n"
        "import backends.glm, backends.glm.__main__ as m\n"
        "try:\n"
        "    m.main(['--help'])\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'aiohttp', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd(), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout
    assert "curl" in done.stdout


def test_the_server_side_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "import backends.glm.worker\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_adapters_are_named_with_their_folders(capsys: pytest.CaptureFixture[str]) -> None:
    options = parse_options(["--adapter", "a=x/y", "--adapter", "b=z", "--adapter-dir", "d"])
    assert options.adapters == (("a", Path("x/y")), ("b", Path("z")))
    assert options.adapter_dir == Path("d")
    with pytest.raises(SystemExit):
        parse_options(["--adapter", "no-path"])
    assert "--adapter" in capsys.readouterr().err
