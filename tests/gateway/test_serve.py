"""What is held is let go, whoever leaves and whatever breaks in the middle of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from backends.openai_http import HttpReply, OpenAIHttpBackend
from backends.scripted_server import ServerOptions
from gateway.ledger.ledger import Ledger
from gateway.ledger.rows import Outcome, RowState
from gateway.tasks import spawn
from tests.gateway.rig import rig
from tests.gateway.test_pool_faults import JSON, Liar, http
from tests.gateway.test_pool_flow import pool, up


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
