"""Books and bills of a few figures: a price of 1 for input, a tenth for cached, 10 for output."""

from __future__ import annotations

from typing import Any

from policies.bill import KINDS, Billed, Booked, Counted, Lane, Open, Options, Three

LANE = Lane("m", "")
HOUR = 500_000 * 3_600_000  # some full hour
MINUTES = 60_000
NANO = (1_000, 100, 10_000)


def cost(tokens: Three) -> Three:
    fresh, cached, out = tokens
    return fresh * NANO[0], cached * NANO[1], out * NANO[2]


class Prices:
    """One tier up to 1,000 tokens of prompt, another above it."""

    def tier_of(self, hold: Open, tokens: Three) -> str | None:
        return None if hold.card == "none" else tier(tokens)

    def nano(self, hold: Open, tier: str, tokens: Three) -> Three | None:
        return cost(tokens) if tier in ("small", "large") else None


def tier(tokens: Three) -> str:
    return "small" if tokens[0] + tokens[1] <= 1_000 else "large"


def booked(name: str, tokens: Three, ended_ms: int = HOUR, lane: Lane = LANE) -> Booked:
    return Booked(
        hold_id=name, ended_ms=ended_ms, lane=lane, tier=tier(tokens), tokens=tokens,
        nano=cost(tokens),
    )  # fmt: skip


def billed(tokens: Three, at_ms: int = HOUR, **changes: Any) -> list[Billed]:
    """The items of one period and tier; kinds without tokens are not billed."""
    nano = cost(tokens)
    return [
        Billed(
            **{
                "period_ms": at_ms,
                "lane": LANE,
                "tier": tier(tokens),
                "kind": KINDS[i],
                "tokens": tokens[i],
                "nano": nano[i],
                "payable_nano": nano[i],
                **changes,
            }
        )
        for i in range(3)
        if tokens[i]
    ]


def hold(name: str, ended_ms: int = HOUR, to_ms: int | None = None, nano: int = 10**9) -> Open:
    return Open(
        hold_id=name, from_ms=ended_ms, to_ms=ended_ms if to_ms is None else to_ms, lane=LANE,
        posted_nano=nano, card="c",
    )  # fmt: skip


def counted(tokens: Three, hour_ms: int = HOUR, lane: Lane = LANE) -> Counted:
    return Counted(hour_ms=hour_ms, lane=lane, tokens=tokens, requests=1)


def options(**changes: Any) -> Options:
    return Options(**{"from_ms": HOUR, "to_ms": HOUR + 24 * 3_600_000, **changes})
