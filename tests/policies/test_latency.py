from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from policies import latency
from policies.latency import (
    SAME_PACE,
    SILENT_OTHERS_S,
    SILENT_S,
    STALE_FACTOR,
    STALE_S,
    assumed,
    has_room,
    is_free,
    is_silent,
    occupancy,
    of_cloud,
    of_worker,
)
from policies.types import WorkerState
from tests.policies.builders import cloud, facts, full, worker


def test_an_idle_worker_by_hand() -> None:
    """100 tokens at 2,000/s, the first of 100 at 50/s, the rest of them."""
    found = of_worker(worker(), facts(), 100)
    assert (found.queued_ms, found.ttft_ms, found.finish_ms) == (0.0, 70.0, 2_070.0)


def test_a_worker_with_one_free_slot_keeps_nobody_waiting() -> None:
    assert of_worker(worker(running=7), facts(), 100).queued_ms == 0.0


def test_a_queue_by_hand() -> None:
    """Two wait and eight run, so three must end before ours begins; eight slots work on them, each
    request of 1,000 tokens taking 20 s and its prompt of 400 a fifth of a second."""
    taken = worker(
        running=8,
        waiting=2,
        in_flight=10,
        in_flight_output_tokens=10_000,
        in_flight_prompt_tokens=4_000,
    )
    assert of_worker(taken, facts(), 100).queued_ms == pytest.approx(3 * 20_200 / 8)


def test_who_was_not_measured_is_taken_for_the_quickest_of_its_model() -> None:
    slow = worker("a", decode_tokens_per_s=20.0, prefill_tokens_per_s=0.0)
    quick = worker("b", decode_tokens_per_s=60.0, prefill_tokens_per_s=0.0)
    new = worker("c", decode_tokens_per_s=0.0, prefill_tokens_per_s=0.0)
    other = worker("d", model="other", decode_tokens_per_s=0.0, prefill_tokens_per_s=900.0)
    found = assumed([slow, quick, new, other])
    assert [w.decode_tokens_per_s for w in found] == [20.0, 60.0, 60.0, 0.0]
    assert [w.prefill_tokens_per_s for w in found] == [0.0, 0.0, 0.0, 900.0]
    assert found[0] is slow
    assert assumed([]) == ()
    half = worker("e", decode_tokens_per_s=0.0, prefill_tokens_per_s=500.0)
    assert assumed([half, quick])[1].prefill_tokens_per_s == 500.0


def paces(*workers: WorkerState) -> list[float]:
    found = assumed(workers)
    assert [w.prefill_tokens_per_s for w in found] == [10 * w.decode_tokens_per_s for w in found]
    return [w.decode_tokens_per_s for w in found]


def pace(name: str, tokens_per_s: float, **more: Any) -> WorkerState:
    both = {"decode_tokens_per_s": tokens_per_s, "prefill_tokens_per_s": 10 * tokens_per_s}
    return worker(name, **both, **more)


def test_equal_workers_are_equal_whatever_their_last_moments_were_like() -> None:
    """By a few per cent the worst of three would lose every choice of two, and so get nothing."""
    assert paces(pace("a", 100.0), pace("b", 80.0), pace("c", 76.0)) == [100.0, 100.0, 100.0]
    assert paces(pace("a", 100.0), pace("b", 74.0)) == [100.0, 74.0]
    assert paces(pace("a", 100.0), pace("b", 10.0, model="other")) == [100.0, 10.0]


def test_the_pace_of_an_idle_worker_is_doubted_and_not_beyond_belief() -> None:
    long = STALE_S + 1
    assert paces(pace("a", 100.0), pace("b", 50.0, idle_s=long)) == [100.0, 100.0]
    assert paces(pace("a", 100.0), pace("b", 50.0, idle_s=1.0)) == [100.0, 50.0]
    assert paces(pace("a", 100.0), pace("b", 10.0, idle_s=long)) == [100.0, 20.0]
    assert paces(pace("a", 100.0, idle_s=long)) == [100.0]  # nobody to be compared with


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 60.0, 80.0, 200.0]), st.booleans())))
def test_a_pace_is_never_taken_for_less_nor_for_more_than_the_best(
    pool: list[tuple[float, bool]],
) -> None:
    workers = [pace(f"w{n}", own, idle_s=100.0 * old) for n, (own, old) in enumerate(pool)]
    best = max((own for own, _ in pool), default=0.0)
    for (own, old), found in zip(pool, paces(*workers), strict=True):
        assert own <= found <= best
        assert found in (own, STALE_FACTOR * own if old else own, best)
        assert found == best or own < SAME_PACE * best


def test_a_worker_that_owes_a_report_is_not_free() -> None:
    assert is_free(worker())
    assert not is_free(worker(silent=True))
    assert not is_silent("yuzui", SILENT_S)
    assert is_silent("yuzui", SILENT_S + 0.1)
    assert not is_silent("vllm", SILENT_S + 0.1)  # who is asked may take longer to answer
    assert is_silent("vllm", SILENT_OTHERS_S + 0.1)


def test_pictures_that_are_being_decoded_keep_nobody_from_a_free_slot() -> None:
    crowd = worker(slots=32, waiting=12)
    assert not is_free(crowd)  # their memory is short, as far as one can see
    assert is_free(replace(crowd, preparing=12))
    assert not is_free(replace(crowd, preparing=7))
    assert not is_free(replace(crowd, preparing=12, slots=12))  # each of them will want a slot


def test_a_free_slot_without_memory_is_not_free() -> None:
    """Of 10,000 entries 8,000 are taken and 1,000 spoken for; ours needs 100 and up to 2,900. So
    2,000 are short, and a quarter of what runs must end: a quarter of a request's 20.2 s."""
    short = worker(
        running=2,
        waiting=1,
        kv_used=0.8,
        kv_tokens=10_000,
        waiting_tokens=1_000,
        in_flight=3,
        in_flight_output_tokens=3_000,
        in_flight_prompt_tokens=1_200,
    )
    asked = facts(output_tokens_max=2_900)
    assert of_worker(short, asked, 100).queued_ms == pytest.approx(20_200 / 4)
    for enough in (
        {"kv_tokens": 0},  # it does not say
        {"kv_tokens": 15_000, "kv_used": 0.5},
        {"kv_used": 0.0, "waiting_tokens": 0},  # nothing runs that would have to end
    ):
        assert of_worker(replace(short, **enough), asked, 100).queued_ms == 0.0
    # nobody is allotted more than the model can read
    narrow = replace(short, traits=replace(short.traits, context_tokens=1_000))
    assert of_worker(narrow, asked, 100).queued_ms == 0.0


def test_slots_and_memory_are_awaited_together() -> None:
    """The longer of both waits counts, not their sum."""
    taken = worker(running=8, kv_used=0.9, kv_tokens=8_000)
    slots_only = of_worker(replace(taken, kv_tokens=0), facts(), 100).queued_ms
    both = of_worker(taken, facts(output_tokens_max=100), 100).queued_ms
    assert both == slots_only > 0
    assert of_worker(replace(taken, waiting_tokens=50_000), facts(), 100).queued_ms > 10 * both


def test_without_knowing_what_runs_there_it_is_taken_for_more_of_the_same() -> None:
    assert of_worker(worker(running=8), facts(), 100).queued_ms == pytest.approx(2_050 / 8)


def test_our_own_count_is_ahead_of_a_report_within_a_burst() -> None:
    assert occupancy(worker(running=1, in_flight=5)) == 5
    assert occupancy(worker(running=3, waiting=4, in_flight=5)) == 7
    assert not has_room(worker(in_flight=16))


def test_room_is_slots_and_queue() -> None:
    assert has_room(worker(running=8, waiting=7))
    assert not has_room(full())
    assert not has_room(worker(slots=1, queue_limit=0, running=1))


@pytest.mark.parametrize(
    ("running", "choices", "free"),
    [(0, 8, True), (1, 8, False), (5, 3, True), (6, 3, False), (0, 20, True), (1, 20, False)],
)
def test_each_answer_takes_a_slot(running: int, choices: int, free: bool) -> None:
    """Of eight. One that asks for more than there are begins when the worker is empty."""
    assert is_free(worker(running=running), choices) is free


def test_each_answer_takes_a_place_of_the_queue_and_room_in_the_cache() -> None:
    assert has_room(worker(running=8, waiting=5), 3)  # eight slots, eight places
    assert not has_room(worker(running=8, waiting=6), 3)
    assert has_room(worker(), 100)
    busy = worker(running=6)
    assert of_worker(busy, facts(), 100).queued_ms == 0.0
    assert of_worker(busy, facts(choices=2), 100).queued_ms == 0.0
    assert of_worker(busy, facts(choices=3), 100).queued_ms > 0.0
    # 400 entries are free: enough for one answer of up to 300 tokens, too few for two
    short = worker(running=1, kv_used=0.6, kv_tokens=1_000)
    one, two = facts(output_tokens_max=300), facts(output_tokens_max=300, choices=2)
    assert of_worker(short, one, 100).queued_ms == 0.0
    assert of_worker(short, two, 100).queued_ms > 0.0
    # never longer than until all that runs has ended: more of ours runs after the first of ours
    many = facts(output_tokens_max=300, choices=8)
    assert (
        of_worker(short, many, 100).queued_ms
        == of_worker(short, facts(output_tokens_max=300, choices=4), 100).queued_ms
    )


def test_before_anything_was_measured() -> None:
    found = of_worker(worker(decode_tokens_per_s=0.0, prefill_tokens_per_s=0.0), facts(), 2_000)
    assert found.ttft_ms == pytest.approx(
        1000.0 * (2_000 / latency.PREFILL_TOKENS_PER_S + 1 / latency.DECODE_TOKENS_PER_S)
    )
    there = of_cloud(cloud(), facts())
    assert there.ttft_ms == latency.CLOUD_TTFT_MS


def test_the_cloud_by_what_was_measured() -> None:
    found = of_cloud(cloud(ttft_ewma_ms=300.0, decode_tokens_per_s=100.0), facts())
    assert (found.ttft_ms, found.finish_ms) == (300.0, 1_300.0)


WORKERS: st.SearchStrategy[WorkerState] = st.builds(
    worker,
    slots=st.integers(0, 8),
    running=st.integers(0, 12),
    waiting=st.integers(0, 12),
    in_flight=st.integers(0, 20),
    in_flight_output_tokens=st.integers(0, 100_000),
    in_flight_prompt_tokens=st.integers(0, 100_000),
    decode_tokens_per_s=st.sampled_from([0.0, 1.0, 80.0]),
    prefill_tokens_per_s=st.sampled_from([0.0, 100.0, 9_000.0]),
    kv_used=st.sampled_from([0.0, 0.5, 1.0]),
    kv_tokens=st.sampled_from([0, 100, 100_000]),
    waiting_tokens=st.integers(0, 100_000),
)


@pytest.mark.parametrize(
    "more",
    [
        {"waiting": 1},
        {"running": 1},
        {"in_flight_output_tokens": 500},
        {"in_flight_prompt_tokens": 500},
        {"waiting_tokens": 500},
    ],
    ids=lambda more: next(iter(more)),
)
@given(state=WORKERS, prompt=st.integers(0, 30_000))
def test_more_work_there_is_never_sooner(
    more: dict[str, Any], state: WorkerState, prompt: int
) -> None:
    added = replace(state, **{name: getattr(state, name) + by for name, by in more.items()})
    before, after = (of_worker(one, facts(), prompt) for one in (state, added))
    assert after.ttft_ms >= before.ttft_ms
    assert after.finish_ms >= before.finish_ms
    assert has_room(state) or not has_room(added)


@given(state=WORKERS, prompt=st.integers(0, 30_000))
def test_a_longer_prompt_or_a_longer_answer_is_never_sooner(
    state: WorkerState, prompt: int
) -> None:
    one = of_worker(state, facts(), prompt)
    assert of_worker(state, facts(), prompt + 100).ttft_ms >= one.ttft_ms
    longer = of_worker(state, facts(output_tokens_likely=200), prompt)
    assert longer.finish_ms >= one.finish_ms
    assert 0.0 <= one.queued_ms < one.ttft_ms <= one.finish_ms
