from __future__ import annotations

from decimal import Decimal

import pytest
from msgspec.structs import replace

from gateway.tco.gather import gather
from gateway.tco.sheet import best_of, percent, plain, servers, sheet, yuan
from gateway.tco.words import EN, ZH
from tests.gateway.tco.kit import context, page, rows, studied

CNY = 10**9


def test_the_sheet_says_the_figures_of_the_study() -> None:
    made, traffic = studied()
    found = sheet(made, traffic, context(), EN)
    best = best_of(made)
    assert found.tiles[0][1] == f"{yuan(made.cloud_nano)} CNY"
    assert found.tiles[1][1] == f"{yuan(best.total_nano)} CNY"
    table = found.tables[0]
    assert [row[0] for row in table.rows] == [
        "all in the cloud", "1 server", "2 servers", "4 servers",
    ]  # fmt: skip
    for row, one in zip(table.rows[1:], made.scenarios, strict=True):
        assert row[7] == yuan(one.total_nano)
        assert row[2] == percent(one.overflow_bp)
    assert "400 ledger rows" in found.period
    assert "price card ark-2026-10" in found.made
    assumed = {row[0]: row[1:] for row in found.tables[3].rows}
    assert assumed["price of a server"] == ["33,000 CNY", "settings, local_cost"]
    assert assumed["power idle, loaded"][0] == "90 W, 600 W"


def test_too_little_traffic_is_called_provisional() -> None:
    assert "Provisional: the traffic covers only" in page().verdict
    made, traffic = studied(gather(rows(400, gap_ms=2_000_000)))
    assert "Provisional" not in sheet(made, traffic, context(), EN).verdict


def test_buy_or_rent() -> None:
    made, traffic = studied()
    poor = replace(best_of(made), saving_nano=-5 * CNY, payback_months=None, payback_day=None)
    rented = sheet(replace(made, scenarios=(poor,)), traffic, context(), EN)
    assert rented.verdict.startswith("Rent.")
    assert "5.00 CNY a month more" in rented.verdict
    rich = replace(
        poor, saving_nano=500 * CNY, payback_months=Decimal("3.5"),
        payback_day=context().made,
    )  # fmt: skip
    bought = sheet(replace(made, scenarios=(rich,)), traffic, context(), EN)
    assert "costs 500 CNY less than renting" in bought.verdict
    assert "3.5 months (2026-11-26)" in bought.verdict


def test_a_replay_says_that_it_is_one() -> None:
    made, traffic = studied()
    notes = sheet(made, traffic, context(time_scale=20), EN).notes
    assert "20 times faster" in notes[0]


def test_chinese() -> None:
    found = page("zh")
    assert (found.lang, found.title) == ("zh-CN", ZH["title"])
    assert found.tables[0].rows[1][0] == "1 台服务器"
    assert servers(1, ZH) == "1 台服务器"


def test_figures_of_settings_have_no_empty_zeros() -> None:
    assert plain(Decimal("33000.0")) == "33,000"
    assert plain(Decimal("0.80")) == "0.8"
    assert plain(Decimal(0)) == "0"


@pytest.mark.parametrize(
    ("nano", "said"),
    [
        (0, "0"),
        (5 * CNY // 1000, "0.00"),
        (12_345_000_000, "12.34"),
        (1_234_567 * CNY + CNY // 2, "1,234,568"),
        (-150 * CNY, "-150"),
    ],
)
def test_money_as_people_read_it(nano: int, said: str) -> None:
    assert yuan(nano) == said
