from __future__ import annotations

import json
import math
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from backends.base import Failure, Kind
from backends.egress import Egress
from backends.pool.members import Member
from backends.pool.reports import (
    COUNT_MAX,
    PACE_MAX,
    PACE_MIN,
    REPORT,
    TOKENS_MAX,
    Card,
    Report,
    adapters_of,
    capabilities_of,
    engine_of,
    maybe,
    read,
)
from backends.pool.worker import Worker
from policies import latency
from policies.types import Capability
from tests.policies.builders import facts


def test_a_report_is_read_whatever_else_it_says() -> None:
    found = read(REPORT, b'{"engine":"yuzui","slots":4,"something":{"new":1}}')
    assert (found.engine, found.slots) == ("yuzui", 4)


def test_a_report_that_says_nothing_is_of_an_idle_engine_with_one_slot() -> None:
    found = read(REPORT, b"{}")
    assert (found.engine, found.model, found.pid, found.slots) == ("", "", 0, 1)
    assert (found.running, found.waiting, found.waiting_tokens, found.queue_limit) == (0, 0, 0, 0)
    assert (found.decode_tokens_per_s, found.prefill_tokens_per_s) == (0.0, 0.0)
    assert (found.kv_tokens_used, found.kv_tokens_total, found.kv_used) == (0, 0, 0.0)
    assert (found.state, found.max_model_len, found.image_limits) == ("ok", None, None)
    assert Report(kv_tokens_used=1, kv_tokens_total=1).kv_used == 1.0


NONSENSE = [b"", b"[]", b'{"slots":"many"}', b"\xff", b"[" * 100_000]
NUMBERS = [
    name
    for name, kind in typing.get_type_hints(Report).items()
    if kind in (int, float, int | None) and name != "pid"
]


def _any_number() -> st.SearchStrategy[float]:
    edges = st.sampled_from([0, 1, COUNT_MAX, TOKENS_MAX, PACE_MIN, PACE_MAX])
    return edges | st.integers(0, 100_000) | st.floats(0, 1e9)


@pytest.mark.parametrize("data", NONSENSE)
def test_nonsense_is_a_failure(data: bytes) -> None:
    with pytest.raises(Failure) as failed:
        read(REPORT, data)
    assert failed.value.kind is Kind.BROKEN
    assert maybe(REPORT, data, Report()) == Report()


@pytest.mark.parametrize("value", [-1, 10**10, 10**310, 10**400, 1e300, 1e-320])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_no_worker_can_mean_is_nonsense(name: str, value: float) -> None:
    with pytest.raises(Failure):
        read(REPORT, json.dumps({"engine": "yuzui", name: value}).encode())


@given(st.fixed_dictionaries({}, optional={name: _any_number() for name in NUMBERS}))
def test_whatever_is_read_can_be_forecast_with(numbers: dict[str, float]) -> None:
    report = maybe(REPORT, json.dumps({"engine": "yuzui", **numbers}).encode(), Report())
    state = Worker(
        Member(name="w", url="http://127.0.0.1:1"), (out := Egress(allowed=[])), out
    ).of_report(report)
    busy = replace(state, in_flight=3, in_flight_output_tokens=400)
    found = latency.of_worker(busy, facts(), prompt_tokens=10_000, line_ahead=2.0)
    assert all(math.isfinite(value) for value in (found.ttft_ms, found.finish_ms, found.queued_ms))
    assert latency.occupancy(busy) >= 0


def test_an_engine_is_known_by_the_owner_of_its_models() -> None:
    owners = ["vllm", "sglang", "", "somebody"]
    found = [engine_of(Card(id="glm", owned_by=owner)) for owner in owners]
    assert found == ["vllm", "sglang", "openai", "openai"]


def test_use_of_the_cache() -> None:
    assert Report(kv_tokens_used=25, kv_tokens_total=100).kv_used == 0.25
    assert Report(kv_tokens_used=25).kv_used == 0.0
    assert Report(kv_tokens_used=500, kv_tokens_total=100).kv_used == 1.0


def test_capabilities_that_nobody_knows_are_left_out() -> None:
    assert capabilities_of(["vision", "telepathy"]) == {Capability.VISION}


def test_adapters_are_models_with_a_parent() -> None:
    cards = [
        Card(id="glm"),
        Card(id="faq", parent="glm"),  # vLLM
        Card(id="glm:shop", parent="glm"),  # SGLang and our worker
    ]
    assert adapters_of(cards) == {"faq": "faq", "shop": "glm:shop"}
