"""Which adapters are loaded, and that none comes from outside of its folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.glm.checkpoint.files import LoadError
from backends.glm.engine.adapters import ADAPTERS_MAX, Adapters, load_named, parse_named
from backends.glm.errors import WorkerError
from tests.backends.glm.conftest import no_adapter

NAMES = ("glm", "alias")


class Fake(NamedTuple):
    key: str
    rank: int = 8


def _code(error: pytest.ExceptionInfo[WorkerError]) -> tuple[int, str | None]:
    body = error.value.body()["error"]
    return error.value.status, body["param"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "adapters"
    (made / "faq").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (made / "link").symlink_to(tmp_path / "secret")
    return made


@pytest.fixture
def adapters(folder: Path) -> Adapters:
    return Adapters(no_adapter, folder)


def test_a_model_name_is_the_base_or_one_of_its_adapters(adapters: Adapters) -> None:
    faq = Fake("1")
    adapters.add("faq", faq)
    assert adapters.served(NAMES) == ("glm", "alias", "glm:faq", "alias:faq")
    assert adapters.find("glm", NAMES) is adapters.find("alias", NAMES) is None
    assert adapters.find("glm:faq", NAMES) is adapters.find("alias:faq", NAMES) is faq
    for unknown in ("glm:other", "other:faq", "faq", ":faq", "glm:", "glm:faq:faq", ""):
        with pytest.raises(WorkerError) as error:
            adapters.find(unknown, NAMES)
        assert _code(error) == (404, "model")


def test_one_that_was_unloaded_is_not_the_base(adapters: Adapters) -> None:
    adapters.add("faq", Fake("1"))
    adapters.remove("faq")
    with pytest.raises(WorkerError) as error:
        adapters.find("glm:faq", NAMES)
    assert _code(error) == (404, "model")
    with pytest.raises(WorkerError) as error:
        adapters.remove("faq")
    assert _code(error) == (404, "lora_name")


def test_a_path_inside_the_folder_is_taken(adapters: Adapters, folder: Path) -> None:
    assert adapters.check("faq", "faq") == folder / "faq"
    assert adapters.check("faq", "./x/../faq") == folder / "faq"
    assert adapters.check("faq", str(folder / "faq")) == folder / "faq"  # vLLM's callers send these


@pytest.mark.parametrize(
    "path",
    ["..", "../secret", "", ".", "/", "/etc", "link", "link/x", "faq/../..", "faq\0", "~/x/../.."],
)
def test_a_path_that_leads_out_is_refused(adapters: Adapters, path: str) -> None:
    with pytest.raises(WorkerError) as error:
        adapters.check("faq", path)
    assert _code(error) == (400, "lora_path")


@given(path=st.text(st.sampled_from("./\\~a\0 %2e"), max_size=20))
def test_whatever_is_sent_stays_inside(path: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "root"
    try:
        found = Adapters(no_adapter, root).check("faq", path)
    except WorkerError:
        return
    assert root.resolve() in found.resolve().parents


@pytest.mark.parametrize("name", ["", "a:b", "a/b", ".hidden", "-x", "a b", "x" * 65, "ä"])
def test_a_name_that_could_be_mistaken_is_refused(adapters: Adapters, name: str) -> None:
    with pytest.raises(WorkerError) as error:
        adapters.check(name, "faq")
    assert _code(error) == (400, "lora_name")


def test_a_taken_name_and_a_full_house_are_refused(adapters: Adapters) -> None:
    adapters.add("faq", Fake("1"))
    with pytest.raises(WorkerError, match="loaded already"):
        adapters.check("faq", "faq")
    for number in range(ADAPTERS_MAX - 1):
        adapters.add(f"n{number}", Fake(str(number)))
    with pytest.raises(WorkerError, match="unload one"):
        adapters.check("more", "faq")


def test_without_a_folder_nothing_is_loaded() -> None:
    with pytest.raises(WorkerError, match="--adapter-dir") as error:
        Adapters(no_adapter, None).check("faq", "faq")
    assert error.value.status == 403


def test_the_command_line_names_adapters() -> None:
    assert parse_named("faq=some/folder=x") == ("faq", Path("some/folder=x"))
    for wrong in ("faq", "=x", "faq=", "a:b=x"):
        with pytest.raises(ValueError, match=r".*"):
            parse_named(wrong)


def test_one_that_cannot_be_loaded_at_start_is_named() -> None:
    def read(path: Path) -> Fake:
        if path.name == "bad":
            raise LoadError("no weights")
        return Fake(path.name)

    adapters = Adapters(read, None)
    with pytest.raises(LoadError, match="--adapter b=bad: no weights"):
        load_named(adapters, [("a", Path("good")), ("b", Path("bad"))])
    assert list(adapters.loaded) == ["a"]
