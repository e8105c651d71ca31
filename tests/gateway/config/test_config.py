from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Timeouts
from gateway.config import CONFIG_VARIABLE, ENVIRONMENT, Config, ConfigError, Secret
from gateway.config.read import from_yaml
from gateway.config.schema import LocalCostConfig
from policies.types import Sensitivity

DOCUMENTED = """\
YUZUI_PORT YUZUI_ADMIN_PORT YUZUI_HOST YUZUI_DATA_DIR YUZUI_REDIS_URL YUZUI_WORKERS
YUZUI_LOCAL_WORKERS YUZUI_MODEL YUZUI_ARK_BASE_URL ARK_API_KEY YUZUI_GATEWAYS YUZUI_STRICT
""".split()


def load(
    tmp_path: Path, text: str = "", environ: dict[str, str] | None = None, **overrides: object
) -> Config:
    file = tmp_path / "yuzui.yaml"
    file.write_text(text, encoding="utf-8")
    return Config.load(file, environ or {}, overrides)


def problem(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, environ)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_without_a_file_the_defaults_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config.load(environ={})
    assert (config.port, config.admin_port, config.host) == (8080, 8081, "127.0.0.1")
    assert config.data_dir == Path(".yuzui")
    assert config.redis_url is None
    assert config.starts_workers == 1
    assert not config.ark.enabled
    assert not config.auth.configured
    assert config.models["glm-4.6v"].aliases == ("glm-4.6v-flash",)
    assert config.models["glm-4.6v"].cloud == ("doubao-seed-2-1-lite-260915",)
    assert isinstance(config.limits.cloud, Timeouts)
    assert config == load(tmp_path)


def test_every_documented_variable_is_read_and_each_is_also_a_key() -> None:
    assert set(DOCUMENTED) <= set(ENVIRONMENT)
    for key in ENVIRONMENT.values():
        value: object = Config()
        for part in key.split("."):
            value = getattr(value, part)


def test_later_wins(tmp_path: Path) -> None:
    text = "port: 1001\nadmin_port: 1002\nhost: a\n"
    config = load(tmp_path, text, {"YUZUI_PORT": "2001", "YUZUI_HOST": ""}, port=3001)
    assert (config.port, config.admin_port, config.host) == (3001, 1002, "a")


def test_the_environment_in_full(tmp_path: Path) -> None:
    environ = {
        "YUZUI_PORT": "0",
        "YUZUI_REDIS_URL": "redis://:hunter2@10.0.0.9:6379/1",
        "YUZUI_WORKERS": "http://10.0.0.1:8000, http://gpu-2:8000",
        "YUZUI_MODEL": "models/flash",
        "YUZUI_STRICT": "true",
        "YUZUI_ARK_BASE_URL": "http://127.0.0.1:9000/api/v3",
        "ARK_API_KEY": "hunter2",
        "YUZUI_AUTH_SECRET": "hunter2" * 5,
        "PATH": "/bin",
    }
    config = load(tmp_path, "", environ)
    assert config.port == 0
    assert config.workers == ("http://10.0.0.1:8000", "http://gpu-2:8000")
    assert config.starts_workers == 0
    assert config.model == Path("models/flash")
    assert config.strict is True
    assert config.ark.enabled
    assert config.auth.all_keys()[0].kid == "default"
    assert "hunter2" not in f"{config!r} {config} {config.describe()}"
    assert config.describe()["redis_url"] == "redis://***@10.0.0.9:6379/1"
    assert config.describe()["ark"]["api_key"] == "(set)"
    msgspec.json.encode(config.describe())


def test_the_file_may_be_named_by_a_variable_and_must_then_exist(tmp_path: Path) -> None:
    file = tmp_path / "other.yaml"
    file.write_text("port: 7000")
    assert Config.load(environ={CONFIG_VARIABLE: str(file)}).port == 7000
    with pytest.raises(ConfigError, match="no such file"):
        Config.load(tmp_path / "absent.yaml", environ={})
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.load(tmp_path, environ={})


def test_paths_in_the_file_start_from_its_folder(tmp_path: Path) -> None:
    config = load(tmp_path, "data_dir: books\nprices: {cards: [/etc/card.yaml, cards]}")
    assert config.data_dir == tmp_path / "books"
    assert config.prices.cards == (Path("/etc/card.yaml"), tmp_path / "cards")
    assert load(tmp_path, "", {"YUZUI_DATA_DIR": "books"}).data_dir == Path("books")


def test_a_full_file(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
auth:
  issuer: https://id.example.com
  keys:
    - {kid: a, alg: HS256, secret_file: a.key}
    - {kid: b, alg: EdDSA, public_key_file: b.pem}
models:
  glm-4.6v: {aliases: [vision], local: [glm-4.6v-flash], cloud: [ep-1, ep-2]}
  small: {cloud: []}
ark:
  endpoints: {ep-1: doubao-seed-1-6-vision-250815}
sensitivity:
  profile: strict
  names: {机密: sensitive, 公开: public}
  tenants: {research: public}
limits:
  local: {first_s: 5}
local_cost:
""",
    )
    assert config.auth.keys[0].secret_file == tmp_path / "a.key"
    assert config.models["small"].local == ("*",)
    assert config.ark.endpoints == {"ep-1": "doubao-seed-1-6-vision-250815"}
    rules = config.sensitivity.rules()
    assert rules.default is Sensitivity.SENSITIVE
    assert rules.image_default is Sensitivity.SENSITIVE
    assert rules.names["机密"] is Sensitivity.SENSITIVE
    assert rules.names["internal"] is Sensitivity.INTERNAL
    assert rules.tenant_default == {"research": Sensitivity.PUBLIC}
    assert config.limits.local.first_s == 5
    assert config.limits.local.connect_s == 2
    assert config.limits.cloud.first_s == 60


# (the file, what the error says about it)
WRONG: list[tuple[str, str]] = [
    (
        "port: 80x",
        "yuzui.yaml:1: port: '80x' is not allowed; expected a whole number from 0 to 65535 (0: any",
    ),
    ("port: 70000", "yuzui.yaml:1: port: 70000 is not allowed"),
    ("port: true", "yuzui.yaml:1: port: True is not allowed"),
    ("port: 1.5", "yuzui.yaml:1: port: 1.5 is not allowed"),
    ("port:", "yuzui.yaml:1: port: nothing is not allowed"),
    ("port: [1]", "yuzui.yaml:1: port: a list is not allowed"),
    ("host: 1", "yuzui.yaml:1: host: 1 is not allowed; expected text (in quotes"),
    ("# a\n\nprot: 1", "yuzui.yaml:3: prot: unknown key; did you mean port?"),
    ("zzz: 1", "yuzui.yaml:1: zzz: unknown key; known here: admin_host, admin_port"),
    (
        "limits:\n  body_byte_max: 5",
        "yuzui.yaml:2: limits.body_byte_max: unknown key; did you mean body_bytes_max?",
    ),
    (
        "limits:\n  local:\n    first_s: 0",
        "yuzui.yaml:3: limits.local.first_s: 0 is not allowed; expected a number above 0",
    ),
    ("limits: {local: {first_s: .nan}}", "limits.local.first_s: nan is not allowed"),
    ("limits: {local: {first_s: .inf}}", "limits.local.first_s: inf is not allowed"),
    ("limits: 5", "yuzui.yaml:1: limits: 5 is not allowed; expected a section"),
    (
        "limits:\n  output_tokens_max: 9\n  output_tokens_default: 10",
        "yuzui.yaml:3: limits.output_tokens_default: is above output_tokens_max",
    ),
    (
        "auth:\n  keys:\n  - kid: a\n    alg: HS265\n    secret: x",
        "yuzui.yaml:4: auth.keys[0].alg: 'HS265' is not allowed; expected one of HS256, RS256, ES",
    ),
    ("auth:\n  keys:\n  - kid: a", "yuzui.yaml:3: auth.keys[0].alg: is required here"),
    (
        "auth: {keys: [{kid: a, alg: HS256}]}",
        "auth.keys[0].kid: a key of HS256 needs exactly one of secret, secret_file",
    ),
    (
        "auth: {keys: [{kid: a, alg: RS256, secret: hidden}]}",
        "auth.keys[0].secret: a key of RS256 needs exactly one of public_key_file",
    ),
    (
        "auth:\n  keys:\n  - {kid: a, alg: HS256, secret: x}\n  - {kid: a, alg: HS256, secret: y}",
        "yuzui.yaml:2: auth.keys: the kid 'a' is used twice",
    ),
    (
        "auth: {jwks_file: a, jwks_url: 'https://a'}",
        "auth.jwks_url: give either jwks_file or jwks_url",
    ),
    (
        "auth: {jwks_url: 'file:///etc/passwd'}",
        "auth.jwks_url: 'file:///etc/passwd' is not allowed",
    ),
    ("auth: {secret: 12345}", "auth.secret: this value (not shown) is not allowed"),
    ("models: {}", "yuzui.yaml:1: models: name at least one model"),
    (
        "models: {a: {aliases: [local/x]}}",
        "models: 'local/x': local/ and cloud/ in front name a side",
    ),
    ("models: {a: {aliases: [c]}, b: {aliases: [c]}}", "models: 'c' names both a and b"),
    ("models: {a: {local: []}}", "models.a.local: a model needs a local or a cloud name"),
    ("auth: {keys: [{alg: HS256}]}", "auth.keys[0].kid: is required here"),
    ("sensitivity: {profile: strickt}", "did you mean strict?"),
    (
        "ark: {base_url: 'http://example.com'}",
        "ark.base_url: 'http://example.com' leaves the private network; expected https://",
    ),
    (
        "ark: {base_url: 'https://k:hunter2@example.com'}",
        "ark.base_url: must not hold a name or password",
    ),
    ("workers: ['http://[::1']", "workers: is not a valid URL"),
    ("workers: ['http://a..b']", "workers: is not a valid URL"),
    ("workers: ['http://a:99999']", "workers: is not a valid URL"),
    ("workers: [http://a, http://a]", "workers: the same worker stands there twice"),
    ("workers: ['ftp://a']", "workers: 'ftp://a' is not allowed; expected http://host"),
    ("workers: ['http://a/?x=1']", "expected a URL without ? and #"),
    ("redis_url: 'http://:hunter2@h'", "yuzui.yaml:1: redis_url: expected redis://"),
    (
        "timezone: Mars/Base",
        "yuzui.yaml:1: timezone: 'Mars/Base' is not allowed; expected a time zone",
    ),
    ("timezone: ../../etc/passwd", "timezone: '../../etc/passwd' is not allowed"),
    ("admin_port: 8080", "yuzui.yaml:1: admin_port: 8080 is already the port for clients"),
    (
        "sensitivity: {names: {机密: sensitiv}}",
        "sensitivity.names.机密: 'sensitiv' is not allowed; expected one of public, int",
    ),
    (
        "sensitivity: {names: {Sensitive: public}}",
        "sensitivity.names: 'Sensitive' has a fixed meaning and cannot be public",
    ),
    ("port: 1\nport: 2", "yuzui.yaml:2: port: given twice"),
    ("no: 1", "yuzui.yaml:1: the key False is not text; put it in quotes"),
    ("a: [1", "yuzui.yaml:1: not valid YAML"),
    ("\ta: 1", "yuzui.yaml:1: not valid YAML"),
    ("- a", "yuzui.yaml:1: expected `key: value` lines"),
    ("a: &x [*x]", "nested deeper than 16 levels"),
    (
        "port: !!python/name:os.system x",
        "yuzui.yaml:1: not valid YAML: could not determine a constructor",
    ),
    ("since: 2026-99-99", "yuzui.yaml: not valid YAML: month must be in 1..12"),
    ('data_dir: "a\\0b"', "data_dir: 'a\\x00b' is not allowed; expected a path"),
    ("log: {level: INFO}", "log.level: 'INFO' is not allowed; expected one of debug, info"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[row[0][:40] for row in WRONG])
def test_an_error_names_place_key_value_and_cure(text: str, said: str, tmp_path: Path) -> None:
    message = problem(tmp_path, text)
    assert said in message
    assert message.startswith("yuzui.yaml")
    assert "hunter2" not in message
    assert "hidden" not in message


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("YUZUI_PORT", "x", "environment variable YUZUI_PORT: port: 'x' is not allowed"),
        ("YUZUI_PORT", "tcp://10.0.0.1:80", "environment variable YUZUI_PORT: port: 'tcp:"),
        ("YUZUI_STRICT", "maybe", "YUZUI_STRICT: strict: 'maybe' is not allowed; expected true"),
        ("YUZUI_WORKERS", "a", "environment variable YUZUI_WORKERS: workers: 'a' is not allowed"),
        ("YUZUI_PROT", "1", "environment variable YUZUI_PROT: unknown; did you mean YUZUI_PORT?"),
        ("YUZUI_X", "1", "environment variable YUZUI_X: unknown; known: ARK_API_KEY, "),
    ],
)
def test_an_error_of_the_environment_names_the_variable(
    name: str, value: str, said: str, tmp_path: Path
) -> None:
    assert said in problem(tmp_path, "", {name: value})


def test_an_error_of_the_command_line_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="command line, port: port: 70000 is not allowed"):
        load(tmp_path, port=70000)
    config = load(tmp_path, "port: 5", **{"ark.base_url": "https://a.example", "port": None})
    assert (config.port, config.ark.base_url) == (5, "https://a.example")


def test_the_processes_own_environment_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("YUZUI_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("YUZUI_PORT", "4321")
    assert Config.load().port == 4321


def test_what_a_server_costs_a_second() -> None:
    # (33,000 / 3 + 2,000) CNY a year and 0.6 kW at 0.80 CNY: 1.96 CNY an hour
    rate = LocalCostConfig().server_rate()
    assert (rate.full_nano_per_s, rate.marginal_nano_per_s) == (545_561, 113_334)
    free = LocalCostConfig(server_price_cny=0, upkeep_cny_per_year=0, kwh_price_cny=0)
    assert free.server_rate().full_nano_per_s == 0
    heater = LocalCostConfig(
        server_price_cny=0, upkeep_cny_per_year=0, idle_watts=0, load_watts=1000, kwh_price_cny=3.6
    )
    assert heater.server_rate().full_nano_per_s == 1_000_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{residual_cny: 40000}", "local_cost.residual_cny: is above server_price_cny"),
        ("{idle_watts: 700}", "local_cost.idle_watts: is above load_watts"),
    ],
)
def test_a_server_that_cannot_be_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, f"local_cost: {text}")


def test_a_secret_keeps_itself() -> None:
    secret = Secret("hunter2")
    assert secret.reveal() == "hunter2"
    assert "hunter2" not in f"{secret} {secret!r} {[secret]}"
    assert secret == Secret("hunter2")
    assert len({secret, Secret("hunter2"), Secret("x")}) == 2
    with pytest.raises(TypeError):
        msgspec.json.encode(secret)


def test_nothing_can_be_changed_afterwards() -> None:
    with pytest.raises(AttributeError):
        Config().port = 1  # type: ignore[misc]


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused_with_its_place(text: str) -> None:
    try:
        where = from_yaml(text, Path("f.yaml")).where
    except ConfigError as error:
        where = error.where
    assert where.startswith("f.yaml")


_KEYS = ["port", "auth", "limits", "local", "models", "keys", "workers", "a", "first_s", "secret"]
_TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), some),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(_KEYS), _TREES))
def test_any_settings_are_read_or_refused(tree: dict[str, object]) -> None:
    try:
        outcome: object = Config.load("/dev/null", {}, tree)
    except ConfigError as error:
        outcome = error
    assert isinstance(outcome, Config | ConfigError)


POOL = """\
pool:
  workers:
    - url: http://gpu1:8000
      name: gpu1
      engine: vllm
      slots: 64
      labels: [public, internal]
      tenants: [acme]
      weight: 2
    - url: http://gpu2:8000
  dns:
    - url: http://workers.gpu.svc:8000
  heartbeats: true
"""


def test_workers_with_what_is_said_of_them(tmp_path: Path) -> None:
    (tmp_path / "yuzui.yaml").write_text(POOL)
    config = Config.load(tmp_path / "yuzui.yaml", environ={"YUZUI_WORKERS": "http://a:1"})
    first, second, third = config.members()
    assert (first.name, first.url, first.engine) == ("w1", "http://a:1", "")
    assert (second.name, second.engine, second.slots, second.weight) == ("gpu1", "vllm", 64, 2.0)
    assert second.levels == {Sensitivity.PUBLIC, Sensitivity.INTERNAL}
    assert (third.name, third.levels) == ("w3", frozenset())
    assert config.starts_workers == 0


@pytest.mark.parametrize(
    ("old", "new", "line", "key"),
    [
        ("engine: vllm", "engine: tgi", 5, "pool.workers[0].engine"),
        ("slots: 64", "slots: 0", 6, "pool.workers[0].slots"),
        ("[public, internal]", "[secret]", 7, "pool.workers[0].labels"),
        ("http://gpu2:8000", "ftp://gpu2", 10, "pool.workers[1].url"),
        ("http://workers.gpu.svc:8000", "https://workers.gpu.svc", 12, "pool.dns[0].url"),
        ("heartbeats: true", "heartbeats: perhaps", 13, "pool.heartbeats"),
        ("heartbeats: true", "worker_options: --name 'w", 13, "pool.worker_options"),
    ],
)
def test_a_mistake_in_the_pool_names_its_key_and_line(
    tmp_path: Path, old: str, new: str, line: int, key: str
) -> None:
    (tmp_path / "yuzui.yaml").write_text(POOL.replace(old, new))
    with pytest.raises(ConfigError) as wrong:
        Config.load(tmp_path / "yuzui.yaml", environ={})
    assert f"yuzui.yaml:{line}" in str(wrong.value)
    assert key in str(wrong.value)


def test_auto_is_a_number_of_workers_too() -> None:
    assert Config.load(environ={"YUZUI_LOCAL_WORKERS": "auto"}).starts_workers == "auto"
    assert Config.load(environ={"YUZUI_LOCAL_WORKERS": "3"}).starts_workers == 3
    with pytest.raises(ConfigError, match="YUZUI_LOCAL_WORKERS"):
        Config.load(environ={"YUZUI_LOCAL_WORKERS": "many"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"port: 1\nhost: \xe9\n", ":2: is not UTF-8; save the file as UTF-8"),
        (b"#" * (1024 * 1024 + 1), "longer than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_text_of_settings(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "yuzui.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Config.load(file, {})
    assert str(caught.value).startswith(str(file))
    assert said in str(caught.value)


def test_a_device_without_an_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    """/dev/zero as a settings file took all memory of the machine."""
    with pytest.raises(ConfigError, match="/dev/zero: longer than"):
        Config.load("/dev/zero", {})
    assert Config.load("/dev/null", {}) == Config()  # the positive control: not every device
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory$"):
        Config.load(tmp_path, {})
