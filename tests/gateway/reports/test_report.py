from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gateway.ledger.rows import Row, RowState
from gateway.reports.report import GROUPS, Line, Report, group_of, summarise
from policies.types import Site

SHANGHAI = ZoneInfo("Asia/Shanghai")


def row(**changes: Any) -> Row:
    base: dict[str, Any] = {
        "request_id": "yz-1",
        "attempt": 0,
        "at_ms": ms(2026, 11, 22, 8),
        "tenant": "acme",
        "model": "glm-4.6v",
        "site": Site.LOCAL,
        "target": "w1",
        "reason": "local_fits",
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "image_tokens": 60,
        "posted_nano": 1_000,
        "cloud_nano": 5_000,
    }
    return Row(**{**base, **changes})


def ms(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp() * 1000)  # type: ignore[arg-type, misc]


async def report(*rows: Row, by: str = "backend", zone: ZoneInfo = SHANGHAI) -> Report:
    async def stream() -> AsyncIterator[Row]:
        for one in rows:
            yield one

    return await summarise(stream(), by=by, zone=zone)


CLOUD = {"site": Site.CLOUD, "target": "doubao", "cloud_nano": 7_000, "posted_nano": 7_000}


async def test_the_figures_of_a_line_and_of_their_sum() -> None:
    found = await report(row(), row(tenant="b"), row(**CLOUD))
    here = Line(
        group="local:w1", requests=2, tokens_in=200, tokens_out=40, image_tokens=120,
        cost_nano=2_000, saved_nano=8_000,
    )  # fmt: skip
    there = Line(
        group="cloud:doubao", requests=1, tokens_in=100, tokens_out=20, image_tokens=60,
        cost_nano=7_000,
    )  # fmt: skip
    total = Line(
        group="total", requests=3, tokens_in=300, tokens_out=60, image_tokens=180,
        cost_nano=9_000, saved_nano=8_000,
    )  # fmt: skip
    assert found == Report(by="backend", lines=[there, here], total=total)


async def test_an_attempt_that_another_one_followed_costs_and_is_no_request() -> None:
    first = row(**CLOUD, final=False, state=RowState.UNRECONCILED)
    found = await report(first, row(attempt=1), by="tenant")
    (line,) = found.lines
    assert (line.requests, line.cost_nano, line.unreconciled) == (1, 8_000, 1)


async def test_a_local_answer_may_cost_more_than_the_cloud() -> None:
    """Then the saving is negative, and the report does not hide it."""
    found = await report(row(posted_nano=9_000))
    assert found.total.saved_nano == -4_000


async def test_no_rows_are_an_empty_report() -> None:
    assert await report() == Report(by="backend", lines=[], total=Line(group="total"))


async def test_days_end_at_the_midnight_of_the_zone() -> None:
    late = row(at_ms=ms(2026, 11, 22, 15, 59, 59))
    later = row(at_ms=ms(2026, 11, 22, 16))
    found = await report(later, late, by="day")
    assert [line.group for line in found.lines] == ["2026-11-22", "2026-11-23"]
    found = await report(later, late, by="day", zone=ZoneInfo("UTC"))
    assert [line.group for line in found.lines] == ["2026-11-22"]


@pytest.mark.parametrize(
    ("by", "name"),
    [
        ("backend", "local:w1"),
        ("tenant", "acme"),
        ("model", "glm-4.6v"),
        ("day", "2026-11-22"),
        ("label", "none"),
        ("reason", "local_fits"),
    ],
)
def test_the_group_of_a_row(by: str, name: str) -> None:
    assert by in GROUPS
    assert group_of(row(), by, SHANGHAI) == name


def test_a_group_that_does_not_exist() -> None:
    with pytest.raises(KeyError, match="planet"):
        group_of(row(), "planet", SHANGHAI)


async def test_a_correction_lowers_the_cost_and_settles_the_row_it_corrects() -> None:
    lost = row(**CLOUD, state="unreconciled")
    back = row(**{**CLOUD, "posted_nano": -3_000}, final=False, state=RowState.CORRECTION)
    (line,) = (await report(lost, back)).lines
    assert (line.requests, line.unreconciled) == (1, 0)
    assert line.cost_nano == lost.posted_nano - 3_000
