"""The sections of the settings: what may be written in each, and what counts when nothing is.

A field's annotation is its rule (range, choices), its default is documented beside it, and a
`__post_init__` holds what involves several fields. Reading them from a file is `read`'s task,
finding them is `config`'s.
"""

from __future__ import annotations

import ipaddress
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from backends.base import Timeouts
from gateway.config.read import Invalid, Secret
from policies.sensitivity import NAMES, LabelRules
from policies.server_cost import ServerRate, server_rate
from policies.types import Sensitivity

Port = Annotated[int, Meta(ge=0, le=65_535, description="0: any free port")]
Seconds = Annotated[float, Meta(gt=0, le=86_400, description="seconds")]
Processes = Annotated[int, Meta(ge=1, le=256)]
Tokens = Annotated[int, Meta(ge=1, le=16_777_216, description="tokens")]
Watts = Annotated[float, Meta(ge=0, le=1e6, description="watts")]
Cny = Annotated[float, Meta(ge=0, le=1e9, description="CNY")]
Kid = Annotated[str, Meta(min_length=1, max_length=128)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Label = Annotated[str, Meta(pattern=r"^[A-Za-z][\w.-]{0,31}$", description="a plain name")]
Algorithm = Literal["HS256", "RS256", "ES256", "EdDSA"]
LevelName = Literal["public", "internal", "sensitive"]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all settings: cannot change once read."""


class KeyConfig(Section, frozen=True, kw_only=True):
    """One verification key. Its algorithm stands here, so that no token can choose it.

    secret, secret_file: HS256 only, at least 32 bytes; the file's trailing newline is not part
    public_key_file:     PEM, for RS256, ES256 and EdDSA
    """

    kid: Kid
    alg: Algorithm
    secret: Secret | None = None
    secret_file: Path | None = None
    public_key_file: Path | None = None

    def __post_init__(self) -> None:
        given = [f for f in ("secret", "secret_file", "public_key_file") if getattr(self, f)]
        wanted = ("secret", "secret_file") if self.alg == "HS256" else ("public_key_file",)
        if len(given) != 1 or given[0] not in wanted:
            field = next((f for f in given if f not in wanted), "kid")
            raise Invalid(field, f"a key of {self.alg} needs exactly one of {', '.join(wanted)}")


class AuthConfig(Section, frozen=True, kw_only=True):
    """Whose tokens are believed. With no key at all the gateway refuses to serve.

    secret:     short for one HS256 key of kid `default` (for YUZUI_AUTH_SECRET)
    jwks_url:   fetched by the gateway; the keys of the last good answer stay in use
    leeway_s:   how far the issuer's clock may be off, for exp, nbf and iat
    """

    keys: tuple[KeyConfig, ...] = ()
    secret: Secret | None = None
    jwks_file: Path | None = None
    jwks_url: str | None = None
    issuer: Name = "yuzui"
    audience: Name = "yuzui"
    leeway_s: Annotated[float, Meta(ge=0, le=300, description="seconds")] = 60.0
    token_bytes_max: Annotated[int, Meta(ge=256, le=65_536)] = 8_192
    cache_entries_max: Annotated[int, Meta(ge=0, le=1_000_000)] = 10_000

    def __post_init__(self) -> None:
        kids = [key.kid for key in self.all_keys()]
        if doubled := sorted({kid for kid in kids if kids.count(kid) > 1}):
            raise Invalid("keys", f"the kid {doubled[0]!r} is used twice")
        if self.jwks_file and self.jwks_url:
            raise Invalid("jwks_url", "give either jwks_file or jwks_url")
        if self.jwks_url:
            check_url(self.jwks_url, "jwks_url")

    def all_keys(self) -> tuple[KeyConfig, ...]:
        """The listed keys and the one that `secret` stands for."""
        if self.secret is None:
            return self.keys
        return (*self.keys, KeyConfig(kid="default", alg="HS256", secret=self.secret))

    @property
    def configured(self) -> bool:
        """Whether any token could ever be accepted."""
        return bool(self.all_keys() or self.jwks_file or self.jwks_url)


class ModelConfig(Section, frozen=True, kw_only=True):
    """What stands behind one public model name.

    local: names that workers serve it under, or `*` for any worker; empty: not served locally
    cloud: model or endpoint ids at Ark, in order of preference; empty: never sent there
    """

    aliases: tuple[Name, ...] = ()
    local: tuple[Name, ...] = ("*",)
    cloud: tuple[Name, ...] = ()

    def __post_init__(self) -> None:
        if not self.local and not self.cloud:
            raise Invalid("local", "a model needs a local or a cloud name")


# Sees pictures and is the cheapest of the current generation (Ark's list of October 2026).
DEFAULT_CLOUD = "doubao-seed-2-1-lite-260915"


class ArkConfig(Section, frozen=True, kw_only=True):
    """Volcano Engine Ark. Without an API key the cloud is off.

    endpoints: an endpoint's id (ep-...) says nothing of what stands behind it: the model id whose
               limits, dialect and prices it has
    access_key, secret_key: of the account, for bills (`yuzui reconcile`) and nothing else; an API
               key cannot read them
    control_url: where to ask for bills; None: the vendor's own address
    """

    base_url: str = "https://ark.cn-beijing.volces.com/api/v3"
    api_key: Secret | None = None
    endpoints: dict[Name, Name] = {}
    access_key: Secret | None = None
    secret_key: Secret | None = None
    control_url: str | None = None

    def __post_init__(self) -> None:
        check_url(self.base_url, "base_url")
        if self.control_url is not None:
            check_url(self.control_url, "control_url")

    @property
    def enabled(self) -> bool:
        return self.api_key is not None


class SensitivityConfig(Section, frozen=True, kw_only=True):
    """How far data may travel when its sender does not say.

    profile: standard: without a label a request is internal and may leave;
             strict: without a label it is sensitive and stays
    names:   further spellings of the three levels, such as {机密: sensitive}
    default: level of a request without a label; None: as the profile says
    tenants: the same for single tenants
    """

    profile: Literal["standard", "strict"] = "standard"
    names: dict[str, LevelName] = {}
    default: LevelName | None = None
    tenants: dict[str, LevelName] = {}

    def __post_init__(self) -> None:
        for spelled, level in self.names.items():
            meant = NAMES.get(spelled.strip().lower())
            if meant is not None and meant != NAMES[level]:
                raise Invalid("names", f"{spelled!r} has a fixed meaning and cannot be {level}")

    def rules(self) -> LabelRules:
        """What policies.sensitivity works with."""
        strict = self.profile == "strict"
        default = NAMES[self.default or ("sensitive" if strict else "internal")]
        return LabelRules(
            names={**NAMES, **{k.strip().lower(): NAMES[v] for k, v in self.names.items()}},
            default=default,
            tenant_default={tenant: NAMES[level] for tenant, level in self.tenants.items()},
            image_default=Sensitivity.SENSITIVE if strict else None,
        )


class PricesConfig(Section, frozen=True, kw_only=True):
    """Where Ark's prices stand.

    cards: price cards of one's own, files or folders of them, instead of the shipped ones. Each
           says from which day on it is valid; a request is priced by the one of its time.
    """

    cards: tuple[Path, ...] = ()


class LocalCostConfig(Section, frozen=True, kw_only=True):
    """What one's own server costs: the books charge local answers by the second of a slot.

    The defaults are one workstation with a 24 GB card: 33,000 CNY (second-hand reports of 2025 say
    28,000 to 38,000), written off over three years to nothing, 90 W idle and 600 W under load, 0.80
    CNY a kWh, 2,000 CNY a year for room and hands. They are guesses to be replaced, not facts.

    residual_cny:           what the server is still worth after those years
    idle_watts, load_watts: what it draws without work, and with every slot taken. The difference
                            is what answering adds to the bill: the marginal cost.
    """

    server_price_cny: Cny = 33_000.0
    residual_cny: Cny = 0.0
    years: Annotated[float, Meta(gt=0, le=50, description="years")] = 3.0
    idle_watts: Watts = 90.0
    load_watts: Watts = 600.0
    kwh_price_cny: Cny = 0.8
    upkeep_cny_per_year: Cny = 2_000.0

    def __post_init__(self) -> None:
        if self.residual_cny > self.server_price_cny:
            raise Invalid("residual_cny", "is above server_price_cny")
        if self.idle_watts > self.load_watts:
            raise Invalid("idle_watts", "is above load_watts")

    def server_rate(self) -> ServerRate:
        """What one worker's server costs a second; its slots share that."""

        def exact(figure: float) -> Decimal:
            return Decimal(str(figure))

        return server_rate(
            price_cny=exact(self.server_price_cny),
            residual_cny=exact(self.residual_cny),
            years=exact(self.years),
            idle_watts=exact(self.idle_watts),
            load_watts=exact(self.load_watts),
            cny_per_kwh=exact(self.kwh_price_cny),
            upkeep_cny_per_year=exact(self.upkeep_cny_per_year),
        )


class LocalTimeouts(Timeouts, frozen=True, kw_only=True):
    """For workers. first_s is long because a pinned request may wait in the worker's queue."""

    connect_s: Seconds = 2.0
    first_s: Seconds = 120.0
    idle_s: Seconds = 60.0
    total_s: Seconds = 600.0


class CloudTimeouts(Timeouts, frozen=True, kw_only=True):
    """For Ark."""

    connect_s: Seconds = 2.0
    first_s: Seconds = 60.0
    idle_s: Seconds = 60.0
    total_s: Seconds = 600.0


class LimitsConfig(Section, frozen=True, kw_only=True):
    """Bounds on what one process takes on.

    body_bytes_max:        20 MiB holds a dozen photographs as base64
    in_flight_max:         requests inside one process; more are shed before their body is read
    ttft_interactive_s:    how long a caller who sets no deadline waits for a first token before
                           the request overflows to the cloud; ttft_batch_s: for class batch
    output_tokens_default: for a request that names no limit: an unlimited one cannot be priced
    output_tokens_max:     a larger wish is clamped to this
    local_without_books:   while Redis is away local requests go on, noted on this machine's disk
                           and booked later; false: nothing is answered without the books. The
                           cloud is never asked without them
    drain_s:               how long running requests may take after SIGTERM
    """

    body_bytes_max: Annotated[int, Meta(ge=1_024, le=268_435_456, description="bytes")] = 20_971_520
    in_flight_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 1_024
    ttft_interactive_s: Seconds = 2.0
    ttft_batch_s: Seconds = 60.0
    output_tokens_default: Tokens = 1_024
    output_tokens_max: Tokens = 32_768
    local_without_books: bool = False
    drain_s: Seconds = 60.0
    local: LocalTimeouts = LocalTimeouts()
    cloud: CloudTimeouts = CloudTimeouts()

    def __post_init__(self) -> None:
        if self.output_tokens_default > self.output_tokens_max:
            raise Invalid("output_tokens_default", "is above output_tokens_max")


class AlertsConfig(Section, frozen=True, kw_only=True):
    """Who is told of budgets besides the log. Thresholds are each budget's own.

    webhook_url:    gets a POST of JSON for each crossing; signed: x-yuzui-signature is
                    t=<seconds>,v1=<HMAC-SHA256 of "<seconds>.<body>" with webhook_secret>
    webhook_secret: at least 16 characters: a signature with an empty key is anybody's
    """

    webhook_url: str | None = None
    webhook_secret: Secret | None = None

    def __post_init__(self) -> None:
        if self.webhook_url is None:
            return
        check_url(self.webhook_url, "webhook_url")
        if self.webhook_secret is None or len(self.webhook_secret.reveal()) < 16:
            raise Invalid("webhook_secret", "a webhook needs a secret of 16 characters or more")


class BudgetsConfig(Section, frozen=True, kw_only=True):
    """What budgets take from a request beyond who sends it.

    metadata_labels: entries of the body's `metadata` that are labels: {project: x} draws on the
                     budget label:project=x. Callers write them themselves, so a label can only add
                     a budget to those of their token
    """

    metadata_labels: Annotated[tuple[Label, ...], Meta(max_length=8)] = ()
    alerts: AlertsConfig = AlertsConfig()


class LogConfig(Section, frozen=True, kw_only=True):
    """level: the least that is written. text_chars_max: longer texts in a record are cut."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    text_chars_max: Annotated[int, Meta(ge=64, le=65_536)] = 1_000


def check_url(url: str, field: str) -> None:
    """Raise Invalid unless `url` is a plain http(s) address without name, password or query.

    Plain http is for this machine and the private network: over it a key travels in the clear.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")  # UnicodeError: `a..b` is no name
    except ValueError:
        raise Invalid(field, "is not a valid URL") from None
    if parts.username is not None or parts.password is not None:
        raise Invalid(field, "must not hold a name or password")  # not repeated here
    if parts.scheme not in ("http", "https") or not host:
        raise Invalid(field, f"{url!r} is not allowed; expected http://host... or https://host...")
    if parts.query or parts.fragment or any(c.isspace() or c == "\\" for c in url):
        raise Invalid(field, f"{url!r} is not allowed; expected a URL without ? and #")
    if parts.scheme == "http" and not is_private(host):
        raise Invalid(field, f"{url!r} leaves the private network; expected https://")


def check_host(host: str, field: str) -> None:
    """Raise Invalid unless `host` could be an address or a name to listen on."""
    try:
        host.encode("idna")
        fine = not any(c.isspace() or c in "/@[]" for c in host)
    except UnicodeError:
        fine = False
    if not fine:
        allowed = "an address or a name, such as 127.0.0.1"
        raise Invalid(field, f"{host!r} is not allowed; expected {allowed}")


def is_private(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:  # a name: one label is a machine or container beside us
        return "." not in host or host.endswith((".local", ".internal", ".svc", ".localhost"))
