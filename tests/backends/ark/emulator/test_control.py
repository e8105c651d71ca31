"""The control plane over bare HTTP; what the vendor's own SDK makes of it is in ../test_control."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from backends.ark.emulator.server import Emulator
from tests.backends.ark.conftest import Start
from tests.backends.ark.emulator.test_billing import NOON_S, charged

SIGNED = {
    "Authorization": "HMAC-SHA256 Credential=AKTEST/20261125/cn-beijing/billing/request, "
    "SignedHeaders=host;x-date, Signature=" + "0" * 64,
    "X-Date": "20261125T040000Z",
}
MONTH = {"BillPeriod": "2026-11", "Limit": 300}


async def act(
    emulator: Emulator,
    action: str,
    asked: dict[str, Any] | None = None,
    *,
    version: str = "2022-01-01",
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    root = emulator.url.removesuffix("/api/v3")
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{root}/?Action={action}&Version={version}",
            json=asked or {},
            headers=SIGNED if headers is None else headers,
        ) as answer,
    ):
        return answer.status, await answer.json()


@pytest.fixture
async def emulator(start: Start) -> Emulator:
    """Seven periods of November 25 and one of December 1, long billed."""
    made = await start(clock=lambda: NOON_S + 30 * 86_400)
    for i in range(7):
        made.books.charge(charged(ended_s=NOON_S + 300 * i))
    made.books.charge(charged(ended_s=NOON_S + 6 * 86_400, endpoint="ep-a"))
    return made


async def test_rows_are_texts_and_pages_do_not_say_how_many_there_are(emulator: Emulator) -> None:
    status, found = await act(emulator, "ListBillDetail", {**MONTH, "Limit": 10})
    assert status == 200
    assert found["ResponseMetadata"]["Action"] == "ListBillDetail"
    result = found["Result"]
    assert (result["Total"], result["Limit"], result["Offset"]) == (-1, 10, 0)
    assert all(isinstance(value, str) for row in result["List"] for value in row.values())
    _, rest = await act(emulator, "ListBillDetail", {**MONTH, "Limit": 10, "Offset": 10})
    ids = [row["BillDetailId"] for row in (*result["List"], *rest["Result"]["List"])]
    assert len(ids) == len(set(ids)) == 14
    _, counted = await act(emulator, "ListBillDetail", {**MONTH, "NeedRecordNum": 1})
    assert counted["Result"]["Total"] == 14


async def test_a_row_says_what_it_is_for(emulator: Emulator) -> None:
    asked = {**MONTH, "BillPeriod": "2026-12", "ExpenseDate": "2026-12-01"}
    _, found = await act(emulator, "ListBillDetail", asked)
    row = next(r for r in found["Result"]["List"] if r["ElementCode"] == "input")
    assert (row["Count"], row["Price"], row["OriginalBillAmount"]) == ("1", "0.0008", "0.000800")
    assert row["ExpenseBeginTime"] == "2026-12-01 12:00:00"
    assert row["ExpenseEndTime"] == "2026-12-01 12:05:00"
    assert row["Product"] == "ark_bd"
    _, split = await act(emulator, "ListSplitBillDetail", asked)
    shares = {r["ElementCode"]: r for r in split["Result"]["List"]}
    assert shares["input"]["SplitItemID"] == "ep-a"
    assert shares["input"]["BillDetailId"] == row["BillDetailId"]
    assert shares["input"]["SplitItemRatio"] == "1.000000"


async def test_only_the_day_or_product_that_was_asked_for(emulator: Emulator) -> None:
    _, none = await act(emulator, "ListBillDetail", {**MONTH, "ExpenseDate": "2026-11-24"})
    assert none["Result"]["List"] == []
    _, other = await act(emulator, "ListBillDetail", {**MONTH, "Product": ["ECS"]})
    assert other["Result"]["List"] == []
    _, mine = await act(emulator, "ListBillDetail", {**MONTH, "Product": ["ark_bd"]})
    assert len(mine["Result"]["List"]) == 14


async def test_the_balance_is_what_the_bill_has_left(emulator: Emulator) -> None:
    _, found = await act(emulator, "QueryBalanceAcct")
    assert found["Result"]["AvailableBalance"] == "999.99"  # eight times 0.00088


async def test_a_month_by_product_is_cut_to_the_cent(emulator: Emulator) -> None:
    for _ in range(20):
        emulator.books.charge(charged(model="glm-5-2-260617"))
    _, found = await act(emulator, "ListBill", MONTH)
    months = {row["Product"]: row["PayableAmount"] for row in found["Result"]["List"]}
    assert months == {"ark_bd": "0.00", "ark_third_party": "0.16"}  # of 0.00616 and 0.1656
    status, _ = await act(emulator, "ListBill", {"Limit": 10})
    assert status == 400


async def test_usage_by_hour_and_by_day(emulator: Emulator) -> None:
    asked = {"QueryInterval": "Hour", "StartTime": "2026-11-25", "EndTime": "2026-11-25"}
    _, found = await act(emulator, "GetInferenceUsage", asked, version="2024-01-01")
    fields, records = found["Result"]["Fields"], found["Result"]["Records"]
    row = dict(zip(fields, records[0], strict=True))
    assert row["Time"] == "2026-11-25 12:00:00"
    assert (row["InputTokens"], row["OutputTokens"], row["ReqCnt"]) == ("7000", "70", "7")
    wide = {"QueryInterval": "Day", "StartTime": "2026-11-25", "EndTime": "2026-12-01"}
    _, found = await act(emulator, "GetInferenceUsage", wide, version="2024-01-01")
    assert [record[0] for record in found["Result"]["Records"]] == ["2026-11-25", "2026-12-01"]


@pytest.mark.parametrize(
    ("action", "asked", "status", "code"),
    [
        ("ListBillDetail", {"Limit": 10}, 400, "InvalidParameter"),
        ("ListBillDetail", {"BillPeriod": "2026-11"}, 400, "InvalidParameter"),
        ("ListBillDetail", {**MONTH, "Limit": 301}, 400, "InvalidParameter"),
        ("ListBillDetail", {**MONTH, "Offset": -1}, 400, "InvalidParameter"),
        ("ListBillDetail", {**MONTH, "ExpenseDate": "2026-12-01"}, 400, "InvalidParameter"),
        ("ListBillDetail", {**MONTH, "ExpenseDate": "yesterday"}, 400, "InvalidParameter"),
        ("ListBillDetail", {**MONTH, "GroupPeriod": 0}, 400, "InvalidParameter"),
        ("ListSplitBillDetail", {"Limit": 10}, 400, "InvalidParameter"),
        ("GetInferenceUsage", {}, 404, "InvalidActionOrVersion"),
        ("DeleteEverything", {}, 404, "InvalidActionOrVersion"),
    ],
)
async def test_errors_have_the_form_of_the_openapi(
    emulator: Emulator, action: str, asked: dict[str, Any], status: int, code: str
) -> None:
    found_status, found = await act(emulator, action, asked)
    assert found_status == status
    error = found["ResponseMetadata"]["Error"]
    assert error["Code"] == code
    assert isinstance(error["CodeN"], int)
    assert "Result" not in found


@pytest.mark.parametrize(
    "asked",
    [
        {"QueryInterval": "Minute", "StartTime": "2026-11-25", "EndTime": "2026-11-25"},
        {"QueryInterval": "Hour", "StartTime": "2026-11-25", "EndTime": "2026-11-24"},
        {"QueryInterval": "Day", "StartTime": "2026-10-01", "EndTime": "2026-11-25"},
        {"QueryInterval": "Day", "StartTime": "1", "EndTime": "2"},
    ],
)
async def test_usage_of_no_time_is_refused(emulator: Emulator, asked: dict[str, Any]) -> None:
    status, found = await act(emulator, "GetInferenceUsage", asked, version="2024-01-01")
    assert (status, found["ResponseMetadata"]["Error"]["Code"]) == (400, "InvalidParameter")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer ark-key"},
        {"Authorization": SIGNED["Authorization"]},  # no date
        {**SIGNED, "Authorization": SIGNED["Authorization"][:-1]},
    ],
)
async def test_a_call_must_be_signed(emulator: Emulator, headers: dict[str, str]) -> None:
    status, found = await act(emulator, "QueryBalanceAcct", headers=headers)
    assert (status, found["ResponseMetadata"]["Error"]["Code"]) == (401, "SignatureDoesNotMatch")


async def test_an_unknown_access_key_is_refused_when_keys_are_listed(start: Start) -> None:
    emulator = await start(billing={"access_keys": ["AKOTHER"]})
    status, found = await act(emulator, "QueryBalanceAcct")
    assert (status, found["ResponseMetadata"]["Error"]["Code"]) == (401, "InvalidAccessKey")
    open_one = await start(billing={"access_keys": ["AKTEST"]})
    assert (await act(open_one, "QueryBalanceAcct"))[0] == 200


async def test_splitting_must_be_switched_on(start: Start) -> None:
    emulator = await start(clock=lambda: NOON_S + 86_400, billing={"split": False})
    emulator.books.charge(charged())
    _, found = await act(emulator, "ListSplitBillDetail", MONTH)
    assert found["Result"]["List"] == []
    assert (await act(emulator, "ListBillDetail", MONTH))[1]["Result"]["List"]


async def test_a_reset_empties_the_bill(emulator: Emulator) -> None:
    emulator.reset()
    assert (await act(emulator, "ListBillDetail", MONTH))[1]["Result"]["List"] == []


async def test_what_is_wrong_on_purpose_can_be_looked_up(start: Start) -> None:
    emulator = await start(billing={"faults": {"missing": 1.0}})
    emulator.books.charge(charged())
    root = emulator.url.removesuffix("/api/v3")
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{root}/emulator/bill/faults") as answer,
    ):
        found = (await answer.json())["injected"]
    assert [each["kind"] for each in found] == ["missing", "missing"]
