from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from gateway.ledger.rows import Row
from gateway.reports.utilisation import Used, used, utilisation
from policies.server_cost import ServerRate
from policies.types import Site
from tests.gateway.reports.test_report import row

RATE = ServerRate(full_nano_per_s=1_000, marginal_nano_per_s=400)
START_MS = 1_795_000_000_000
HOUR_MS = 3_600_000


async def rows(*found: Row) -> AsyncIterator[Row]:
    for one in found:
        yield one


def local(target: str, at_ms: int, slot_ms: int, **more: Any) -> Row:
    known = {"posted_nano": slot_ms // 4, "marginal_nano": slot_ms // 10, "cloud_nano": None}
    return row(target=target, at_ms=START_MS + at_ms, slot_ms=slot_ms, slots=4, **known, **more)


async def test_servers_by_name_and_all_of_them_also_those_that_nobody_asked() -> None:
    found = utilisation(
        await used(
            rows(
                local("w2", 0, HOUR_MS),
                local("w1", 60_000, HOUR_MS),
                local("w1", 90_000, HOUR_MS),
                row(site=Site.CLOUD, at_ms=START_MS - 5, slot_ms=9),
            )
        ),
        rate=RATE,
        workers=4,
        since_ms=None,
        until_ms=START_MS + HOUR_MS,
    )
    assert (found.from_ms, found.to_ms, found.servers) == (START_MS, START_MS + HOUR_MS, 4)
    assert found.rate == RATE
    assert [(line.target, line.answers, line.utilisation) for line in found.lines] == [
        ("w1", 2, 0.5), ("w2", 1, 0.25),
    ]  # fmt: skip
    total = found.total
    assert (total.answers, total.busy_s, total.utilisation) == (3, 2_700.0, 0.1875)
    assert total.cost_nano == 4 * 3_600 * 600 + 2_700 * 400
    assert total.carried_nano == 3 * HOUR_MS // 4
    assert total.unused_nano == total.cost_nano - total.carried_nano
    assert total.marginal_nano == 3 * HOUR_MS // 10


async def test_no_rows_and_a_given_start() -> None:
    nothing = await used(rows())
    assert nothing == Used(uses=[], first_ms=None)
    found = utilisation(nothing, rate=RATE, workers=0, since_ms=5, until_ms=1_005)
    assert (found.lines, found.total.cost_nano, found.from_ms) == ([], 0, 5)
    found = utilisation(nothing, rate=RATE, workers=2, since_ms=None, until_ms=1_005)
    assert (found.from_ms, found.total.utilisation) == (1_005, 0.0)


async def test_what_some_of_the_rows_cannot_say_is_not_said() -> None:
    """The rest of the time may have been another tenant's."""
    some = await used(rows(local("w1", 0, HOUR_MS)))
    found = utilisation(
        some, rate=RATE, workers=1, since_ms=None, until_ms=START_MS + HOUR_MS, whole=False
    )
    for line in (found.lines[0], found.total):
        assert (line.cost_nano, line.unused_nano) == (None, None)
        assert (line.utilisation, line.carried_nano) == (0.25, HOUR_MS // 4)
