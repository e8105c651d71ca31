"""What the tests of the report share: rows of a day with a quiet night and a busy noon."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

from gateway.ledger.rows import Row
from gateway.tco.gather import Traffic, gather
from gateway.tco.sheet import Context, Sheet, sheet
from gateway.tco.words import LANGUAGES
from policies.tco import Study, study
from policies.tco_parts import Server
from policies.types import Reason, Site
from tests.gateway.ledger.kit import NOW_S, row

START_MS = int(1000 * NOW_S)


def server(**changes: Any) -> Server:
    known: dict[str, Any] = {
        "price_cny": Decimal(33_000),
        "residual_cny": Decimal(3_000),
        "years": Decimal(3),
        "idle_watts": Decimal(90),
        "load_watts": Decimal(600),
        "cny_per_kwh": Decimal("0.8"),
        "upkeep_cny_per_year": Decimal(2_000),
        "slots": 4,
    }
    return Server(**{**known, **changes})


def rows(count: int = 400, *, gap_ms: int = 4_000, seed: int = 1) -> Iterator[Row]:
    """Answers that take 5 ms a prompt token in a hundred and 25 ms an output token; every fourth
    one went to the cloud."""
    rng, at_ms = random.Random(seed), START_MS
    for number in range(count):
        at_ms += rng.randrange(2 * gap_ms) if number else 0
        prompt, completion = rng.randrange(100, 3_000), rng.randrange(10, 500)
        price = prompt * 800 + completion * 2_700
        known: dict[str, Any] = {
            "at_ms": at_ms,
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "cloud_nano": price,
            "card_version": "ark-2026-10",
        }
        if number % 4 == 3:
            yield row(f"yz-{number}.0", price, **known)
        else:
            yield row(
                f"yz-{number}.0", price // 9, site=Site.LOCAL, target="w1",
                reason=Reason.PINNED if number % 8 == 0 else Reason.LOCAL_FITS,
                slot_ms=prompt // 20 + completion * 25, **known,
            )  # fmt: skip


def context(**changes: Any) -> Context:
    known: dict[str, Any] = {
        "server": server(),
        "zone": "Asia/Shanghai",
        "made": date(2026, 11, 26),
        "bought": date(2026, 11, 26),
        "version": "0.1.0",
        "wait_s": 2.0,
    }
    return Context(**{**known, **changes})


def studied(traffic: Traffic | None = None) -> tuple[Study, Traffic]:
    traffic = traffic or gather(rows())
    made = study(
        traffic.jobs, server(), span_s=traffic.span_s, wait_ms_max=2_000, bought=date(2026, 11, 26)
    )
    return made, traffic


def page(lang: str = "en") -> Sheet:
    made, traffic = studied()
    return sheet(made, traffic, context(), LANGUAGES[lang])
