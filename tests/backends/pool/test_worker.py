"""Engines as workers: recognised, followed, asked in their own words."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from backends.egress import Egress
from backends.pool import Member, Pool
from backends.pool.reports import Report
from backends.pool.worker import OTHER_CAPABILITIES, OTHER_SLOTS, Worker
from policies.types import Capability, Health, Sensitivity
from tests.backends import conforming
from tests.backends.engines.kit import call, chat, whole
from tests.backends.servers import until


class Sized(conforming.Sglang):
    slots = 48

    async def _server_info(self, _: web.Request) -> web.Response:
        return web.json_response({"max_running_requests": self.slots, "internal_states": [{}]})


async def test_another_model_at_the_same_address_is_asked_for_its_slots_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with Sized() as engine, following([engine.url]) as pool:
        await until(lambda: pool.states()[0].slots == 48)
        engine.slots = 7
        monkeypatch.setattr(conforming, "MODEL", "another")
        await until(lambda: pool.states()[0].slots == 7)
        assert pool.states()[0].model == "another"


@asynccontextmanager
async def following(members: Sequence[str | Member]) -> AsyncIterator[Pool]:
    egress = Egress(allowed=[])
    pool = Pool(egress, members)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()
        await egress.close()


@pytest.mark.parametrize(
    ("engine", "slots"),
    [
        (conforming.Vllm(running=3, waiting=2), OTHER_SLOTS),
        (conforming.Sglang(running=3, waiting=2), 48),
        (conforming.Sglang(running=3, waiting=2, metrics=False), 48),
    ],
    ids=["vllm", "sglang", "sglang without metrics"],
)
async def test_an_engine_is_recognised_by_what_it_publishes(engine: Any, slots: int) -> None:
    async with engine, following([engine.url]) as pool:
        assert await pool.wait_ready(20)
        (state,) = pool.states()
        assert (state.engine, state.model) == (engine.name, conforming.MODEL)
        assert (state.running, state.waiting, state.slots) == (3, 2, slots)
        assert state.kv_used == (0.25 if engine.metrics else 0.0)
        assert state.traits.context_tokens == conforming.CONTEXT
        assert state.traits.capabilities == OTHER_CAPABILITIES
        answer, _ = await whole(pool.backend("w1"), call())
        assert answer["choices"][0]["message"]["reasoning_content"] == "it is red"
        # what it publishes is followed, and its pace is what was measured between two looks
        engine.running, engine.waiting = 0, 0
        await until(lambda: pool.states()[0].running == 0)
        if engine.metrics:
            await until(lambda: pool.states()[0].decode_tokens_per_s == pytest.approx(50))


async def test_one_that_publishes_nothing_is_known_by_what_we_send_there() -> None:
    """And by the owner of its models, so that it is spoken to as what it is."""
    engine = conforming.Vllm(running=9, metrics=False)
    async with engine, following([engine.url]) as pool:
        assert await pool.wait_ready(20)
        (state,) = pool.states()
        assert (state.engine, state.running, state.slots) == ("vllm", 0, OTHER_SLOTS)
        assert pool.backend("w1").dialect.name == "vllm"


async def test_what_is_declared_counts_where_an_engine_does_not_say() -> None:
    member = Member(
        name="gpu1",
        url="",
        engine="vllm",
        weight=2.0,
        slots=7,
        capabilities=frozenset({Capability.VISION}),
        levels=frozenset({Sensitivity.PUBLIC}),
        tenants=frozenset({"acme"}),
        api_key="k",
    )
    async with conforming.Vllm(api_key="k") as engine:
        declared = Member(
            **{f: getattr(member, f) for f in member.__struct_fields__} | {"url": engine.url}
        )
        async with following([declared]) as pool:
            assert await pool.wait_ready(20)
            (state,) = pool.states()
            assert (state.id, state.weight, state.slots) == ("gpu1", 2.0, 7)
            assert state.traits.capabilities == {Capability.VISION}
            assert (state.levels, state.tenants) == ({Sensitivity.PUBLIC}, {"acme"})
            await whole(pool.backend("gpu1"), call())
        assert "k" not in repr(declared)


async def test_an_engine_that_wants_a_key_is_down_without_it() -> None:
    async with conforming.Vllm(api_key="k") as engine, following([engine.url]) as pool:
        assert await pool.wait_ready(0.8) is False


async def test_an_engine_that_dies_and_comes_back() -> None:
    async with conforming.Vllm() as engine, following([engine.url]) as pool:
        assert await pool.wait_ready(20)
        engine.healthy = False
        await until(lambda: pool.states()[0].health is Health.DOWN)
        engine.healthy = True
        assert await pool.wait_ready(20)


async def test_it_is_asked_for_by_its_own_name() -> None:
    async with conforming.Vllm() as engine, following([engine.url]) as pool:
        assert await pool.wait_ready(20)
        asked = call(chat(model=pool.model("w1")))
        await whole(pool.backend("w1"), asked)
        assert engine.asked[-1]["model"] == conforming.MODEL


async def test_a_worker_that_nobody_has_heard_of() -> None:
    egress = Egress(allowed=[])
    worker = Worker(Member(name="x", url="http://127.0.0.1:1/"), egress, egress)
    assert (worker.url, worker.state.health, worker.engine) == (
        "http://127.0.0.1:1",
        Health.DOWN,
        "openai",
    )


def test_our_worker_reports_its_adapters() -> None:
    egress = Egress(allowed=[])
    worker = Worker(Member(name="w", url="http://127.0.0.1:1"), egress, egress)
    report = Report(engine="yuzui", model="glm", adapters=["faq"])
    assert worker.of_report(report).adapters == {"faq"}
    report = Report(kv_tokens_used=25, kv_tokens_total=100, waiting_tokens=90, preparing=3)
    state = worker.of_report(report)
    assert (state.kv_used, state.kv_tokens, state.waiting_tokens) == (0.25, 100, 90)
    assert state.preparing == 3
    assert worker.of_report(Report(engine="yuzui", model="glm", state="ok")).adapters == frozenset()


def test_a_worker_that_loads_will_have_the_adapters_that_it_had() -> None:
    """Or requests for them would be a 404 for as long as the only worker restarts."""
    egress = Egress(allowed=[])
    worker = Worker(Member(name="w", url="http://127.0.0.1:1"), egress, egress)
    worker.state = worker.of_report(Report(engine="yuzui", model="glm", adapters=["faq"]))
    for state in ("draining", "loading"):
        worker.state = worker.of_report(Report(engine="yuzui", model="glm", state=state))
        assert worker.state.adapters == {"faq"}
    assert worker.of_report(Report(engine="yuzui", model="glm", state="ok")).adapters == frozenset()


async def test_an_adapter_is_asked_for_by_the_name_it_has_there() -> None:
    async with conforming.Vllm() as engine:
        engine.adapters = ("faq",)
        async with following([engine.url]) as pool:
            assert await pool.wait_ready(20)
            assert pool.states()[0].adapters == {"faq"}
            assert pool.states()[0].model == pool.model("w1") == conforming.MODEL
            assert pool.model("w1", "faq") == "faq"
            assert pool.model("w1", "gone") == f"{conforming.MODEL}:gone"
            engine.adapters = ()  # unloaded: the next look says so
            await until(lambda: not pool.states()[0].adapters)
