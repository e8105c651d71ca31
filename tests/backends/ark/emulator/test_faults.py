from __future__ import annotations

import asyncio
import time

import pytest

from backends.ark.emulator.faults import NO_FAULT, Fault, FaultBook, FaultRule, Refused, parse
from backends.ark.emulator.server import Dice, Emulator
from tests.backends.ark.conftest import Start
from tests.backends.ark.kit import GLM_5_3, SEED_2_0, admin, post
from tests.backends.servers import until


def test_a_header_is_read() -> None:
    fault = parse("code=ServerOverloaded; retry_after_s=3 ;empty_type; should_retry=false;")
    assert fault == Fault(
        code="ServerOverloaded", retry_after_s=3.0, empty_type=True, should_retry=False
    )
    assert fault.refuses
    assert not parse("cut_after=5").refuses
    assert not parse("code=InternalServiceError;error_after=2").refuses


@pytest.mark.parametrize("header", ["cut_afer=5", "cut_after=soon", "first_ms"])
def test_a_header_that_cannot_be_read_is_refused(header: str) -> None:
    with pytest.raises(Refused) as caught:
        parse(header)
    assert "X-Emulator-Inject" in caught.value.message


def test_rules_count() -> None:
    one, two = Fault(code="A"), Fault(code="B")
    rules = [FaultRule(fault=one, next=2, skip=1, model="m"), FaultRule(fault=two, next=1)]
    book = FaultBook(rules, lambda: 0.5)
    struck = [book.strike(model).code for model in ("m", "x", "m", "x", "m", "m")]
    assert struck == ["B", None, "A", None, "A", None]


def test_a_share_is_a_share_and_the_same_every_time() -> None:
    def count() -> int:
        book = FaultBook([FaultRule(fault=Fault(code="A"), rate=0.2)], Dice(7, "faults"))
        return sum(book.strike("m") is not NO_FAULT for _ in range(1000))

    assert count() == count()
    assert 150 < count() < 250


async def test_rules_over_the_admin_routes(emulator: Emulator) -> None:
    rule = {"fault": {"code": "ServerOverloaded"}, "next": 1, "model": GLM_5_3}
    assert (await admin(emulator.url, "faults", "POST", rule))["rules"][0]["next"] == 1
    assert (await post(emulator.url))[0] == 200
    assert (await post(emulator.url, model=GLM_5_3))[0] == 429
    assert (await post(emulator.url, model=GLM_5_3))[0] == 200
    await admin(emulator.url, "faults", "POST", {"fault": {"status": 503, "code": "X"}, "rate": 1})
    status, _, body = await post(emulator.url)
    assert (status, body["error"]["code"]) == (503, "X")
    assert (await admin(emulator.url, "faults", "DELETE"))["rules"] == []
    assert (await post(emulator.url))[0] == 200
    wrong = await admin(emulator.url, "faults", "POST", {"fault": {}, "next": 1, "rate": 1})
    assert "either" in wrong["error"]


async def test_rules_of_the_configuration_start_again_with_a_reset(start: Start) -> None:
    emulator = await start(faults=[{"fault": {"code": "ServerOverloaded"}, "next": 1}])
    for _ in range(2):
        assert (await post(emulator.url))[0] == 429
        assert (await post(emulator.url))[0] == 200
        await admin(emulator.url, "reset", "POST")


async def test_a_header_strikes_one_request(emulator: Emulator) -> None:
    inject = {"X-Emulator-Inject": "code=AccountOverdueError"}
    status, _, body = await post(emulator.url, headers=inject)
    assert (status, body["error"]["type"]) == (403, "Forbidden")
    assert (await post(emulator.url, headers={"X-Emulator-Inject": "nonsense"}))[0] == 400
    assert (await post(emulator.url))[0] == 200
    assert emulator.books.by_code == {"AccountOverdueError": 1, "InvalidParameter": 1}


async def test_pace(start: Start) -> None:
    emulator = await start(latency={"first_ms_min": 100, "first_ms_max": 100, "token_ms": 2})
    for stream in (False, True):
        began_s = time.monotonic()
        await post(
            emulator.url,
            stream=stream,
            headers={"X-Emulator-Inject": "answer_tokens=30;reasoning_tokens=20"},
        )
        assert time.monotonic() - began_s > 0.19


async def test_who_leaves_before_a_plain_answer_pays_for_what_was_generated(
    emulator: Emulator,
) -> None:
    inject = {"X-Emulator-Inject": "first_ms=0;token_ms=10;answer_tokens=500;reasoning_tokens=5"}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await post(emulator.url, headers=inject, model=SEED_2_0)
    await until(lambda: emulator.books.running == 0)
    row = emulator.books.charged.rows[0]
    assert (row.state, row.reasoning_tokens) == ("client_left", 5)
    assert 5 < row.completion_tokens < 500
    assert emulator.books.by_state == {"client_left": 1}
