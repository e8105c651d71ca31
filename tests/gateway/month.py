"""A month of cloud requests, booked by the gateway's prices and billed by the emulator's.

Nothing waits: the emulator's clock is a number, its bill is filled directly, and only reading the
bill goes over HTTP and through the vendor's SDK. Requests end by two clocks that differ by up to
two seconds. Some are cancelled and some belong to a gateway that died, so that they stand in the
books at their bound; of those some were never billed.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import date, timedelta

from msgspec.structs import replace

from backends.ark.emulator.books import Charged
from backends.ark.emulator.server import Emulator
from backends.ark.emulator.settings import BillFaults, Billing, Settings
from gateway.ledger.rows import Outcome, Row, RowState
from gateway.reports.reconcile import day_range_ms
from policies.price import PriceBook, Rate, cost, quote
from policies.types import Site, Usage

FIRST = date(2026, 10, 1)  # the card changes on the 6th
ENDPOINTS = {
    "ep-20260901000000-aaaaa": "doubao-seed-2-0-pro-260215",
    "ep-20260901000000-bbbbb": "doubao-seed-1-8-251228",
}
# What is asked, how often, and at which service tier. Every kind of band is among them.
TARGETS = (
    ("doubao-seed-2-1-pro-260915", 3, "default"),
    ("doubao-seed-2-1-turbo-260628", 2, "default"),
    ("doubao-seed-2-1-turbo-260628", 1, "fast"),
    ("doubao-seed-2-0-pro-260215", 3, "default"),
    ("doubao-seed-1-8-251228", 4, "default"),
    ("doubao-seed-1-6-vision-250815", 4, "default"),
    ("glm-4-7-251222", 3, "default"),
    ("ep-20260901000000-aaaaa", 2, "default"),
    ("ep-20260901000000-bbbbb", 2, "default"),
)
CANCELLED, LOST, UNBILLED = 0.012, 0.002, 0.002
SKEW_MS = 2_000


class Month:
    """rows: what the books have. truth: what each open hold really cost, in nano-CNY."""

    def __init__(
        self, book: PriceBook, *, seed: int, requests: int, days: int, faults: float
    ) -> None:
        self.book = book
        self.days = [FIRST + timedelta(days=n) for n in range(days)]
        self.now_s = 0.0
        part = faults / 4
        wrong = BillFaults(seed=seed, missing=part, changed=part, doubled=part, foreign=part)
        settings = Settings(port=0, billing=Billing(faults=wrong))
        self.emulator = Emulator(settings, clock=lambda: self.now_s)
        self.rows: list[Row] = []
        self.truth: dict[str, int] = {}
        self._rng = random.Random(seed)
        start_ms, end_ms = day_range_ms(self.days[0])[0], day_range_ms(self.days[-1])[1]
        self.now_s = end_ms / 1000 + 3 * 86_400  # everything is billed
        weights = [weight for _, weight, _ in TARGETS]
        for n, at_ms in enumerate(sorted(self._rng.choices(range(start_ms, end_ms), k=requests))):
            target, _, tier = self._rng.choices(TARGETS, weights)[0]
            self._request(f"r{n}", at_ms, target, tier)

    async def all_rows(self) -> AsyncIterator[Row]:
        for row in self.rows:
            yield row

    def _usage(self, tier: str) -> Usage:
        rng = self._rng
        prompt = rng.choice([rng.randint(1, 4_000), rng.randint(1, 60_000), 32_000, 32_001,
                             rng.randint(100_000, 200_000)])  # fmt: skip
        cached = rng.choice([0, 0, rng.randint(0, prompt - 1)])
        completion = rng.choice([rng.randint(1, 150), 200, 201, rng.randint(1, 4_000)])
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=cached,
            service_tier=tier,
        )

    def _request(self, request_id: str, at_ms: int, target: str, tier: str) -> None:
        rng, card = self._rng, self.book.at(at_ms)
        model = ENDPOINTS.get(target, target)
        usage, rate = self._usage(tier), Rate.FAST if tier == "fast" else Rate.ONLINE
        fate = rng.random()
        cancelled = tier == "default" and fate < CANCELLED
        lost = tier == "default" and CANCELLED <= fate < CANCELLED + LOST
        unbilled = (cancelled or lost) and rng.random() < UNBILLED / (CANCELLED + LOST)
        if cancelled or lost:  # it ended early, and nobody knows when
            completion = rng.randint(1, 1 + usage.completion_tokens // 2)
            usage = Usage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=completion,
                cached_tokens=usage.cached_tokens,
                service_tier=tier,
            )
        total_ms = rng.randint(200, 60_000)
        priced = cost(card, model, usage, at_ms=at_ms, rate=rate)
        row = Row(
            request_id=request_id,
            attempt=0,
            at_ms=at_ms,
            tenant=f"t{rng.randint(1, 5)}",
            model="glm-4.6v",
            site=Site.CLOUD,
            target=target,
            reason="pool_full",
            card_version=card.version,
        )
        if cancelled or lost:
            bound = quote(
                card,
                model,
                prompt_tokens_max=usage.prompt_tokens * 3,
                output_tokens_max=4_096,
            )
            self.rows.append(_open(row, bound.nano, None if lost else total_ms))
            self.truth[row.hold_id] = 0 if unbilled else priced.nano
        else:
            self.rows.append(_known(row, usage, priced.nano, priced.tier, total_ms))
        if not unbilled:
            skew_ms = rng.randint(-SKEW_MS, SKEW_MS)
            self._charge(row, usage, model, (at_ms + total_ms + skew_ms) / 1000)

    def _charge(self, row: Row, usage: Usage, model: str, ended_s: float) -> None:
        self.emulator.books.charge(
            Charged(
                seq=0,
                server_id="",
                client_request_id=row.request_id,
                account="default",
                model=model,
                endpoint=row.target if row.target.startswith("ep-") else None,
                service_tier=usage.service_tier,
                stream=False,
                started_s=row.at_ms / 1000,
                ended_s=ended_s,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                image_tokens=0,
                completion_tokens=usage.completion_tokens,
                reasoning_tokens=0,
                state="answered",
            )
        )


def _open(row: Row, nano: int, total_ms: int | None) -> Row:
    """Booked at its bound. total_ms None: its gateway died."""
    changes = {
        "posted_nano": nano,
        "held_nano": nano,
        "total_ms": total_ms,
        "state": RowState.UNRECONCILED,
        "outcome": Outcome.EXPIRED if total_ms is None else Outcome.CLIENT_GONE,
    }
    return replace(row, **changes)


def _known(row: Row, usage: Usage, nano: int, tier: str, total_ms: int) -> Row:
    changes = {
        "posted_nano": nano,
        "total_ms": total_ms,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "service_tier": usage.service_tier,
        "tier": tier,
    }
    return replace(row, **changes)
