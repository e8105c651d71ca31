"""What answering on one's own server costs: all of it, and what one more answer adds.

A server costs money whether it works or not: what it loses in value, its upkeep, and the power it
draws when idle. Working, it draws more. So there are two honest figures for an answer that held a
slot for a while:

    full      its share of everything:  (amortisation + upkeep + power under load) / slots
    marginal  what it added:            (power under load - power when idle) / slots

The books post the full cost. At full use the answers together then carry the whole server; what
they do not carry of a server that was idle is the cost of the unused capacity, and shown as that.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from policies.types import NANO_PER_CNY, Value

SECONDS_PER_YEAR = 365 * 86_400
JOULES_PER_KWH = 3_600_000


class ServerRate(Value, frozen=True, kw_only=True):
    """What a second of one server costs in nano-CNY, shared by its slots."""

    full_nano_per_s: int
    marginal_nano_per_s: int = 0

    @property
    def idle_nano_per_s(self) -> int:
        """What a second without work costs."""
        return self.full_nano_per_s - self.marginal_nano_per_s


class SlotCost(Value, frozen=True, kw_only=True):
    """Of one answer, in nano-CNY."""

    full_nano: int
    marginal_nano: int


def server_rate(
    *,
    price_cny: Decimal,
    residual_cny: Decimal,
    years: Decimal,
    idle_watts: Decimal,
    load_watts: Decimal,
    cny_per_kwh: Decimal,
    upkeep_cny_per_year: Decimal,
) -> ServerRate:
    """What a server costs per second, rounded up to whole nano-CNY.

        amortisation = (price - residual) / (years * 365 days)
        power        = watts * price per kWh / 3,600,000

    Raises ValueError for figures that make no sense.
    """
    if years <= 0:
        raise ValueError("years must be above 0")
    if not 0 <= residual_cny <= price_cny:
        raise ValueError("the residual value must be between nothing and the price")
    if not 0 <= idle_watts <= load_watts:
        raise ValueError("the idle watts must be between nothing and the watts under load")
    if min(cny_per_kwh, upkeep_cny_per_year) < 0:
        raise ValueError("prices cannot be negative")
    joule_cny = Fraction(cny_per_kwh) / JOULES_PER_KWH
    marginal = Fraction(load_watts - idle_watts) * joule_cny
    idle = (
        Fraction(price_cny - residual_cny) / (Fraction(years) * SECONDS_PER_YEAR)
        + Fraction(upkeep_cny_per_year) / SECONDS_PER_YEAR
        + Fraction(idle_watts) * joule_cny
    )
    return ServerRate(
        full_nano_per_s=_up((idle + marginal) * NANO_PER_CNY),
        marginal_nano_per_s=_up(marginal * NANO_PER_CNY),
    )


def slot_cost(rate: ServerRate, *, slots: int, slot_ms: int) -> SlotCost:
    """Occupying one of a server's slots for a time, rounded up; a negative time costs nothing."""
    return SlotCost(
        full_nano=slot_nano(rate.full_nano_per_s, slots=slots, slot_ms=slot_ms),
        marginal_nano=slot_nano(rate.marginal_nano_per_s, slots=slots, slot_ms=slot_ms),
    )


def slot_nano(nano_per_s: int, *, slots: int, slot_ms: int) -> int:
    """One slot's share of what a server costs in a time, rounded up."""
    return -(-nano_per_s * max(slot_ms, 0) // (1000 * max(slots, 1)))


def _up(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)
