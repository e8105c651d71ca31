from __future__ import annotations

from decimal import Decimal

from policies.article import call_nano, checks, month_nano

CNY = 10**9


def test_a_call_and_a_month_of_them() -> None:
    assert call_nano() == 9_250_000  # 0.00925 CNY
    assert month_nano() == 27_750 * CNY


def test_what_the_article_prints_and_what_comes_out() -> None:
    found = {check.what: check for check in checks()}
    assert (found["call"].printed, found["call"].agrees) == (1_850_000, False)
    assert (found["month"].printed, found["month"].agrees) == (55_500 * CNY, False)
    assert found["payback_stated"].agrees
    assert found["payback_stated"].found == Decimal("2.5")
    assert found["payback_corrected"].found == Decimal("5.5")  # 5.4054, rounded up to a tenth
    assert found["rent_below"].found == Decimal("92.5") * CNY
    assert found["breakeven"].found == 450_451


def test_the_printed_month_does_not_follow_from_the_printed_call_either() -> None:
    printed = {check.what: check.printed for check in checks()}
    call, month = printed["call"], printed["month"]
    assert isinstance(call, int)
    assert call * 100_000 * 30 == 5_550 * CNY != month
