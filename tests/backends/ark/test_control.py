"""Bills and usage through the vendor's own SDK, from the emulator."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from backends.ark.control import ArkControl, BillRow, ControlError, read_row, read_usage
from backends.ark.emulator.server import Emulator
from tests.backends.ark.conftest import Start
from tests.backends.ark.emulator.test_billing import NOON_S, charged
from tests.ports import free_port

DAY = date(2026, 11, 25)
EP = "ep-20260901000000-aaaaa"


def control(emulator: Emulator, **keys: str) -> ArkControl:
    given = {"access_key": "AKTEST", "secret_key": "secret", **keys}
    return ArkControl(**given, host=emulator.url.removesuffix("/api/v3"))


@pytest.fixture
async def emulator(start: Start) -> Emulator:
    made = await start(clock=lambda: NOON_S + 86_400)
    made.books.charge(charged(cached_tokens=400))
    made.books.charge(charged(endpoint=EP, prompt_tokens=500))
    made.books.charge(charged(ended_s=NOON_S + 86_400))  # of the next day
    return made


async def test_the_bill_of_a_day(emulator: Emulator) -> None:
    rows = {row.element: row for row in (await control(emulator).bill(DAY)).rows}
    assert rows["input"] == BillRow(
        id=rows["input"].id,
        start_s=int(NOON_S),
        model="doubao-seed-1-6-vision",
        service="online",
        element="input",
        input_over=0,
        output_over=0,
        tokens=1_100,
        list_cny=Decimal("0.000880"),
        payable_cny=Decimal("0.000880"),
    )
    assert {element: row.tokens for element, row in rows.items()} == {
        "input": 1_100, "cached_input": 400, "output": 20,
    }  # fmt: skip


async def test_the_split_names_custom_endpoints_only(emulator: Emulator) -> None:
    found = (await control(emulator).splits(DAY)).rows
    shares = {(row.element, row.endpoint): row.tokens for row in found}
    assert shares == {
        ("input", ""): 600, ("input", EP): 500, ("cached_input", ""): 400,
        ("output", ""): 10, ("output", EP): 10,
    }  # fmt: skip


async def test_usage_and_balance(emulator: Emulator) -> None:
    asked = control(emulator)
    found = {row.endpoint: row for row in await asked.usage(DAY)}
    mine = found[""]
    assert (mine.start_s, mine.model, mine.input_tokens, mine.cached_tokens) == (
        int(NOON_S), "doubao-seed-1-6-vision", 1_000, 400,
    )  # fmt: skip
    assert found[EP].input_tokens == 500
    assert await asked.balance() == Decimal("999.99")


async def test_every_page_is_read_once(start: Start) -> None:
    """301 periods: two pages, the second of one row; each row comes once."""
    emulator = await start(clock=lambda: NOON_S + 86_400)
    for i in range(301):
        row = charged(ended_s=NOON_S - 43_200 + 200 * i, completion_tokens=0, prompt_tokens=1 + i)
        emulator.books.charge(row)
    rows = (await control(emulator).bill(DAY)).rows
    assert sum(row.tokens for row in rows) == sum(range(1, 302))
    assert len({row.id for row in rows}) == len(rows)


async def test_a_refusal_is_an_error_with_its_code(start: Start) -> None:
    emulator = await start(billing={"access_keys": ["AKOTHER"]})
    for call in (control(emulator).bill(DAY), control(emulator).usage(DAY)):
        with pytest.raises(ControlError, match=r"The access key is not known") as caught:
            await call
        assert caught.value.code == "InvalidAccessKey"
        assert "secret" not in repr(caught.value)


async def test_a_server_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ArkControl(access_key="a", secret_key="b", host=f"http://127.0.0.1:{free_port()}")
    asked._billing.api_client.configuration.num_max_retries = 0
    with pytest.raises(ControlError, match="QueryBalanceAcct: cannot be asked"):
        await asked.balance()


def test_without_keys_nothing_is_asked() -> None:
    for keys in ({"access_key": "", "secret_key": "b"}, {"access_key": "a", "secret_key": ""}):
        with pytest.raises(ValueError, match="access key"):
            ArkControl(**keys)


# ---- what cannot be read is not dropped


def row(**changes: Any) -> SimpleNamespace:
    base = {
        "bill_detail_id": "D1", "expense_begin_time": "2026-11-25 12:00:00", "product": "ark_bd",
        "factor": '{"model":"m","service":"online","input_over":"32","output_over":"0.2"}',
        "element_code": "input", "count": "1.5", "original_bill_amount": "0.0012",
        "payable_amount": "0.001", "expense_date": "2026-11-25",
    }  # fmt: skip
    return SimpleNamespace(**{**base, **changes})


def test_a_row_is_read_exactly() -> None:
    found = read_row(row())
    assert found is not None
    assert (found.input_over, found.output_over, found.tokens) == (32_000, 200, 1_500)
    assert (found.list_cny, found.payable_cny) == (Decimal("0.0012"), Decimal("0.001"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"factor": '{"type":"zanya"}'},
        {"factor": None},
        {"count": "0.0005"},
        {"count": "many"},
        {"count": "NaN"},
        {"expense_begin_time": "yesterday"},
        {"original_bill_amount": None},
        {"element_code": "images"},
    ],
)
async def test_what_is_no_row_of_tokens_counts_under_its_product(
    emulator: Emulator, wrong: dict[str, Any]
) -> None:
    asked = control(emulator)
    assert read_row(row(**wrong)) is None
    one = SimpleNamespace(list=[row(**wrong), row(bill_detail_id="D2", **wrong)])
    found = await asked._pages("ListBillDetail", DAY, lambda _: one, lambda **_: None)
    assert found.rows == []
    assert found.others == {"ark_bd": Decimal("0.002")}


async def test_a_row_that_stands_on_two_pages_counts_once(emulator: Emulator) -> None:
    page = SimpleNamespace(list=[row()] * 300)
    pages = iter([page, page, SimpleNamespace(list=[row(bill_detail_id="D2")])])
    asked = control(emulator)
    found = await asked._pages("ListBillDetail", DAY, lambda _: next(pages), lambda **_: None)
    assert [each.id for each in found.rows] == ["D1", "D2"]


async def test_pages_without_an_end_are_an_error(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.ark.control.ROWS_MAX", 900)
    page = SimpleNamespace(list=[row()] * 300)
    with pytest.raises(ControlError, match="more than 900 rows"):
        await control(emulator)._pages("ListBillDetail", DAY, lambda _: page, lambda **_: None)


def test_usage_is_read_from_arrays_and_from_objects() -> None:
    record = {
        "Time": "2026-11-25 12:00:00", "ModelName": "m", "Endpoint": EP, "InputTokens": "7",
        "CacheTokensHit": "2", "OutputTokens": "3", "ReqCnt": "1",
    }  # fmt: skip
    arrays = {"Fields": list(record), "Records": [list(record.values())]}
    objects = {"Fields": [], "Records": [record]}
    assert list(read_usage(arrays)) == list(read_usage(objects))


@pytest.mark.parametrize(
    "answer",
    [None, {}, {"Fields": ["Time"], "Records": [["x", "y"]]}, {"Fields": [], "Records": [{}]}],
)
def test_usage_in_another_form_is_an_error(answer: Any) -> None:
    with pytest.raises(ControlError, match="another form"):
        list(read_usage(answer))
