"""Rate limits: requests and tokens a minute, bursts, concurrency.

Limits belong to an account and a model name, whatever its version and whichever endpoint is
called; an endpoint may have caps of its own. Tokens are deducted on arrival, from the length of
the input and an estimate of the output, and corrected when the answer ends: a 429 can come with
quota left. A request that fails still counts as a request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from backends.ark.emulator.faults import Refused
from backends.ark.emulator.settings import Burst

_MINUTES_KEPT = 4  # this one and the three that the burst guard looks back


class Minute(msgspec.Struct):
    """Counts of one window."""

    index: int
    requests: int = 0
    tokens: int = 0


class Bucket:
    """Requests and tokens of one name in windows of a minute."""

    def __init__(self) -> None:
        self.minutes: deque[Minute] = deque(maxlen=_MINUTES_KEPT)

    def at(self, index: int) -> Minute:
        """The window `index`, which is the current one."""
        if not self.minutes or self.minutes[-1].index != index:
            self.minutes.append(Minute(index))
        return self.minutes[-1]

    def tokens_in(self, index: int) -> int:
        return next((one.tokens for one in self.minutes if one.index == index), 0)


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What one admitted request holds until it ends."""

    buckets: tuple[Bucket, ...]
    minute: int
    tokens: int
    account: str


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What one request asks of the limits."""

    account: str
    name: str  # of the model, without its date
    rpm: int | None
    tpm: int | None
    endpoint: str | None = None
    endpoint_rpm: int | None = None
    endpoint_tpm: int | None = None
    burst_code: str


class Limiter:
    """All limits of the emulator. `clock` gives seconds and may be a test's own."""

    def __init__(
        self,
        *,
        window_s: float,
        concurrency: int | None,
        burst: Burst,
        clock: Callable[[], float],
    ) -> None:
        self._window_s = window_s
        self._concurrency = concurrency
        self._burst = burst
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._running: dict[str, int] = {}

    def window_left_s(self) -> float:
        """Seconds until the current minute ends."""
        return self._window_s - self._clock() % self._window_s

    def running(self, account: str) -> int:
        return self._running.get(account, 0)

    def count_request(self, wish: Wish) -> None:
        """Counts one request. Raises Refused when the minute has none left."""
        minute = self._minute()
        shared, own = self._buckets_of(wish)
        full = wish.rpm is not None and shared.at(minute).requests >= wish.rpm
        if own is not None and wish.endpoint_rpm is not None:
            full = full or own.at(minute).requests >= wish.endpoint_rpm
        if full:
            raise Refused(
                "RateLimitExceeded.EndpointRPMExceeded"
                if wish.endpoint
                else "ModelAccountRpmRateLimitExceeded"
            )
        for bucket in (shared, own):
            if bucket is not None:
                bucket.at(minute).requests += 1

    def take(self, wish: Wish, tokens: int) -> Taken:
        """Deducts the expected tokens and a place among the running. Raises Refused."""
        if self._concurrency is not None and self.running(wish.account) >= self._concurrency:
            raise Refused("InflightBatchsizeExceeded")
        minute = self._minute()
        shared, own = self._buckets_of(wish)
        full = wish.tpm is not None and shared.at(minute).tokens + tokens > wish.tpm
        if own is not None and wish.endpoint_tpm is not None:
            full = full or own.at(minute).tokens + tokens > wish.endpoint_tpm
        if full:
            raise Refused(
                "RateLimitExceeded.EndpointTPMExceeded"
                if wish.endpoint
                else "ModelAccountTpmRateLimitExceeded"
            )
        if self._bursts(shared, minute, tokens):
            raise Refused(wish.burst_code)
        buckets = (shared,) if own is None else (shared, own)
        for bucket in buckets:
            bucket.at(minute).tokens += tokens
        self._running[wish.account] = self.running(wish.account) + 1
        return Taken(buckets=buckets, minute=minute, tokens=tokens, account=wish.account)

    def release(self, taken: Taken, tokens: int) -> None:
        """Ends a request: gives its place back and books what it really used."""
        self._running[taken.account] -= 1
        for bucket in taken.buckets:
            for minute in bucket.minutes:
                if minute.index == taken.minute:
                    minute.tokens += tokens - taken.tokens

    def _bursts(self, bucket: Bucket, minute: int, tokens: int) -> bool:
        if not self._burst.enabled:
            return False
        wanted = bucket.at(minute).tokens + tokens
        if wanted - bucket.tokens_in(minute - 1) > self._burst.growth_tokens:
            return True
        before = bucket.tokens_in(minute - 3)
        if before < self._burst.share_floor_tokens:
            return False
        return wanted > before * (1 + self._burst.growth_share)

    def _minute(self) -> int:
        return int(self._clock() // self._window_s)

    def _buckets_of(self, wish: Wish) -> tuple[Bucket, Bucket | None]:
        shared = self._buckets.setdefault((wish.account, wish.name), Bucket())
        if wish.endpoint is None:
            return shared, None
        return shared, self._buckets.setdefault((wish.account, wish.endpoint), Bucket())
