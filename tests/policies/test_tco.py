from __future__ import annotations

from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from policies.tco import Job, Study, study
from policies.tco_parts import (
    MONTH_S,
    Server,
    breakeven,
)

CNY = 10**9
HOUR_S = 3_600


def server(**changes: Any) -> Server:
    known: dict[str, Any] = {
        "price_cny": Decimal(36_000),
        "residual_cny": Decimal(0),
        "years": Decimal(3),
        "idle_watts": Decimal(100),
        "load_watts": Decimal(600),
        "cny_per_kwh": Decimal("0.8"),
        "upkeep_cny_per_year": Decimal(1_200),
        "slots": 4,
    }
    return Server(**{**known, **changes})


def jobs(count: int, *, gap_ms: int = 1000, slot_ms: int = 1000, nano: int = 10**6) -> list[Job]:
    return [
        Job(at_ms=n * gap_ms, slot_ms=slot_ms, cloud_nano=nano, local=True) for n in range(count)
    ]


def studied(traffic: list[Job], machine: Server | None = None, **more: Any) -> Study:
    known: dict[str, Any] = {"span_s": HOUR_S, "wait_ms_max": 0, "bought": date(2026, 11, 1)}
    return study(traffic, machine or server(), **{**known, **more})


def test_a_month_by_hand() -> None:
    """One request a second, a second each, for an hour: one of four slots is always busy."""
    found = studied(jobs(HOUR_S))
    months = Fraction(MONTH_S, HOUR_S)
    assert found.month_requests == MONTH_S
    assert found.cloud_nano == 3_600 * 10**6 * months == 2_628 * CNY
    one, two, four = found.scenarios
    assert (one.overflow_bp, one.busy_bp, two.busy_bp, four.busy_bp) == (0, 2_500, 1_250, 625)
    power = Fraction(100 + 125, 1000) * 730 * Fraction("0.8") * CNY
    assert one.power_nano == power
    assert one.total_nano == 1_100 * CNY + power
    assert one.saving_nano == found.cloud_nano - one.total_nano
    # in cash: no writing off, but upkeep of 100 a month
    assert one.cash_nano == found.cloud_nano - power - 100 * CNY
    assert one.payback_months == Decimal("15.1")
    assert one.payback_day == date(2028, 2, 4)
    assert found.capacity_requests == 4 * MONTH_S
    each = Fraction(500, 1000) / 4 / 3600 * Fraction("0.8") * CNY
    assert found.breakeven_requests == breakeven(
        1_100 * CNY + Fraction("58.4") * CNY, Fraction(10**6), each
    )


def test_what_does_not_find_a_slot_is_paid_in_the_cloud() -> None:
    """Eight at once, four slots, no patience: half of them; twice the servers: none."""
    traffic = [job for n in range(100) for job in [Job(
        at_ms=n * 10_000, slot_ms=5_000, cloud_nano=10**6, local=True)] * 8]  # fmt: skip
    one, two, four = studied(traffic, span_s=1_000).scenarios
    assert (one.overflow_bp, two.overflow_bp, four.overflow_bp) == (5_000, 0, 0)
    assert one.overflow_nano * 2 == studied(traffic, span_s=1_000).cloud_nano
    (patient,) = studied(traffic, span_s=1_000, wait_ms_max=5_000, servers=(1,)).scenarios
    assert (patient.overflow_bp, patient.wait_p99_ms) == (0, 5_000)


def test_a_queue_that_grows_for_ever_is_no_plan() -> None:
    found = studied(jobs(1_000, slot_ms=8_000), span_s=1_000).all_local
    assert [(one.servers, one.keeps_up) for one in found] == [(1, False), (2, False), (4, True)]


def test_cheap_traffic_never_pays_a_server() -> None:
    found = studied(jobs(100, nano=1))
    assert found.breakeven_requests is None
    assert all(one.payback_months is None and one.saving_nano < 0 for one in found.scenarios)
    assert all(one.payback_day is None for one in found.scenarios)


def test_each_assumption_moves_the_answer_its_way() -> None:
    found = studied(jobs(HOUR_S))
    base = found.scenarios[0].saving_nano
    by = {(one.what, one.percent): one.saving_nano for one in found.sensitivities}
    assert by["cloud_price", 50] < base < by["cloud_price", 200]
    assert by["volume", 50] < base < by["volume", 200]
    assert by["kwh_price", 50] > base > by["kwh_price", 200]
    assert by["server_price", 50] > base > by["server_price", 200]
    assert by["years", 50] < base < by["years", 200]
    assert by["server_price", 200] == base - 1_000 * CNY


def test_more_traffic_costs_the_cloud_more_in_proportion() -> None:
    found = studied(jobs(1_000), span_s=1_000)
    point = {one.factor_percent: one for one in found.volumes}
    assert point[200].cloud_nano == 2 * point[100].cloud_nano == 4 * point[50].cloud_nano
    assert point[100].totals_nano == tuple(one.total_nano for one in found.scenarios)


def test_even_traffic_has_no_spread_and_bursts_have() -> None:
    assert studied(jobs(2_000), span_s=2_000).spread_nano == 0
    burst = jobs(1_000, gap_ms=1)
    assert studied(burst, span_s=2_000).spread_nano > studied(burst, span_s=2_000).cloud_nano


@pytest.mark.parametrize(
    ("traffic", "span_s", "slots"), [([], 10, 4), (jobs(20), 10, 4), (jobs(2), 10, 0)]
)
def test_what_cannot_be_studied(traffic: list[Job], span_s: int, slots: int) -> None:
    with pytest.raises(ValueError, match=r"span|needs"):
        studied(traffic, server(slots=slots), span_s=span_s)
