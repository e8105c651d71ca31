"""The arithmetic of having a server: what it costs a month, and when that is worth it.

Exact: fractions of nano-CNY. A month is a twelfth of a year of 365 days.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Final

from policies.types import NANO_PER_CNY, Value

MONTH_S: Final = 365 * 86_400 // 12
HOURS_PER_MONTH: Final = Fraction(MONTH_S, 3600)
MONTHS_MAX: Final = 1200  # a pay-back later than in a century is none


class Server(Value, frozen=True, kw_only=True):
    """One server, and what it costs to have and to run. Years until it is written off."""

    price_cny: Decimal
    residual_cny: Decimal
    years: Decimal
    idle_watts: Decimal
    load_watts: Decimal
    cny_per_kwh: Decimal
    upkeep_cny_per_year: Decimal
    slots: int


def fixed_per_month(server: Server) -> Fraction:
    """Nano-CNY a month that one server costs by standing there: written off, and kept up."""
    lost = Fraction(server.price_cny) - Fraction(server.residual_cny)
    cny = lost / (12 * Fraction(server.years)) + Fraction(server.upkeep_cny_per_year) / 12
    return cny * NANO_PER_CNY


def power_per_month(server: Server, busy: Fraction) -> Fraction:
    """Nano-CNY a month for the power of one server whose slots are busy for this share of time."""
    idle, load = Fraction(server.idle_watts), Fraction(server.load_watts)
    kw = (idle + (load - idle) * min(busy, Fraction(1))) / 1000
    return kw * HOURS_PER_MONTH * Fraction(server.cny_per_kwh) * NANO_PER_CNY


def payback(price: Fraction, saved_per_month: Fraction) -> Decimal | None:
    """Months until what is saved each month has paid the price, rounded up to a tenth; None when
    nothing is saved, or not within a century."""
    if saved_per_month <= 0 or price / saved_per_month > MONTHS_MAX:
        return None
    return Decimal(math.ceil(price / saved_per_month * 10)) / 10


def breakeven(fixed: Fraction, cloud_each: Fraction, local_each: Fraction) -> int | None:
    """Requests a month from which a fixed cost is cheaper than paying each; None: never."""
    if cloud_each <= local_each:
        return None
    return math.ceil(fixed / (cloud_each - local_each))


def slot_ms_of(
    samples: Sequence[tuple[int, int, int]],
) -> tuple[Fraction, Fraction] | None:
    """Milliseconds of a slot per prompt token and per completion token: least squares without a
    constant, over (prompt tokens, completion tokens, slot_ms) that were measured.

    A negative coefficient has no meaning; then all time is laid on the completion tokens. None
    when there is nothing to learn from.
    """
    pp = sum(p * p for p, _, _ in samples)
    cc = sum(c * c for _, c, _ in samples)
    pc = sum(p * c for p, c, _ in samples)
    pt = sum(p * t for p, _, t in samples)
    ct = sum(c * t for _, c, t in samples)
    determinant = pp * cc - pc * pc
    if determinant > 0:
        prompt = Fraction(pt * cc - ct * pc, determinant)
        completion = Fraction(ct * pp - pt * pc, determinant)
        if prompt >= 0 and completion >= 0:
            return prompt, completion
    tokens = sum(c for _, c, _ in samples)
    if not tokens:
        return None
    return Fraction(0), Fraction(sum(t for _, _, t in samples), tokens)
