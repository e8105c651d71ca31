from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.pool.metrics import (
    Published,
    Totals,
    read_loads,
    read_metrics,
    read_slots,
    tokens_per_s,
)
from tests.backends import conforming

# Two API servers of one vLLM, as its documentation shows its metrics; written by hand.
TWO_ENGINES = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="zai-org/GLM-4.6V-Flash"} 3.0
vllm:num_requests_running{engine="1",model_name="a \\"quoted\\" } name"} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting{engine="1",model_name="m"} 2.0 1700000000000
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:gpu_cache_usage_perc{engine="1"} 0.1
python_gc_objects_collected_total{generation="0"} 8.0
"""


def test_series_are_added_up_and_of_shares_the_largest_counts() -> None:
    assert read_metrics(TWO_ENGINES) == Published(engine="vllm", running=7, waiting=2, kv_used=0.75)


def test_older_names() -> None:
    engine = conforming.Vllm(running=5, waiting=1)
    engine.old, engine.tokens = True, 100
    found = read_metrics(engine.metrics_text())
    assert found == Published(
        engine="vllm", running=5, waiting=1, kv_used=0.25, pace=Totals(seconds=2.0, count=100)
    )


def test_sglang_waits_for_grammars_too() -> None:
    text = conforming.Sglang(running=6, waiting=2).metrics_text()
    text = text.replace("num_grammar_queue_reqs", "num_grammar_queue_reqs", 1).replace(
        "} 0.0", "} 3.0", 1
    )
    found = read_metrics(text)
    assert found is not None
    assert (found.engine, found.running, found.waiting, found.kv_used) == ("sglang", 6, 5, 0.25)


@pytest.mark.parametrize("text", ["", "go_goroutines 7\n", "<html>", "vllm_num_requests 3", "\0"])
def test_what_is_neither_is_neither(text: str) -> None:
    assert read_metrics(text) is None


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-3", "1e300", "three"])
def test_a_figure_that_makes_no_sense_counts_as_none(value: str) -> None:
    text = f"vllm:num_requests_running {value}\nvllm:num_requests_waiting 2\n"
    found = read_metrics(text)
    assert found is not None
    assert (found.running, found.waiting) == (0, 2)


def test_what_is_not_said_counts_as_none() -> None:
    assert read_metrics("vllm:num_requests_running 1\n") == Published(engine="vllm", running=1)
    unused = "vllm:num_requests_running 1\nvllm:time_per_output_token_seconds_count 0\n"
    found = read_metrics(unused)
    assert found is not None
    assert found.pace == Totals()


@pytest.mark.parametrize("value", [True, "7", None, [7], -1, 1_000_001, 1e300])
def test_a_load_that_is_no_number_of_requests_counts_as_none(value: object) -> None:
    rank = {"num_running_reqs": 3, "num_waiting_reqs": value}
    found = read_loads(json.dumps({"loads": [rank]}).encode())
    assert found == Published(engine="sglang", running=3, waiting=0)
    assert read_loads(json.dumps([{"num_running_reqs": 1_000_000}]).encode()) == Published(
        engine="sglang", running=1_000_000
    )


def test_more_waiting_than_there_are_is_nobody_running() -> None:
    older = json.dumps([{"num_reqs": 2, "num_waiting_reqs": 5}]).encode()
    assert read_loads(older) == Published(engine="sglang", running=0, waiting=5)


def test_slots_are_at_least_one_and_what_an_engine_can_hold() -> None:
    assert read_slots(b'{"max_running_requests": 1}') == 1
    for beyond in (b"0", b"1000001"):
        assert read_slots(b'{"max_running_requests": %b}' % beyond) is None


@given(st.text(max_size=200) | st.text(alphabet='vlm:sgnu_{}"=1. \n#', max_size=200))
def test_any_text_is_read_or_is_neither(text: str) -> None:
    found = read_metrics(text)
    assert found is None or (found.running >= 0 and 0 <= found.kv_used <= 1)


def test_loads_without_metrics() -> None:
    rank = {"dp_rank": 0, "num_running_reqs": 3, "num_waiting_reqs": 1}
    both = json.dumps({"loads": [rank, {**rank, "dp_rank": 1}]}).encode()
    assert read_loads(both) == Published(engine="sglang", running=6, waiting=2)
    older = json.dumps([{"dp_rank": 0, "num_reqs": 5, "num_waiting_reqs": 2}]).encode()
    assert read_loads(older) == Published(engine="sglang", running=3, waiting=2)
    assert read_loads(b'{"server_load": 3}') is None
    assert read_loads(b"[") is None


@pytest.mark.parametrize(
    ("body", "slots"),
    [
        (b'{"max_running_requests": 48}', 48),
        (b'{"server_args": {"max_running_requests": 64}, "x": [{"max_running_requests": 32}]}', 32),
        (b'{"max_running_requests": null}', None),
        (b'{"max_running_requests": -1}', None),
        (b"no", None),
    ],
)
def test_slots(body: bytes, slots: int | None) -> None:
    assert read_slots(body) == slots


def test_pace_between_two_looks() -> None:
    before = Totals(seconds=10.0, count=100)
    assert tokens_per_s(before, Totals(seconds=12.0, count=200)) == 50
    assert tokens_per_s(before, before) is None
    assert tokens_per_s(before, Totals(seconds=1.0, count=5)) is None  # it was started anew
    assert tokens_per_s(Totals(), Totals(seconds=1e-300, count=1e300)) is None
    assert tokens_per_s(Totals(), Totals(seconds=1e300, count=1)) is None
