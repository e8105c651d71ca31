"""The ledger row: what one attempt was, where it went, why, and what it cost.

A row is written in the same step that posts its money, one for each hold that was posted (also at
cost 0) and none for a hold that was given back. The last attempt of an exchange is always posted,
so every exchange that held money leaves exactly one row with `final`, and one more for each
earlier attempt that may have been billed.

In the stream a row is JSON beside the figures that the ledger itself decided (posted, held, what
was claimed, whether it expired); those win over whatever the JSON says.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from policies.types import Site, Value


class RowState(StrEnum):
    FINAL = "final"  # the cost was computed from what the engine reported, or is the hold by rule
    UNRECONCILED = "unreconciled"  # nobody settled it: posted in full until the bill says otherwise
    CORRECTION = "correction"  # what the bill said, minus what an unreconciled row had posted


class Outcome(StrEnum):
    """How the attempt ended, seen from the client's side."""

    OK = "ok"
    CLIENT_GONE = "client_gone"
    CURTAILED = "curtailed"  # ended by us, with finish_reason length: a budget had no more room
    BROKEN = "broken"  # the answer broke off
    FAILED = "failed"  # no answer
    TIMEOUT = "timeout"
    EXPIRED = "expired"  # the gateway that ran it died or lost it


class Row(Value, frozen=True, kw_only=True, omit_defaults=True):
    """One posted attempt. Money in nano-CNY, tokens as reported and cleaned, times as named.

    at_ms is when the request arrived (UTC, milliseconds since 1970). held_nano, posted_nano and
    claimed_nano are set by the ledger when a row is read; of those a writer only fills
    posted_nano, with the cost. The names of a later version are ignored when they are unknown.

    A correction has the request, the attempt and the arrival of the row that it corrects, what was
    really used, and the difference as posted_nano.

    slots:           of the worker, which share the cost of its server
    marginal_nano:   local: what this answer added to the power bill; posted_nano is the full cost
    image_tokens_expected: of the pictures, by the rule of the model's family; 0: no rule is known
    service_tier:    as the cloud named it in its answer
    drawn:           counters that the hold drew on, of an unreconciled row that was read
    """

    request_id: str
    attempt: int
    final: bool = True  # the last attempt of its exchange
    at_ms: int
    tenant: str
    org: str | None = None
    subject: str = ""
    key_id: str = ""
    model: str  # public name
    site: Site
    target: str  # worker id or cloud model id
    served_model: str = ""  # as the engine named itself
    reason: str
    label: str = ""
    label_source: str = ""
    labels: tuple[str, ...] = ()  # kind=value, of the token or of the request's metadata
    stream: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    image_tokens_expected: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    slot_ms: int = 0
    slots: int = 1
    held_nano: int = 0
    posted_nano: int = 0
    claimed_nano: int | None = None  # only when it was above the hold
    marginal_nano: int = 0
    cloud_nano: int | None = None  # what these tokens would have cost in the cloud
    card_version: str = ""
    tier: str = ""
    service_tier: str = ""
    state: str = RowState.FINAL  # str, so that a later version's word does not make it unreadable
    outcome: str = Outcome.OK
    finish_reason: str | None = None
    flags: tuple[str, ...] = ()
    ttft_ms: float | None = None
    waited_ms: int = 0  # for a local slot, before it was sent
    total_ms: float | None = None
    attempts: int = 1
    drawn: tuple[str, ...] = ()

    @property
    def hold_id(self) -> str:
        return f"{self.request_id}.{self.attempt}"

    @property
    def saved_nano(self) -> int:
        """What answering on the premises saved; 0 in the cloud or without a price to compare."""
        if self.site is not Site.LOCAL or self.cloud_nano is None:
            return 0
        return self.cloud_nano - self.posted_nano


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Row).decode

CLAMPED = "clamped"  # the flag of a row whose claim was above its hold


def encode(row: Row) -> bytes:
    return _encode(row)


def decode(fields: Mapping[bytes, bytes]) -> Row:
    """A row from the fields of its stream entry: p posted, h held, r JSON, c claimed, s state,
    k counters.

    Raises msgspec.ValidationError or KeyError when the entry was not written by the ledger.
    """
    row = _decode(fields[b"r"])
    changes: dict[str, object] = {
        "posted_nano": int(fields[b"p"]),
        "held_nano": int(fields[b"h"]),
    }
    if b"c" in fields:
        changes["claimed_nano"] = int(fields[b"c"])
        changes["flags"] = (*row.flags, CLAMPED)
    if b"s" in fields:
        changes["state"] = RowState.UNRECONCILED
        changes["outcome"] = Outcome.EXPIRED
    if b"k" in fields:
        changes["drawn"] = tuple(fields[b"k"].decode().splitlines())
    return msgspec.structs.replace(row, **changes)
