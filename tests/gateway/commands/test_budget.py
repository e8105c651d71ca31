from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.commands import budget
from gateway.ledger.views import BudgetStatus
from policies.budget import Period, cny
from policies.types import MONEY_NANO_MAX
from tests.gateway.commands.kit import Admin, alone

DAY = BudgetStatus(
    scope="backend:cloud",
    period=Period.DAY,
    zone="Asia/Shanghai",
    limit_nano=50_000_000,
    posted_nano=1,
    held_nano=20_000_000,
    resets_at_s=1_795_276_800.0,
)
TOTAL = BudgetStatus(
    scope="tenant:鱼嘴",
    period=Period.TOTAL,
    zone="UTC",
    limit_nano=MONEY_NANO_MAX,
    posted_nano=0,
    held_nano=0,
    resets_at_s=None,
)


@pytest.fixture
def admin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Admin:
    alone(monkeypatch, tmp_path)
    made = Admin([DAY, TOTAL])
    monkeypatch.setattr(budget, "AdminClient", made)
    return made


# ------------------------------------------------------------------ amounts


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0), ("0.05", 50_000_000), ("1e-9", 1), ("1E3", 10**12), (" 2 ", 2 * 10**9),
        ("0.1", 100_000_000), ("-0", 0), ("0.3000000000000000000000000000000000", 300_000_000),
        ("9007199", 9_007_199 * 10**9),
    ],
)  # fmt: skip
def test_an_amount_is_read_exactly(text: str, nano: int) -> None:
    assert budget.nano(text) == nano


@pytest.mark.parametrize(
    "text",
    [
        "", "x", "¥5", "1,5", "0x10", "-0.01", "-1", "NaN", "sNaN", "Infinity", "-inf",
        "0.0000000001", "1.0000000000000000000000000000001", "1e-99999999",
        "9007200", "1e30", "1e999999999", "123456789012345678901234567890.5",
    ],
)  # fmt: skip
def test_an_amount_that_is_none_is_refused_and_never_rounded(text: str) -> None:
    with pytest.raises(ValueError, match=r"CNY|decimals"):
        budget.nano(text)


@given(st.integers(0, 9_007_199 * 10**9))
def test_what_is_printed_can_be_given_back(nano: int) -> None:
    assert budget.nano(cny(nano)) == nano


# ------------------------------------------------------------------ the command


def test_set(admin: Admin) -> None:
    assert budget.main(["set", "backend:cloud", "--limit-cny", "0.05", "--period", "day"]) == 0
    asked = {"scope": "backend:cloud", "limit_nano": 50_000_000, "period": "day"}
    more: dict[str, object] = {"zone": None, "start_day": None, "options": {}}
    assert admin.asked == [("PUT", "/admin/budgets", {**asked, **more})]


def test_set_with_everything(admin: Admin) -> None:
    words = "set label:team=v --limit-cny 1 --period week --start-day 7 --zone UTC --soft-only"
    words += " --soft 80:prefer_local --soft 90%:cheaper --pace --alert-at 50,100 --no-forecast"
    assert budget.main([*words.split(), "--by", "ada"]) == 0
    asked = admin.asked[0][2]
    assert (asked["scope"], asked["period"], asked["start_day"]) == ("label:team=v", "week", 7)
    assert asked["options"] == {
        "soft": [
            {"at_percent": 80, "steer": "prefer_local"}, {"at_percent": 90, "steer": "cheaper"},
        ],
        "alerts": [50, 100], "hard": False, "pace": True, "forecast": False,
    }  # fmt: skip
    assert admin.actor == "ada"
    assert budget.main(["set", "tenant:a", "--limit-cny", "1", "--soft", "none", "--hard"]) == 0
    assert admin.asked[1][2]["options"] == {"soft": [], "hard": True}


@pytest.mark.parametrize("soft", ["80", "80:sing", "x:cheaper"])
def test_a_soft_limit_that_is_none(
    admin: Admin, soft: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert budget.main(["set", "tenant:a", "--limit-cny", "1", "--soft", soft]) == 2
    assert "percent" in capsys.readouterr().err.lower()
    assert not admin.asked


@pytest.mark.parametrize("act", ["freeze", "unfreeze", "reset"])
def test_acts(admin: Admin, act: str) -> None:
    assert budget.main([act, "tenant:a", "--period", "day"]) == 0
    named = {"scope": "tenant:a", "period": "day"}
    assert admin.asked == [("POST", f"/admin/budgets/{act}", named)]


def test_raise(admin: Admin) -> None:
    assert budget.main(["raise", "tenant:a", "--by-cny", "0.5"]) == 0
    named = {"scope": "tenant:a", "period": "month", "add_nano": 500_000_000}
    assert admin.asked == [("POST", "/admin/budgets/raise", named)]


def test_remove(admin: Admin) -> None:
    assert budget.main(["remove", "tenant:a"]) == 0
    assert admin.asked == [("DELETE", "/admin/budgets", {"scope": "tenant:a", "period": "month"})]


def test_list_as_a_table(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert budget.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == [
        "backend:cloud", "day", "0.05", "0.000000001", "0.02", "40", "%",
        "2026-11-21T16:00:00+00:00", "-",
    ]  # fmt: skip
    assert lines[3].split()[-2] == "never"


def test_list_as_json_with_exact_amounts(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert budget.main(["list", "--json"]) == 0
    day, total = json.loads(capsys.readouterr().out, parse_float=Decimal)
    assert day == {
        "scope": "backend:cloud",
        "period": "day",
        "zone": "Asia/Shanghai",
        "limit": Decimal("0.05"),
        "posted": Decimal("0.000000001"),
        "held": Decimal("0.02"),
        "limit_nano": 50_000_000,
        "posted_nano": 1,
        "held_nano": 20_000_000,
        "resets_at": "2026-11-21T16:00:00+00:00",
        "start_day": 1,
        "frozen": False,
        "options": {},
    }
    assert total["limit"] == Decimal("9007199.254740991")
    assert total["resets_at"] is None


def test_no_budgets_say_how_to_set_one(
    monkeypatch: pytest.MonkeyPatch, admin: Admin, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "AdminClient", Admin([]))
    assert budget.main(["list"]) == 0
    assert "yuzui budget set" in capsys.readouterr().out


def test_a_refusal_is_printed_and_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, admin: Admin, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budget, "AdminClient", Admin(error="there is no such budget"))
    assert budget.main(["remove", "tenant:a"]) == 1
    assert capsys.readouterr().err == "yuzui budget: there is no such budget\n"


def test_a_bad_amount_asks_nobody(admin: Admin, capsys: pytest.CaptureFixture[str]) -> None:
    assert budget.main(["set", "tenant:a", "--limit-cny", "a lot"]) == 2
    assert "'a lot' is not an amount" in capsys.readouterr().err
    assert not admin.asked


@pytest.mark.parametrize(
    "argv", [[], ["set"], ["set", "x"], ["list", "--period", "week"], ["raise", "tenant:a"]]
)
def test_wrong_usage(admin: Admin, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        budget.main(argv)
    assert ended.value.code == 2
    assert "usage: yuzui budget" in capsys.readouterr().err
