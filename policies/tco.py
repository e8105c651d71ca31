"""Buy or rent: what the same traffic costs in the cloud, on servers of one's own, and on both.

Money is exact: fractions of nano-CNY until a figure is given out, then whole nano-CNY. A month is a
twelfth of a year of 365 days. The traffic of the rows is taken to go on as it was: a month is the
span of the rows times as much as fits. How much of it n servers would have carried comes from a
replay of its arrivals (policies.slots); the rest overflows and is paid at its cloud price.

    fixed  = (price - residual) / life + upkeep        whether anybody asks or not
    power  = (idle + (load - idle) x utilisation) x hours x price per kWh
    total  = servers x (fixed + power) + cloud price of what overflows
    saving = all in the cloud - total

A pay-back counts money as it is spent: the servers' price against what a month saves in cloud bills
after power and upkeep. Nothing is discounted and no interest is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final

from policies.slots import Occupancy, occupy
from policies.tco_parts import (
    MONTH_S,
    Server,
    breakeven,
    fixed_per_month,
    payback,
    power_per_month,
)
from policies.types import NANO_PER_CNY, Value

BLOCKS: Final = 20  # the span is cut into, to see how much its parts differ
Z95: Final = Fraction(196, 100)  # a normal distribution has 95 % within so many deviations
BASIS: Final = 10_000  # shares are in basis points


class Job(Value, frozen=True, kw_only=True):
    """One request as the books have it. slot_ms: it occupies a local slot for so long, measured or
    estimated. cloud_nano: its price in the cloud. local: where it was answered."""

    at_ms: int
    slot_ms: int
    cloud_nano: int
    local: bool


class Scenario(Value, frozen=True, kw_only=True):
    """A month with so many servers. Money in nano-CNY a month; shares in basis points.

    overflow_bp: requests that went to the cloud.  busy_bp: of the slots' time
    cash_nano: what is saved in cash each month once the servers are there
    payback_months: None: never.   wait_p99_ms: of those served here
    """

    servers: int
    overflow_bp: int
    overflow_nano: int
    fixed_nano: int
    power_nano: int
    total_nano: int
    saving_nano: int
    cash_nano: int
    payback_months: Decimal | None
    payback_day: date | None
    busy_bp: int
    wait_p99_ms: int


class AllLocal(Value, frozen=True, kw_only=True):
    """A month without any cloud: everything waits for a slot. keeps_up: the queue does not grow
    without end."""

    servers: int
    total_nano: int
    busy_bp: int
    keeps_up: bool
    wait_p99_ms: int


class Point(Value, frozen=True, kw_only=True):
    """A month with `factor` (in percent) of the traffic. totals_nano: by scenario, in order."""

    factor_percent: int
    requests: int
    cloud_nano: int
    totals_nano: tuple[int, ...]


class Sensitivity(Value, frozen=True, kw_only=True):
    """One assumption changed, all others as they are. Figures of the scenario looked at."""

    what: str  # cloud_price, volume, kwh_price, server_price, years
    percent: int  # of what was assumed
    saving_nano: int
    payback_months: Decimal | None


class Study(Value, frozen=True, kw_only=True):
    """Everything that a decision needs. `cloud_nano` and its spread: a month, all in the cloud.

    spread_nano: half the width of the 95 % range, from how much twentieths of the span differ
    breakeven_requests: a month with fewer is cheaper in the cloud than with one server; None: it
    is at every volume. capacity_requests: what one server carries in a month, never idle
    """

    span_s: int
    requests: int
    month_requests: int
    cloud_nano: int
    spread_nano: int
    scenarios: tuple[Scenario, ...]
    all_local: tuple[AllLocal, ...]
    breakeven_requests: int | None
    capacity_requests: int
    volumes: tuple[Point, ...]
    sensitivities: tuple[Sensitivity, ...]


# ------------------------------------------------------------------ the study


class _Traffic:
    """Jobs in the order of arrival, and how often their span fits into a month."""

    def __init__(self, jobs: Sequence[Job], span_s: int, *, percent: int = 100) -> None:
        start = jobs[0].at_ms
        self.at_ms = [(job.at_ms - start) * 100 // percent for job in jobs]
        self.slot_ms = [job.slot_ms for job in jobs]
        self.cloud = [job.cloud_nano for job in jobs]
        self.span_ms = Fraction(span_s * 1000 * 100, percent)
        self.per_month = Fraction(MONTH_S * 1000) / self.span_ms
        self.cloud_month = sum(self.cloud) * self.per_month
        self._seen: dict[tuple[int, int | None], Occupancy] = {}

    def seen(self, slots: int, wait_ms_max: int | None) -> Occupancy:
        """The replay through so many slots; each is done once."""
        key = (slots, wait_ms_max)
        if key not in self._seen:
            self._seen[key] = occupy(self.at_ms, self.slot_ms, slots=slots, wait_ms_max=wait_ms_max)
        return self._seen[key]

    def overflow(self, seen: Occupancy) -> Fraction:
        """Nano-CNY a month for what does not find a slot."""
        lost = sum(nano for nano, out in zip(self.cloud, seen.overflowed, strict=True) if out)
        return lost * self.per_month


def study(
    jobs: Sequence[Job],
    server: Server,
    *,
    span_s: int,
    wait_ms_max: int,
    bought: date,
    servers: Sequence[int] = (1, 2, 4),
) -> Study:
    """Everything, from the jobs of a span.

    jobs: at least one, by arrival. span_s: how long the traffic took, at least up to its last job.
    wait_ms_max: how long one waits for a slot before it overflows. bought: when the servers were or
    will be paid. Raises ValueError for no jobs, a server without slots, or a span that is too
    short.
    """
    if not jobs or server.slots < 1:
        raise ValueError("a study needs traffic and a server with at least one slot")
    if span_s < 1 or span_s * 1000 < jobs[-1].at_ms - jobs[0].at_ms:
        raise ValueError("the span is shorter than the traffic")
    by_volume = {p: _Traffic(jobs, span_s, percent=p) for p in {*VOLUMES, *CHANGES}}
    now = by_volume[100]
    scenarios = tuple(_scenario(now, server, n, wait_ms_max, bought) for n in servers)
    watched = max(scenarios, key=lambda s: (s.saving_nano, -s.servers))
    return Study(
        span_s=span_s,
        requests=len(jobs),
        month_requests=round(len(jobs) * now.per_month),
        cloud_nano=round(now.cloud_month),
        spread_nano=_spread(jobs, span_s, now.per_month),
        scenarios=scenarios,
        all_local=tuple(_all_local(now, server, n) for n in servers),
        breakeven_requests=_breakeven(now, server),
        capacity_requests=_capacity(now, server),
        volumes=tuple(
            _point(by_volume[percent], server, servers, wait_ms_max, percent) for percent in VOLUMES
        ),
        sensitivities=tuple(_sensitivities(by_volume, server, watched.servers, wait_ms_max)),
    )


VOLUMES: Final = (10, 25, 50, 75, 100, 150, 200, 400)
CHANGES: Final = (50, 80, 125, 200)


def _scenario(
    traffic: _Traffic,
    server: Server,
    count: int,
    wait_ms_max: int,
    bought: date | None,
    *,
    price: Fraction = Fraction(1),  # of the cloud, as a share of what it is
) -> Scenario:
    seen = traffic.seen(count * server.slots, wait_ms_max)
    busy = min(Fraction(1), seen.busy_ms / (traffic.span_ms * count * server.slots))
    overflow, cloud = price * traffic.overflow(seen), price * traffic.cloud_month
    fixed, power = count * fixed_per_month(server), count * power_per_month(server, busy)
    upkeep = count * Fraction(server.upkeep_cny_per_year) / 12 * NANO_PER_CNY
    cash = cloud - overflow - power - upkeep
    months = payback(count * Fraction(server.price_cny) * NANO_PER_CNY, cash)
    day = None
    if months is not None and bought is not None:
        day = bought + timedelta(days=math.ceil(Fraction(months) * 365 / 12))
    return Scenario(
        servers=count,
        overflow_bp=round(BASIS * Fraction(sum(seen.overflowed), len(seen.overflowed))),
        overflow_nano=round(overflow),
        fixed_nano=round(fixed),
        power_nano=round(power),
        total_nano=round(fixed + power + overflow),
        saving_nano=round(cloud - fixed - power - overflow),
        cash_nano=round(cash),
        payback_months=months,
        payback_day=day,
        busy_bp=round(BASIS * busy),
        wait_p99_ms=seen.wait_at(0.99),
    )


def _all_local(traffic: _Traffic, server: Server, count: int) -> AllLocal:
    slots = count * server.slots
    seen = traffic.seen(slots, None)
    offered = sum(traffic.slot_ms) / (traffic.span_ms * slots)
    busy = min(Fraction(1), offered)
    total = count * (fixed_per_month(server) + power_per_month(server, busy))
    return AllLocal(
        servers=count,
        total_nano=round(total),
        busy_bp=round(BASIS * busy),
        keeps_up=offered < 1,
        wait_p99_ms=seen.wait_at(0.99),
    )


def _local_each(traffic: _Traffic, server: Server) -> Fraction:
    """Nano-CNY that answering one request more adds to the power bill."""
    slot_s = Fraction(sum(traffic.slot_ms), 1000 * len(traffic.slot_ms))
    extra_kw = (Fraction(server.load_watts) - Fraction(server.idle_watts)) / 1000 / server.slots
    return extra_kw * slot_s / 3600 * Fraction(server.cny_per_kwh) * NANO_PER_CNY


def _breakeven(traffic: _Traffic, server: Server) -> int | None:
    """Of one server that carries everything, up to what it can carry."""
    idle = fixed_per_month(server) + power_per_month(server, Fraction(0))
    each = Fraction(sum(traffic.cloud), len(traffic.cloud))
    return breakeven(idle, each, _local_each(traffic, server))


def _capacity(traffic: _Traffic, server: Server) -> int:
    mean_ms = Fraction(sum(traffic.slot_ms), len(traffic.slot_ms))
    return int(server.slots * MONTH_S * 1000 / mean_ms) if mean_ms else 0


def _point(
    traffic: _Traffic, server: Server, servers: Sequence[int], wait_ms_max: int, percent: int
) -> Point:
    totals = [_scenario(traffic, server, n, wait_ms_max, None).total_nano for n in servers]
    return Point(
        factor_percent=percent,
        requests=round(len(traffic.at_ms) * traffic.per_month),
        cloud_nano=round(traffic.cloud_month),
        totals_nano=tuple(totals),
    )


def _sensitivities(
    by_volume: Mapping[int, _Traffic], server: Server, count: int, wait_ms_max: int
) -> list[Sensitivity]:
    found = []
    for what in ("cloud_price", "volume", "kwh_price", "server_price", "years"):
        for percent in CHANGES:
            changed, machine, price = by_volume[100], server, Fraction(1)
            if what == "cloud_price":
                price = Fraction(percent, 100)
            elif what == "volume":
                changed = by_volume[percent]
            else:
                machine = _changed(server, what, percent)
            seen = _scenario(changed, machine, count, wait_ms_max, None, price=price)
            found.append(
                Sensitivity(
                    what=what,
                    percent=percent,
                    saving_nano=seen.saving_nano,
                    payback_months=seen.payback_months,
                )
            )
    return found


def _changed(server: Server, what: str, percent: int) -> Server:
    share = Decimal(percent) / 100
    parts = {
        "price_cny": server.price_cny,
        "residual_cny": server.residual_cny,
        "years": server.years,
        "idle_watts": server.idle_watts,
        "load_watts": server.load_watts,
        "cny_per_kwh": server.cny_per_kwh,
        "upkeep_cny_per_year": server.upkeep_cny_per_year,
    }
    touched = {
        "kwh_price": ("cny_per_kwh",),
        "server_price": ("price_cny", "residual_cny"),
        "years": ("years",),
    }[what]
    changed = {name: value * share if name in touched else value for name, value in parts.items()}
    return Server(slots=server.slots, **changed)


def _spread(jobs: Sequence[Job], span_s: int, per_month: Fraction) -> int:
    """Half the 95 % range of a month's cloud price: 1.96 standard errors of the sum of BLOCKS
    blocks, taken as independent. It knows nothing of weeks and seasons outside the span."""
    sums = [0] * BLOCKS
    start = jobs[0].at_ms
    for job in jobs:
        block = min(BLOCKS - 1, (job.at_ms - start) * BLOCKS // (span_s * 1000))
        sums[block] += job.cloud_nano
    mean = Fraction(sum(sums), BLOCKS)
    variance = sum(((part - mean) ** 2 for part in sums), Fraction(0)) / (BLOCKS - 1)
    # the root of a whole number of nano-CNY squared, exact to one
    return round(Z95 * math.isqrt(round(variance * BLOCKS)) * per_month)
