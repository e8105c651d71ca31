from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.server_cost import ServerRate, SlotCost, server_rate, slot_cost, slot_nano

# 36,000 CNY with 6,000 left after 3 years, 100 to 400 W at 0.80 CNY a kWh, 1,000 CNY a year
PARTS: dict[str, Decimal] = {
    "price_cny": Decimal(36_000),
    "residual_cny": Decimal(6_000),
    "years": Decimal(3),
    "idle_watts": Decimal(100),
    "load_watts": Decimal(400),
    "cny_per_kwh": Decimal("0.80"),
    "upkeep_cny_per_year": Decimal(1_000),
}


def test_full_and_marginal_cost_follow_their_formula() -> None:
    year_s = 365 * 86_400
    found = server_rate(**PARTS)
    per_s = 30_000 / (3 * year_s) + 1_000 / year_s + 0.4 * 0.8 / 3600
    assert found.full_nano_per_s == pytest.approx(per_s * 1e9, abs=1)
    assert found.marginal_nano_per_s == pytest.approx(0.3 * 0.8 / 3600 * 1e9, abs=1)
    assert found.idle_nano_per_s == pytest.approx(per_s * 1e9 - 0.3 * 0.8 / 3.6e-6, abs=2)


def test_a_whole_year_at_full_use_carries_the_whole_server() -> None:
    """8 slots, all of them taken for a year: amortisation, upkeep and power under load."""
    cost = slot_cost(server_rate(**PARTS), slots=8, slot_ms=365 * 86_400_000)
    whole_cny = 10_000 + 1_000 + 0.4 * 0.8 * 24 * 365
    assert 8 * cost.full_nano / 1e9 == pytest.approx(whole_cny, rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"years": Decimal(0)}, "years"),
        ({"residual_cny": Decimal(40_000)}, "residual"),
        ({"residual_cny": Decimal(-1)}, "residual"),
        ({"idle_watts": Decimal(401)}, "idle watts"),
        ({"idle_watts": Decimal(-1)}, "idle watts"),
        ({"cny_per_kwh": Decimal(-1)}, "negative"),
        ({"upkeep_cny_per_year": Decimal(-1)}, "negative"),
    ],
)
def test_figures_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        server_rate(**{**PARTS, **wrong})


def test_a_slot_is_rounded_up_and_time_is_never_negative() -> None:
    rate = ServerRate(full_nano_per_s=1001, marginal_nano_per_s=7)
    assert [slot_nano(1001, slots=1, slot_ms=ms) for ms in (-5, 0, 1, 999, 1000, 1001)] == [
        0, 0, 2, 1000, 1001, 1003,
    ]  # fmt: skip
    assert slot_cost(rate, slots=8, slot_ms=1000) == SlotCost(full_nano=126, marginal_nano=1)
    assert slot_nano(1001, slots=0, slot_ms=1000) == 1001


@given(st.integers(0, 10**9), st.integers(1, 512), st.integers(0, 10**8))
def test_the_slots_of_a_server_together_cost_at_least_the_server(
    nano: int, slots: int, slot_ms: int
) -> None:
    """Rounding goes up, and by less than one unit a slot."""
    together = slots * slot_nano(nano, slots=slots, slot_ms=slot_ms)
    server = nano * slot_ms / 1000
    assert server <= together + 1e-6 * server
    assert together < server * (1 + 1e-9) + slots
