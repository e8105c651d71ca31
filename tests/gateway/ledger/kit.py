"""What the tests of the ledger share: short ways to say row, hold and books."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.ledger.ledger import HoldRequest, Ledger, Row, Till
from policies.types import Site

NOW_S = 1_795_338_000.0  # 2026-11-22 09:00:00 UTC, 17:00 in Shanghai
ZONE = "Asia/Shanghai"
LIFE_S = 300.0


def row(hold_id: str, cost_nano: int = 0, **more: Any) -> Row:
    request_id, _, attempt = hold_id.rpartition(".")
    known: dict[str, Any] = {
        "request_id": request_id,
        "attempt": int(attempt),
        "at_ms": int(1000 * NOW_S),
        "tenant": "acme",
        "model": "glm-4.6v",
        "site": Site.CLOUD,
        "target": "doubao-seed-1-6-vision-250815",
        "reason": "pool_full",
        "posted_nano": cost_nano,
    }
    return Row(**{**known, **more})


def hold(
    hold_id: str,
    amount_nano: int,
    *scopes: str,
    sent: bool = True,
    now_s: float = NOW_S,
    life_s: float = LIFE_S,
) -> HoldRequest:
    return HoldRequest(
        id=hold_id,
        amount_nano=amount_nano,
        scopes=scopes or ("tenant:acme",),
        sent=sent,
        deadline_s=now_s + life_s,
        draft=row(hold_id),
    )


@asynccontextmanager
async def books(url: str, instance: str = "gw-1", **options: Any) -> AsyncIterator[Ledger]:
    """A ledger whose clock is the `now_s` of each call."""
    ledger = await Ledger.connect(url, instance=instance, **{"server_clock": False, **options})
    try:
        yield ledger
    finally:
        await ledger.close()


async def rows_of(ledger: Ledger) -> list[Row]:
    return [found async for found in ledger.rows()]


async def settled_up(ledger: Ledger) -> Till:
    """The till, after checking it against the rows: nothing held, every unit in a row."""
    till = await ledger.till()
    assert till.held_nano == 0
    assert till.posted_nano == sum(found.posted_nano for found in await rows_of(ledger))
    return till
