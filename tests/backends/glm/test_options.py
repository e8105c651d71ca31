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


COUNTED = {
    "--port": "0 to 65535", "--threads": "0 to 1024", "--queue": "0 to 1000000",
    "--slots": "0 to 100000", "--kv-tokens": "0 to 1000000000",
    "--kept-tokens": "0 to 1000000000", "--step-tokens": "0 to 1000000000",
    "--max-model-len": "2 to 1000000000", "--max-choices": "1 to 1000000",
    "--max-images": "0 to 1000000",
}  # fmt: skip


def mistaken(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is said of a command line that is wrong."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("flag", COUNTED)
@pytest.mark.parametrize(
    "value", ["-1", "1e3", "nan", "inf", "", " 7", "1_0", "٧", "0x10", "7.0", "9" * 400]
)
def test_what_is_no_number_of_the_range_names_flag_and_range(
    flag: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = mistaken([f"{flag}={value}"], capsys)
    assert f"error: argument {flag}: {value[:100]!r}"[:60] in said
    assert said.endswith(f"is not a whole number from {COUNTED[flag]}")


@pytest.mark.parametrize("flag", COUNTED)
def test_both_ends_of_a_range_are_in_it(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    low, high = (int(word) for word in COUNTED[flag].split(" to "))
    for value in (low, high):
        parse_options([flag, str(value)])
    assert str(high + 1) in mistaken([flag, str(high + 1)], capsys)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--host="], "--host: '' is not 1 to 128 characters that can be printed"),
        (["--host", "a\nb"], r"--host: 'a\nb' is not 1 to 128 characters"),
        (["--name="], "--name: ''"),
        (["--name", "x" * 129], "is not 1 to 128 characters"),
        (["--served-name", " "], "--served-name: ' '"),
        (["--served-name", "\udcff"], "is not 1 to 128 characters that can be printed"),
        (["--device", "cuda:x"], "'cuda:x' is unknown; use auto, cpu, cuda or cuda:N"),
        (["--device="], "'' is unknown; use auto, cpu, cuda or cuda:N"),
        (["--dtype", "int3"], "--dtype: invalid choice: 'int3'"),
        (["--model="], "--model: no path is given"),
        (["--port-file", "/nowhere/port"], "'/nowhere/port' is not a file in a folder that exists"),
        (["--port-file", "/"], "'/' is not a file in a folder that exists"),
        (["--adapter-dir", "nowhere"], "--adapter-dir: 'nowhere' is not a folder"),
        (["--adapter", "no-path"], "--adapter: 'no-path' is not NAME=PATH, NAME of 1 to 64"),
        (["--adapter", "a/b=x"], "'a/b=x' is not NAME=PATH"),
        (["--adapter", "a=x", "--adapter", "a=y"], "--adapter: the name 'a' is given twice"),
    ],
)  # fmt: skip
def test_mistakes_exit_with_2_and_name_the_remedy(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in mistaken(argv, capsys)


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


def test_adapters_are_named_with_their_folders(tmp_path: Path) -> None:
    given = ["--adapter", "a=x/y", "--adapter", "b=z", "--adapter-dir", str(tmp_path)]
    options = parse_options(given)
    assert options.adapters == (("a", Path("x/y")), ("b", Path("z")))
    assert options.adapter_dir == tmp_path
