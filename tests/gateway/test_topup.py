"""Holds that grow while a local stream runs, streams that end for want of money, and why the cloud
has a hard bound instead."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from backends.ark.emulator.settings import Settings
from backends.scripted_server import ServerOptions
from gateway import topup
from gateway.ledger.ledger import HoldRequest, Ledger
from gateway.ledger.rows import Outcome
from gateway.prices.cards import load_book
from policies import topup as policy
from policies.price import quote
from policies.types import Site
from tests.gateway.ledger.kit import row
from tests.gateway.rig import ARK_KEY, AT_ONCE, Rig, rig, until

SLOW = ServerOptions(chunks=150, pace_ms=10, slots=1)


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Holds cover some seconds: a test need not wait for that."""
    patch.setattr(topup, "grows_in_ms", lambda _, elapsed_ms: max(0.0, 200 - elapsed_ms))
    patch.setattr(topup, "cut_in_ms", lambda _, elapsed_ms: max(0.0, 500 - elapsed_ms))
    patch.setattr(topup, "RETRY_S", 0.05)


async def short_answers(redis_url: str) -> None:
    """Books in which the answers of tenant t have had 10 tokens."""
    ledger = await Ledger.connect(redis_url, instance="past")
    now_s = time.time()
    for n in range(150):  # so many that one long answer changes nothing
        draft = row(f"past{n}.0", tenant="t", site=Site.LOCAL, completion_tokens=10)
        hold = HoldRequest(
            id=draft.hold_id, amount_nano=1, scopes=(), sent=True, deadline_s=now_s + 60,
            draft=draft,
        )  # fmt: skip
        await ledger.reserve(hold, now_s)
        await ledger.settle(hold.id, draft)
    await ledger.close()


async def held(house: Rig) -> int:
    return (await house.till()).held_nano


async def test_a_local_hold_starts_small_and_grows_before_it_is_used_up(
    books_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    await short_answers(books_url)
    seen: list[int] = []
    async with rig(books_url, workers=[SLOW]) as house:
        asking = asyncio.gather(house.ask(stream=True, max_tokens=2_000))
        await until(lambda: not house.workers[0].running == 0)
        while not asking.done():
            seen.append(await held(house))
            await asyncio.sleep(0.02)
        (answer,) = await asking
        assert answer.ended_well
        assert answer.chunks[-1]["choices"][0]["finish_reason"] == "stop"
        steps = [amount for amount in dict.fromkeys(seen) if amount]
        (last,) = [r for r in await house.settled() if not r.request_id.startswith("past")]
        assert last.held_nano == steps[-1] >= 2 * steps[0]
        assert 0 < last.posted_nano < last.held_nano


async def test_a_stream_whose_hold_cannot_grow_ends_with_length_and_says_which_budget(
    books_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    await short_answers(books_url)
    async with rig(books_url, workers=[SLOW]) as house:
        probing = asyncio.gather(house.ask(stream=True))
        while not (first_nano := await held(house)):  # noqa: ASYNC110 - Redis has no event
            await asyncio.sleep(0.01)
        await probing
        await house.settled()
    limit_nano = 3 * first_nano // 2  # the measured pace makes the next one a little different
    async with rig(books_url, workers=[SLOW]) as house:
        await house.budget("tenant:t", limit_nano)
        answer = await house.ask(stream=True, stream_options={"include_usage": True})
        assert answer.ended_well
        last = answer.chunks[-1]
        assert last["choices"][0]["finish_reason"] == "length"
        assert last["id"] == answer.chunks[0]["id"]
        budget = last["yuzui"]["budget"]
        assert (budget["scope"], budget["period"]) == ("tenant:t", "day")
        assert "limit" in budget["message"]
        assert len(answer.chunks) < SLOW.chunks
        await until(lambda: house.workers[0].running == 0)  # the worker was told to stop
        rows = await house.settled()
        assert rows[-1].outcome == Outcome.CURTAILED
        assert rows[-1].finish_reason == "length"
        assert 0 < rows[-1].posted_nano <= rows[-1].held_nano <= limit_nano


# ------------------------------------------------------------------ the cloud


def bound(house: Rig, prompt_tokens: int, output_tokens: int) -> int:

    model = house.config.models["glm-4.6v"].cloud[0]
    prices = load_book(house.config.prices.cards).at(int(1000 * time.time()))
    return quote(
        prices, model, prompt_tokens_max=prompt_tokens, output_tokens_max=output_tokens
    ).nano


async def charged(house: Rig) -> list[dict[str, Any]]:
    async with house.http.get(f"{house.cloud_root}/emulator/usage?limit=1000") as response:
        found: list[dict[str, Any]] = (await response.json())["rows"]
        return found


@pytest.mark.parametrize("stream", [True, False])
async def test_when_money_is_short_the_cloud_is_asked_for_what_is_held_and_no_more(
    books_url: str, stream: bool
) -> None:
    await short_answers(books_url)
    endless = msgspec.convert({"port": 0, "latency": AT_ONCE, "answer_tokens": 5_000}, Settings)
    async with rig(books_url, workers=[], cloud=endless) as house:
        wealthy = await house.ask(stream=stream)
        assert wealthy.status == 200
        (bill,) = await charged(house)
        assert bill["completion_tokens"] == 1_024  # the default: money was there for it
        limit_nano = bound(house, 500, 64)
        await house.budget("backend:cloud", limit_nano)
        answer = await house.ask(stream=stream)
        assert answer.status == 200
        bill = (await charged(house))[-1]
        assert bill["completion_tokens"] == policy.BOUND_TOKENS_MIN
        if stream:
            assert answer.chunks[-1]["choices"][0]["finish_reason"] == "length"
            assert answer.chunks[-1]["yuzui"]["budget"]["scope"] == "backend:cloud"
        else:
            assert answer.header("budget") == "the answer was cut short by backend:cloud"
        # what the caller asked for is not shortened: it is refused
        refused = await house.ask(stream=stream, max_tokens=1_024)
        assert (refused.status, refused.code) == (429, "insufficient_quota")
        assert (await house.settled())[-1].posted_nano <= limit_nano


async def test_a_reader_that_stops_reading_does_not_stop_the_cloud(books_url: str) -> None:
    """Why no margin on a stream bounds a bill: of this answer one line was read, and all of it was
    generated and charged. With the bound sent upstream it is only as long as is paid for."""
    endless = msgspec.convert({"port": 0, "latency": AT_ONCE, "answer_tokens": 5_000}, Settings)
    async with rig(books_url, workers=[], cloud=endless) as house:
        assert house.cloud is not None
        host, port = house.cloud.url.split("//")[1].split("/")[0].split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=64)
        body = msgspec.json.encode(
            {
                "model": house.config.models["glm-4.6v"].cloud[0],
                "messages": [{"role": "user", "content": "hello"}],
                "max_completion_tokens": 400,
                "stream": True,
            }
        )
        writer.write(
            b"POST /api/v3/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            + ARK_KEY.encode()
            + b"\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body
        )
        await reader.readline()  # and nothing more
        while not (bills := await charged(house)):  # noqa: ASYNC110 - nor has the emulator
            await asyncio.sleep(0.02)
        assert bills[0]["completion_tokens"] == 400
        writer.transport.abort()
