"""What is held is let go, whoever leaves and whatever breaks in the middle of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import redis

from backends.openai_http import HttpReply, OpenAIHttpBackend
from backends.scripted_server import ServerOptions
from gateway.ledger.ledger import Ledger
from gateway.ledger.rows import Outcome, RowState
from gateway.tasks import spawn
from tests.gateway.rig import PATIENCE_S, rig, until
from tests.gateway.test_pool_faults import JSON, Liar, http
from tests.gateway.test_pool_flow import pool, up
from tests.gateway.test_topup import SLOW, hurry, short_answers


async def test_who_leaves_while_a_failed_attempt_is_settled_leaves_no_hold(
    books_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settling, on = asyncio.Event(), asyncio.Event()
    real = Ledger.settle

    async def slow(self: Ledger, *args: Any) -> Any:
        settling.set()
        await on.wait()
        return await real(self, *args)

    monkeypatch.setattr(Ledger, "settle", slow)
    async with Liar(http(JSON, b"{}", b"500 no")) as liar:
        settings = pool({"url": liar.url, "name": "l"})
        async with rig(books_url, workers=[], settings=settings) as house:
            await up(house, 1)
            asking = spawn(house.ask(), name="client")
            await settling.wait()
            assert (await house.till()).held_nano > 0
            asking.cancel()
            while (await house.admin("GET", "/admin/workers"))[0]["in_flight"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # the gateway has noticed that nobody waits any more
            on.set()
            (row,) = await house.settled()
            assert (row.outcome, row.final, row.posted_nano) == (Outcome.FAILED, True, 0)


HOLDS, ASIDE = "yuzui:{main}:holds", "put aside"


def spoil(client: redis.Redis) -> None:
    """Somebody else's data stands where the holds were."""
    if client.exists(HOLDS):
        client.rename(HOLDS, ASIDE)
    client.set(HOLDS, "not ours")


def repair(client: redis.Redis) -> None:
    client.delete(HOLDS)
    if client.exists(ASIDE):
        client.rename(ASIDE, HOLDS)


@pytest.mark.parametrize("without_books", [True, False])
async def test_books_that_hold_foreign_data_are_books_that_cannot_be_used(
    books_url: str, tmp_path: Path, without_books: bool
) -> None:
    settings = {"limits.local_without_books": without_books, "data_dir": str(tmp_path)}
    with redis.Redis.from_url(books_url) as client:
        async with rig(books_url, cloud=True, settings=settings) as house:
            await house.ready_worker()
            spoil(client)
            local = await house.ask(model="local/glm-4.6v")
            assert local.status == (200 if without_books else 503)
            cloud = await house.ask(model="cloud/glm-4.6v")
            assert (cloud.status, cloud.code) == (503, "ledger_unavailable")
            assert await house.cloud_requests() == []
            repair(client)
            async with asyncio.timeout(PATIENCE_S):
                while len(await house.rows()) < without_books:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert (await house.ask(model="local/glm-4.6v")).status == 200
            assert len(await house.settled()) == 1 + without_books


async def test_a_stream_whose_books_turn_foreign_ends_when_its_money_does_and_is_settled(
    books_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    await short_answers(books_url)
    with redis.Redis.from_url(books_url) as client:
        async with rig(books_url, workers=[SLOW]) as house:
            asking = spawn(house.ask(stream=True, max_tokens=2_000), name="client")
            await until(lambda: house.workers[0].running == 1)
            spoil(client)
            answer = await asking
            repair(client)
            assert answer.ended_well
            assert answer.chunks[-1]["choices"][0]["finish_reason"] == "length"
            assert len(answer.chunks) < SLOW.chunks
            row = (await house.settled())[-1]
            assert row.outcome == Outcome.CURTAILED
            assert 0 < row.posted_nano <= row.held_nano


@pytest.mark.parametrize("side", ["local", "cloud"])
async def test_a_fault_of_our_own_leaves_no_hold(
    books_url: str, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    async def broken(self: object, call: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("backends.ark.backend.ArkBackend.open", broken)
    monkeypatch.setattr(OpenAIHttpBackend, "open", broken)
    async with rig(books_url, cloud=True) as house:
        answer = await house.ask(model=f"{side}/glm-4.6v")
        assert (answer.status, answer.code) == (500, "internal_error")
        (row,) = await house.settled()
        assert (row.outcome, row.final) == (Outcome.FAILED, True)
        if side == "local":
            assert row.posted_nano == 0
        else:  # it may have been sent: whoever bills will tell
            assert (row.posted_nano, row.state) == (row.held_nano, RowState.UNRECONCILED)


async def test_a_fault_of_our_own_in_mid_stream_ends_it_with_an_error(
    books_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = HttpReply.events

    async def two_then_broken(self: HttpReply) -> Any:
        async for batch in real(self):
            yield batch
            if any(event.has_delta for event in batch):
                raise RuntimeError("a bug")

    monkeypatch.setattr(HttpReply, "events", two_then_broken)
    async with rig(books_url, workers=[ServerOptions(chunks=9, pace_ms=20)]) as house:
        answer = await house.ask(stream=True)
        assert answer.status == 200
        assert answer.chunks[-1]["error"]["code"] == "internal_error"
        assert b"[DONE]" not in answer.body
        (row,) = await house.settled()
        assert (row.outcome, row.final) == (Outcome.BROKEN, True)
        assert row.posted_nano > 0
