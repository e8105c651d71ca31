"""What the emulator can be told: a YAML file, flags over it, and the defaults.

A file has the names of `Settings`; a name that does not exist is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from backends.ark.emulator.faults import FaultRule
from backends.ark.models import FAMILIES

BODY_BYTES_MAX = 64 * 1024 * 1024  # Ark's limit of a request body


# Tokens of reasoning by effort: short, so that a test does not wait.
_THOUGHT = {"minimal": 0, "low": 24, "medium": 48, "high": 96, "max": 192}


class SettingsError(ValueError):
    """A setting that cannot be read; the message names it."""


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base: an unknown name is an error."""


class KeyRow(_Strict, frozen=True, kw_only=True):
    """An API key and the account that it belongs to."""

    key: str
    account: str = "default"

    def __repr__(self) -> str:
        return f"KeyRow(account={self.account!r})"


class EndpointRow(_Strict, frozen=True, kw_only=True):
    """A custom endpoint (`ep-...`): a name for a model with caps of its own."""

    model: str
    rpm: int | None = None
    tpm: int | None = None
    closed: bool = False


class LimitRow(_Strict, frozen=True, kw_only=True):
    """Limits of one account for one model. None: what Ark publishes for the model."""

    rpm: int | None = None
    tpm: int | None = None


class Latency(_Strict, frozen=True, kw_only=True):
    """How long answers take. The first token comes after a time drawn between the two bounds."""

    first_ms_min: float = 200.0
    first_ms_max: float = 800.0
    token_ms: float = 20.0


class Burst(_Strict, frozen=True, kw_only=True):
    """The guard against growth (docs 82379/1848593): "about 3 M tokens a minute" or 20 % in 3
    minutes. Below the floor the percentage is not applied: everything grows by more than 20 % when
    it starts. The floor is ours, nothing is published."""

    enabled: bool = True
    growth_tokens: int = 3_000_000
    growth_share: float = 0.2
    share_floor_tokens: int = 1_000_000


class BillFaults(_Strict, frozen=True, kw_only=True):
    """How much of the bill is wrong: shares of its rows, each drawn from the seed.

    missing: not billed.  changed: other tokens, or another amount.  doubled: billed twice.
    foreign: a further row beside it, of an endpoint that nobody here has called.
    """

    seed: int = 0
    missing: float = 0.0
    changed: float = 0.0
    doubled: float = 0.0
    foreign: float = 0.0


class Billing(_Strict, frozen=True, kw_only=True):
    """The bill (docs of the billing centre): periods of five minutes, billed 5 to 10 minutes later;
    usage 5 to 30 minutes later; the split up to two days later.

    off_peak: which hours count as such for the model whose price goes by the hour; what they are
              on Ark is not known
    access_keys: accepted; none: all of them
    """

    period_s: int = 300
    delay_s: float = 600.0
    usage_delay_s: float = 1800.0
    split_delay_s: float = 600.0
    split: bool = True  # has to be switched on in the real console first
    off_peak: str = "00:30-08:30"
    balance_cny: str = "1000.00"  # before anything was charged
    access_keys: tuple[str, ...] = ()
    faults: BillFaults = BillFaults()

    def __post_init__(self) -> None:
        if self.period_s < 1 or min(self.delay_s, self.usage_delay_s, self.split_delay_s) < 0:
            raise ValueError("billing: period_s must be positive and delays not negative")


class Settings(_Strict, frozen=True, kw_only=True):
    """Everything that can be configured."""

    host: str = "127.0.0.1"
    port: int = 18080
    base_path: str = "/api/v3"
    seed: int = 0
    keys: tuple[KeyRow, ...] = ()  # none: every key that is not empty is accepted
    model_ids: bool = True  # False: the account forbids Model IDs, endpoints only
    closed_models: tuple[str, ...] = ()  # listed, not open: ModelNotOpen
    retired_models: tuple[str, ...] = ()  # UnsupportedModel
    models: dict[str, str] = {}  # further Model IDs, each with its family
    endpoints: dict[str, EndpointRow] = {}
    limits: dict[str, LimitRow] = {}  # by model without its date; "*" for all
    window_s: float = 60.0  # a minute; shorter for tests
    concurrency: int | None = None  # of an account; None: no cap
    burst: Burst = Burst()
    latency: Latency = Latency()
    answer_tokens: int | None = None  # None: as long as the sentence
    reasoning_tokens: Mapping[str, int] = msgspec.field(default_factory=lambda: dict(_THOUGHT))
    chunk_tokens: int = 1  # tokens in one chunk of a stream
    cache_ttl_s: float = 300.0
    cache_blocks_max: int = 100_000
    remote_image_px: tuple[int, int] | None = None  # assume this size for http(s) pictures
    output_estimate_tokens: int = 1024  # pre-deducted for a request without an output limit
    unknown_fields: Literal["refuse", "ignore"] = "refuse"  # unknown for the real service
    report_image_tokens: bool = True  # typed by the vendor, not seen in every sample
    send_retry_after: bool = False  # whether real 429s carry Retry-After is unknown
    send_request_id: bool = False  # X-Request-Id on answers; unknown for the real service
    billing: Billing = Billing()
    faults: tuple[FaultRule, ...] = ()
    rows_max: int = 100_000  # of each log; the oldest are dropped and counted

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1 or self.window_s <= 0 or self.rows_max < 1:
            raise ValueError("chunk_tokens, window_s and rows_max must be positive")
        if self.latency.first_ms_min > self.latency.first_ms_max:
            raise ValueError("latency.first_ms_min is larger than latency.first_ms_max")
        for family in self.models.values():
            if family not in FAMILIES:
                raise ValueError(f"models: family {family!r} is none of {sorted(FAMILIES)}")


def load(path: str | None, flags: dict[str, Any]) -> Settings:
    """File (may be absent), then flags over it. Raises SettingsError."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            read = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise SettingsError(f"{path}: {error}") from error
        if read is not None and not isinstance(read, dict):
            raise SettingsError(f"{path}: expected names and values at the top")
        values = read or {}
    for name, value in flags.items():
        if isinstance(value, dict) and isinstance(values.get(name), dict):
            values[name] = {**values[name], **value}
        else:
            values[name] = value
    try:
        return msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path or 'flags'}: {error}") from error
