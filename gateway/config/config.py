"""Settings: `yuzui.yaml` and `YUZUI_*`, typed, checked before anything starts.

Later wins: shipped default, `yuzui.yaml`, environment, command line. Every key has a default, so
that a newcomer needs no file. This is the only module that reads the environment; everybody else
is handed the part of `Config` that it needs.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from backends.pool.members import Member
from gateway.config.archive import ArchiveConfig
from gateway.config.pool import PoolConfig, WorkerConfig
from gateway.config.read import ConfigError, Invalid, Node, Secret, build, from_yaml, text_of
from gateway.config.schema import (
    DEFAULT_CLOUD,
    ArkConfig,
    AuthConfig,
    BudgetsConfig,
    LimitsConfig,
    LocalCostConfig,
    LogConfig,
    ModelConfig,
    Name,
    Port,
    PricesConfig,
    Processes,
    Section,
    SensitivityConfig,
    check_host,
    check_url,
)

FILE = "yuzui.yaml"

# The variables that are read, and the key that each one sets. An empty variable counts as unset:
# compose files pass on variables that nobody has set.
ENVIRONMENT: Mapping[str, str] = {
    "YUZUI_PORT": "port",
    "YUZUI_ADMIN_PORT": "admin_port",
    "YUZUI_HOST": "host",
    "YUZUI_ADMIN_HOST": "admin_host",
    "YUZUI_ADMIN_TOKEN": "admin_token",
    "YUZUI_DATA_DIR": "data_dir",
    "YUZUI_REDIS_URL": "redis_url",
    "YUZUI_WORKERS": "workers",
    "YUZUI_LOCAL_WORKERS": "local_workers",
    "YUZUI_MODEL": "model",
    "YUZUI_WORKER_OPTIONS": "pool.worker_options",
    "YUZUI_GATEWAYS": "gateways",
    "YUZUI_STRICT": "strict",
    "YUZUI_TIMEZONE": "timezone",
    "YUZUI_LOG_LEVEL": "log.level",
    "YUZUI_ARK_BASE_URL": "ark.base_url",
    "ARK_API_KEY": "ark.api_key",
    "YUZUI_ARCHIVE_URL": "archive.url",
    "VOLC_ACCESSKEY": "ark.access_key",
    "VOLC_SECRETKEY": "ark.secret_key",
    "YUZUI_AUTH_SECRET": "auth.secret",
    "YUZUI_JWKS_FILE": "auth.jwks_file",
    "YUZUI_JWKS_URL": "auth.jwks_url",
    "YUZUI_ISSUER": "auth.issuer",
    "YUZUI_AUDIENCE": "auth.audience",
}
CONFIG_VARIABLE = "YUZUI_CONFIG"  # the path of the file itself


def _default_models() -> dict[str, ModelConfig]:
    return {"glm-4.6v": ModelConfig(aliases=("glm-4.6v-flash",), cloud=(DEFAULT_CLOUD,))}


class Config(Section, frozen=True, kw_only=True):
    """Everything that can be set. The fields and their defaults are the reference.

    admin_token:   what the admin port asks for; None: made once and kept under data_dir
    redis_url:     None: an embedded server keeps the books under data_dir
    workers:       base URLs of engines that run already; set: none is started
    local_workers: how many workers `yuzui up` starts otherwise; auto: one for each GPU, or for
                   every `pool.cores_per_worker` cores
    model:         folder of the checkpoint they load; None: the shipped glm-4.6v-nano
    gateways:      processes that share the port
    strict:        the embedded server flushes to disk before it answers (appendfsync always)
    timezone:      whose midnight ends a day's budget
    """

    port: Port = 8080
    admin_port: Port = 8081
    host: Name = "127.0.0.1"
    admin_host: Name = "127.0.0.1"
    admin_token: Secret | None = None
    data_dir: Path = Path(".yuzui")
    redis_url: str | None = None
    workers: tuple[str, ...] = ()
    local_workers: Annotated[int, Meta(ge=0, le=256)] | Literal["auto"] = 1
    model: Path | None = None
    gateways: Processes = 1
    strict: bool = False
    timezone: str = "Asia/Shanghai"
    ark: ArkConfig = ArkConfig()
    auth: AuthConfig = AuthConfig()
    models: dict[Name, ModelConfig] = msgspec.field(default_factory=_default_models)
    sensitivity: SensitivityConfig = SensitivityConfig()
    prices: PricesConfig = PricesConfig()
    local_cost: LocalCostConfig = LocalCostConfig()
    archive: ArchiveConfig = ArchiveConfig()
    limits: LimitsConfig = LimitsConfig()
    budgets: BudgetsConfig = BudgetsConfig()
    pool: PoolConfig = PoolConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        if self.port == self.admin_port != 0:
            raise Invalid("admin_port", f"{self.admin_port} is already the port for clients")
        for field in ("host", "admin_host"):
            check_host(getattr(self, field), field)
        if self.redis_url is not None:
            _check_redis(self.redis_url)
        for worker in self.workers:
            check_url(worker, "workers")
        everybody = [*self.workers, *(worker.url for worker in self.pool.workers)]
        if len({url.rstrip("/") for url in everybody}) != len(everybody):
            raise Invalid("workers", "the same worker stands there twice")
        try:
            ZoneInfo(self.timezone)
        except (OSError, ValueError, KeyError):  # a folder, a bad path, an unknown name
            raise Invalid("timezone", _not_a_zone(self.timezone)) from None
        _check_models(self.models)

    def __repr__(self) -> str:
        return f"Config({self.describe()!r})"

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
        overrides: Mapping[str, object] | None = None,
    ) -> Config:
        """Read the settings.

        path:      the file; None: $YUZUI_CONFIG, else `yuzui.yaml` here if there is one
        environ:   None: the process's own
        overrides: dotted key -> value, from the command line; None as a value is ignored

        Raises ConfigError, which names the place, the key and what is allowed.
        """
        environ = os.environ if environ is None else environ
        file = path or environ.get(CONFIG_VARIABLE) or None
        root = _read_file(Path(file or FILE), required=file is not None)
        if root.value is None:
            root = Node({}, root.where, root.base)
        elif not isinstance(root.value, dict):
            raise ConfigError(root.where, "", "expected `key: value` lines")
        _put_environment(root, environ)
        for key, value in (overrides or {}).items():
            if value is not None:
                root.put(key, _literal(value, f"command line, {key}"))
        return build(root, cls)

    @property
    def archive_place(self) -> str:
        """Where the archive is: a folder or a URL."""
        return self.archive.url or str(self.data_dir / "archive")

    @property
    def starts_workers(self) -> int | Literal["auto"]:
        """How many workers `yuzui up` starts: none where engines are named or found."""
        return 0 if self.workers or self.pool.remote else self.local_workers

    def members(self) -> tuple[Member, ...]:
        """The workers that are named: w1, w2 and so on, unless they have a name of their own."""
        named = (*(WorkerConfig(url=url) for url in self.workers), *self.pool.workers)
        return tuple(worker.member(f"w{n}") for n, worker in enumerate(named, start=1))

    def describe(self) -> dict[str, Any]:
        """All settings as plain data for people and logs; secrets and passwords are masked."""
        seen = {name: _plain(getattr(self, name)) for name in self.__struct_fields__}
        if self.redis_url is not None:
            seen["redis_url"] = _mask(self.redis_url)
        return seen


def inherited() -> dict[str, str]:
    """A copy of this process's environment, for child processes."""
    return dict(os.environ)


def _read_file(file: Path, *, required: bool) -> Node:
    try:
        text = text_of(file)
    except FileNotFoundError:
        if required:
            raise ConfigError(str(file), "", "there is no such file") from None
        return Node({}, str(file), file.parent)
    return from_yaml(text, file)


def _put_environment(root: Node, environ: Mapping[str, str]) -> None:
    for name in environ:
        if name.startswith("YUZUI_") and name not in ENVIRONMENT and name != CONFIG_VARIABLE:
            known = sorted([*ENVIRONMENT, CONFIG_VARIABLE])
            # Compared without what all of them begin with, or every name would be near to all.
            short = {variable.removeprefix("YUZUI_"): variable for variable in known}
            near = difflib.get_close_matches(name.removeprefix("YUZUI_"), short, n=1)
            hint = f"did you mean {short[near[0]]}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"environment variable {name}", "", f"unknown; {hint}{_K8S}")
    for name, key in ENVIRONMENT.items():
        if value := environ.get(name, ""):
            root.put(key, Node(value, f"environment variable {name}", textual=True))


# A Kubernetes service called `yuzui` puts YUZUI_PORT=tcp://... into every pod of its namespace.
_K8S = "; if Kubernetes set it, say `enableServiceLinks: false` in the pod"


def _literal(value: object, where: str) -> Node:
    """A value given in Python as a tree."""
    if isinstance(value, Mapping):
        return Node({k: _literal(v, where) for k, v in value.items()}, where)
    if isinstance(value, list | tuple):
        return Node([_literal(v, where) for v in value], where)
    return Node(str(value) if isinstance(value, os.PathLike) else value, where, textual=True)


def _check_redis(url: str) -> None:
    try:
        parts = urlsplit(url)
        fine = bool(parts.hostname) or (parts.scheme == "unix" and bool(parts.path))
        _ = parts.port
    except ValueError:
        fine, parts = False, urlsplit("")
    if not fine or parts.scheme not in ("redis", "rediss", "unix"):
        raise Invalid(
            "redis_url", "expected redis://[:password@]host[:port][/db], rediss:// or unix://"
        )


def _check_models(models: Mapping[str, ModelConfig]) -> None:
    if not models:
        raise Invalid("models", "name at least one model")
    owner: dict[str, str] = {}
    for name, model in models.items():
        for spelled in (name, *model.aliases):
            if spelled.startswith(("local/", "cloud/")):
                raise Invalid("models", f"{spelled!r}: local/ and cloud/ in front name a side")
            if owner.setdefault(spelled, name) != name:
                raise Invalid("models", f"{spelled!r} names both {owner[spelled]} and {name}")


def _not_a_zone(name: str) -> str:
    return f"{name!r} is not allowed; expected a time zone such as Asia/Shanghai or UTC"


def _plain(value: object) -> object:
    if isinstance(value, Secret):
        return "(set)"
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _mask(url: str) -> str:
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return urlunsplit(parts._replace(netloc="***@" + parts.netloc.rpartition("@")[2]))
