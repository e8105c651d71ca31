"""What importing does: every module can be, and the gateway brings nothing heavy along."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import PurePosixPath

import pytest

from tests.arch.code import PACKAGES, ROOT, sources
from tests.arch.rules import ROOMS

# What a process that only serves must not have in memory: torch alone is 200 MB.
HEAVY = (
    "torch", "transformers", "tokenizers", "numpy", "volcenginesdkarkruntime", "openai",
    "volcenginesdkcore", "volcenginesdkbilling",
    "pyarrow", "duckdb", "fsspec", "resvg_py",
)  # fmt: skip

# Commands of the developer's and newcomer's machine, where the worker is installed anyway.
AND_WORKER = {
    "gateway.commands.demo": "draws the pictures of its tour with the generator of nano",
    "gateway.commands.tour": "the same",
}
# What only the archive's own commands load, through gateway.archive.extra.
WITH_EXTRA = {
    "gateway.archive.files": "Parquet",
    "gateway.archive.query": "DuckDB",
    "gateway.archive.tidy": "Parquet",
    "gateway.archive.archiver": "writes Parquet",
}


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    return done.stdout


def _imports(modules: list[str]) -> list[str]:
    """Import each module in a fresh process; which modules are then in memory."""
    return list(
        json.loads(
            _python(
                "import importlib, json, sys\n"
                f"for name in {modules!r}:\n"
                "    try:\n"
                "        importlib.import_module(name)\n"
                "    except BaseException as error:\n"
                "        raise SystemExit(f'{name}: {type(error).__name__}: {error}')\n"
                "print(json.dumps(sorted(sys.modules)))"
            )
        )
    )


@pytest.mark.parametrize("package", ["policies", "backends", "gateway"])
def test_every_module_can_be_imported(package: str) -> None:
    modules = [source.module for source in sources(package)]
    assert set(modules) <= set(_imports(modules))


def test_each_gateway_module_can_be_the_first_one_imported() -> None:
    """A cycle shows only when the wrong one of two modules is imported first."""
    modules = [source.module for source in sources("gateway", "policies")]
    _python(
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    for known in [m for m in sys.modules if m.split('.')[0] in "
        "('gateway', 'policies', 'backends')]:\n"
        "        del sys.modules[known]\n"
        "    importlib.import_module(name)\n"
    )


def test_the_gateway_brings_neither_torch_nor_the_vendor_sdk() -> None:
    modules = [s.module for s in sources("gateway", "policies")]
    modules = [name for name in modules if name not in AND_WORKER and name not in WITH_EXTRA]
    modules += [
        source.module
        for source in sources("backends")
        if not source.module.startswith(
            ("backends.glm.", "backends.ark.emulator", "backends.ark.control")
        )
    ]
    loaded = {name.split(".")[0] for name in _imports(modules)}
    assert loaded.isdisjoint(HEAVY)


def test_of_the_worker_only_the_model_brings_torch() -> None:
    light = ROOMS["backends.glm"].rooms
    light = light[: light.index("model")]
    modules = [
        source.module
        for source in sources("backends")
        if source.module.startswith(tuple(f"backends.glm.{room}" for room in light))
    ]
    assert "backends.glm.engine.engine" in modules
    loaded = _imports([*modules, "backends.glm.options", "backends.glm.worker"])
    assert {name.split(".")[0] for name in loaded}.isdisjoint(("torch", "transformers"))


def test_that_test_can_see_a_heavy_module() -> None:
    assert "numpy" in _imports(["numpy", "json"])


# ------------------------------------------------------------------ where tests stand


def misplaced(tests: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Tests that stand in no package's place, or bear the name of a module that stands elsewhere.

    tests, modules: paths from the root, as "tests/gateway/ledger/test_rows.py" and
    "gateway/ledger/rows.py".
    """
    there = {PurePosixPath(module) for module in modules}
    folders = {module.parent for module in there}
    found = []
    for test in tests:
        place = PurePosixPath(test).relative_to("tests")
        module = place.with_name(place.name.removeprefix("test_"))
        others = {m for m in there if m.name == module.name and m.parts[0] == module.parts[0]}
        if place.parent not in folders or (others and module not in others):
            found.append(test)
    return found


def test_a_test_stands_where_its_module_stands() -> None:
    tests = [
        file.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for file in (ROOT / "tests" / package).rglob("test_*.py")
    ]
    assert len(tests) > 100
    assert misplaced(tests, [source.path for source in sources()]) == []


def test_that_test_can_see_a_test_that_stayed_behind() -> None:
    modules = ["gateway/ledger/rows.py", "gateway/serve.py", "policies/price.py"]
    moved = "tests/gateway/test_rows.py"
    nowhere = "tests/gateway/archive/test_flow.py"
    fine = ["tests/gateway/ledger/test_rows.py", "tests/gateway/test_flow.py"]
    fine += ["tests/gateway/test_price.py"]  # of another package, and its own matter here
    assert misplaced([moved, nowhere, *fine], modules) == [moved, nowhere]


@pytest.mark.parametrize("package", ROOMS)
def test_the_order_of_the_rooms_names_every_room(package: str) -> None:
    folder = ROOT / package.replace(".", "/")
    rooms = {file.parent.name for file in folder.glob("*/__init__.py")}
    assert sorted(ROOMS[package].rooms) == sorted(rooms)
