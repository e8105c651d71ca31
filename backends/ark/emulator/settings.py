"""What the emulator can be told: a YAML file, flags over it, and the defaults.

A file has the names of `Settings`; a name that does not exist is an error that names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml
from msgspec import Meta

from backends.ark.emulator.faults import FaultRule
from backends.ark.models import FAMILIES

FILE_BYTES_MAX = 1024 * 1024
BODY_BYTES_MAX = 64 * 1024 * 1024  # Ark's limit of a request body

# Ranges are wide: they keep out what would wait for ever, count backwards or not be a number.
Port = Annotated[int, Meta(ge=0, le=65_535)]
Count = Annotated[int, Meta(ge=0, le=10**12)]
Some = Annotated[int, Meta(ge=1, le=10**12)]
Millis = Annotated[float, Meta(ge=0, le=86_400_000)]
Seconds = Annotated[float, Meta(ge=0, le=31_536_000)]
Share = Annotated[float, Meta(ge=0, le=1)]

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
    rpm: Count | None = None
    tpm: Count | None = None
    closed: bool = False


class LimitRow(_Strict, frozen=True, kw_only=True):
    """Limits of one account for one model. None: what Ark publishes for the model."""

    rpm: Count | None = None
    tpm: Count | None = None


class Latency(_Strict, frozen=True, kw_only=True):
    """How long answers take. The first token comes after a time drawn between the two bounds."""

    first_ms_min: Millis = 200.0
    first_ms_max: Millis = 800.0
    token_ms: Millis = 20.0


class Burst(_Strict, frozen=True, kw_only=True):
    """The guard against growth (docs 82379/1848593): "about 3 M tokens a minute" or 20 % in 3
    minutes. Below the floor the percentage is not applied: everything grows by more than 20 % when
    it starts. The floor is ours, nothing is published."""

    enabled: bool = True
    growth_tokens: Count = 3_000_000
    growth_share: Annotated[float, Meta(ge=0, le=1_000)] = 0.2
    share_floor_tokens: Count = 1_000_000


class BillFaults(_Strict, frozen=True, kw_only=True):
    """How much of the bill is wrong: shares of its rows, each drawn from the seed.

    missing: not billed.  changed: other tokens, or another amount.  doubled: billed twice.
    foreign: a further row beside it, of an endpoint that nobody here has called.
    """

    seed: int = 0
    missing: Share = 0.0
    changed: Share = 0.0
    doubled: Share = 0.0
    foreign: Share = 0.0


class Billing(_Strict, frozen=True, kw_only=True):
    """The bill (docs of the billing centre): periods of five minutes, billed 5 to 10 minutes later;
    usage 5 to 30 minutes later; the split up to two days later.

    off_peak: which hours count as such for the model whose price goes by the hour; what they are
              on Ark is not known
    access_keys: accepted; none: all of them
    """

    period_s: Annotated[int, Meta(ge=1, le=86_400)] = 300
    delay_s: Seconds = 600.0
    usage_delay_s: Seconds = 1800.0
    split_delay_s: Seconds = 600.0
    split: bool = True  # has to be switched on in the real console first
    off_peak: str = "00:30-08:30"
    balance_cny: str = "1000.00"  # before anything was charged
    access_keys: tuple[str, ...] = ()
    faults: BillFaults = BillFaults()


class Settings(_Strict, frozen=True, kw_only=True):
    """Everything that can be configured."""

    host: str = "127.0.0.1"
    port: Port = 18080
    base_path: str = "/api/v3"
    seed: int = 0
    keys: tuple[KeyRow, ...] = ()  # none: every key that is not empty is accepted
    model_ids: bool = True  # False: the account forbids Model IDs, endpoints only
    closed_models: tuple[str, ...] = ()  # listed, not open: ModelNotOpen
    retired_models: tuple[str, ...] = ()  # UnsupportedModel
    models: dict[str, str] = {}  # further Model IDs, each with its family
    endpoints: dict[str, EndpointRow] = {}
    limits: dict[str, LimitRow] = {}  # by model without its date; "*" for all
    window_s: Annotated[float, Meta(gt=0, le=86_400)] = 60.0  # a minute; shorter for tests
    concurrency: Some | None = None  # of an account; None: no cap
    burst: Burst = Burst()
    latency: Latency = Latency()
    answer_tokens: Some | None = None  # None: as long as the sentence
    reasoning_tokens: Mapping[str, Count] = msgspec.field(default_factory=lambda: dict(_THOUGHT))
    chunk_tokens: Some = 1  # tokens in one chunk of a stream
    cache_ttl_s: Seconds = 300.0
    cache_blocks_max: Count = 100_000
    remote_image_px: tuple[Some, Some] | None = None  # assume this size for http(s) pictures
    output_estimate_tokens: Count = 1024  # pre-deducted for a request without an output limit
    unknown_fields: Literal["refuse", "ignore"] = "refuse"  # unknown for the real service
    report_image_tokens: bool = True  # typed by the vendor, not seen in every sample
    send_retry_after: bool = False  # whether real 429s carry Retry-After is unknown
    send_request_id: bool = False  # X-Request-Id on answers; unknown for the real service
    billing: Billing = Billing()
    faults: tuple[FaultRule, ...] = ()
    rows_max: Some = 100_000  # of each log; the oldest are dropped and counted

    def __post_init__(self) -> None:
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
            with Path(path).open("rb") as file:  # no more than that: a device has no end
                read = yaml.safe_load(file.read(FILE_BYTES_MAX).decode())
        except OSError as error:
            raise SettingsError(f"--config {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise SettingsError(f"--config {path}: is not UTF-8") from error
        except (yaml.YAMLError, ValueError) as error:  # ValueError: 2026-99-99 read as a date
            what = " ".join(str(error).split())  # its marks stand on lines of their own
            raise SettingsError(f"--config {path}: {what}") from error
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
        raise SettingsError(": ".join(part for part in (path, _said(error)) if part)) from error


def _said(error: msgspec.ValidationError) -> str:
    """The name of the setting first: `limits.*.rpm: expected int >= 0`."""
    text, _, place = str(error).replace("`", "").partition(" - at $")
    name = place.removeprefix(".").replace("[...]", ".*")
    return f"{name}: {text[0].lower()}{text[1:]}" if name else text
