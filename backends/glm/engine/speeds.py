"""How busy and how fast the engine is, measured from its own steps. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

EWMA_WEIGHT = 0.3  # of the newest request: a few requests forget an unusual one
STEP_WEIGHT = 0.02  # of the newest step: about the last fifty
RETRY_AFTER_MAX_S = 60  # beyond a minute the estimate says nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLoad:
    """A snapshot for load reports. Speeds are tokens a second, 0.0: not measured; decoding of one
    request, and of all together. `preparing`: those of the waiting that are not ready for a slot
    yet, as their pictures are being decoded. `kv_tokens_used`: entries allotted to running
    requests, `waiting_tokens`: those that waiting ones will need. The last four count since the
    start: tokens of prompts and those of them that were not read again, pictures and those that
    were not encoded again."""

    slots: int = 0
    running: int = 0
    waiting: int = 0
    preparing: int = 0
    waiting_tokens: int = 0
    queue_limit: int = 0
    decode_tokens_per_s: float = 0.0
    decode_tokens_per_s_total: float = 0.0
    prefill_tokens_per_s: float = 0.0
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    pictures: int = 0
    cached_pictures: int = 0


@dataclass(slots=True)
class Rate:
    """Amount per second: a ratio of two exponentially weighted sums, so that a request of 5 tokens,
    which mostly measures overhead, weighs less than one of 2,000."""

    weight: float = EWMA_WEIGHT
    amount: float = 0.0
    seconds: float = 0.0

    def add(self, amount: float, seconds: float) -> None:
        """Take in one sample."""
        self.amount += self.weight * (amount - self.amount)
        self.seconds += self.weight * (seconds - self.seconds)

    @property
    def per_second(self) -> float:
        """0.0 before the first sample."""
        return self.amount / self.seconds if self.seconds > 0 else 0.0


@dataclass(slots=True)
class Speeds:
    """`prefill`: prompt tokens of all together, pictures looked at and all; `decode`: steps, so
    tokens of one request while it decodes; `total`: tokens of all requests in those steps;
    `requests`: how many one slot serves."""

    reading_s: float = 0.0  # since when prompts are being read
    prefill: Rate = field(default_factory=Rate)
    decode: Rate = field(default_factory=lambda: Rate(weight=STEP_WEIGHT))
    total: Rate = field(default_factory=lambda: Rate(weight=STEP_WEIGHT))
    requests: Rate = field(default_factory=Rate)

    def step(self, *, decoded: int, seconds: float) -> None:
        """Take in one step that gave `decoded` requests a token each."""
        if decoded:
            self.decode.add(1, seconds)
            self.total.add(decoded, seconds)

    def read(self, prompts: Sequence[int], now_s: float) -> None:
        """Prompts of so many tokens were read since the last ones were, or since they began."""
        if prompts:
            self.prefill.add(sum(prompts), now_s - self.reading_s)
            self.reading_s = now_s

    def load(self) -> EngineLoad:
        """A snapshot without counts."""
        return EngineLoad(
            decode_tokens_per_s=round(self.decode.per_second, 2),
            decode_tokens_per_s_total=round(self.total.per_second, 2),
            prefill_tokens_per_s=round(self.prefill.per_second, 2),
        )

    def retry_after_s(self, ahead: int, slots: int) -> int:
        """Seconds until `ahead` requests have left `slots` slots, rounded up; 1 if unmeasured."""
        rate = self.requests.per_second * slots
        turn_s = ahead / rate if rate > 0 else 1.0
        return min(RETRY_AFTER_MAX_S, max(1, math.ceil(turn_s)))
