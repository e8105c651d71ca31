from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.glm.engine.scheduler import OVERTAKEN_MAX, CacheRows, Counters, Entry, Scheduler

_numbers = itertools.count()


def entry(
    tenant: str = "", *, prompt: int = 10, limit: int = 7, priority: int = 0, ready: bool = True
) -> Entry:
    number = next(_numbers)
    return Entry(
        key=number,
        tenant=tenant,
        priority=priority,
        order=number,
        prompt_tokens=prompt,
        max_tokens=limit,
        ready=ready,
    )


def scheduler(*, rows: int = 4, slots: int = 4, budget: int = 100) -> Scheduler:
    return Scheduler(
        rows=CacheRows(rows, 16), slots=slots, step_tokens=budget, beside_tokens=budget
    )


def started(schedule: Scheduler) -> list[Entry]:
    return list(iter(schedule.start, None))


def run(schedule: Scheduler) -> Counter[str]:
    """One step: what each tenant was given; requests end at their limit."""
    given: Counter[str] = Counter()
    for one, tokens in schedule.plan():
        schedule.served(one, tokens)
        given[one.tenant] += tokens
        if one.computed >= one.kv_tokens:
            schedule.remove(one)
    return given


def test_rows_are_neighbours_and_the_lowest_that_fit() -> None:
    rows = CacheRows(5, 16)
    assert [rows.take(n) for n in (1, 16, 17)] == [0, 1, 2]
    assert (rows.take(17), rows.take(16)) == (None, 4)
    rows.free(1, 16)
    rows.free(2, 17)
    assert rows.take(33) == 1
    assert rows.tokens_used == 5 * 16 == rows.tokens
    rows.free(0, 1)
    with pytest.raises(ValueError, match="once"):
        rows.free(0, 1)


def test_a_request_starts_with_room_to_finish() -> None:
    schedule = scheduler()
    small, large = entry(prompt=10, limit=7), entry(prompt=30, limit=19)
    schedule.add(small)
    schedule.add(large)
    assert started(schedule) == [small, large]
    assert (small.first_row, large.first_row) == (0, 1)
    late = entry()
    schedule.add(late)
    assert started(schedule) == []
    schedule.remove(small)
    assert started(schedule) == [late]


def test_no_more_run_than_there_are_slots() -> None:
    schedule = scheduler(slots=2)
    for _ in range(3):
        schedule.add(entry())
    assert len(started(schedule)) == 2


def test_lower_classes_first_then_arrival() -> None:
    schedule = scheduler(slots=1)
    batch, first, second = entry(priority=5), entry(), entry()
    for one in (batch, first, second):
        schedule.add(one)
    order = []
    while schedule.waiting:
        order += started(schedule)
        schedule.remove(order[-1])
    assert order == [first, second, batch]


def test_tenants_share_whatever_the_length_of_their_queues() -> None:
    schedule = scheduler(slots=2, rows=2)
    for _ in range(20):
        schedule.add(entry("many"))
    for _ in range(5):
        schedule.add(entry("few"))
    order = []
    while any(e.tenant == "few" for e in (*schedule.waiting, *schedule.running)):
        order += [e.tenant for e in started(schedule)]
        run(schedule)
    assert order[:10].count("few") == 5


def test_who_comes_back_has_no_credit_from_idleness() -> None:
    counters = Counters()
    counters.enter("busy")
    counters.add("busy", 1000)
    counters.enter("back")
    assert counters.of("back") == 1000
    counters.add("back", 500)
    counters.leave("back")
    counters.enter("back")
    assert counters.of("back") == 1500  # nor is a debt forgotten by leaving
    for tenant in ("busy", "back"):
        counters.leave(tenant)
    assert not counters._served  # nothing is kept of those who are all gone


def test_prompts_are_read_in_chunks_within_the_budget() -> None:
    schedule = scheduler(rows=8, budget=8)
    decoding, long, short = entry(prompt=3), entry(prompt=20), entry(prompt=4)
    for one in (decoding, long, short):
        schedule.add(one)
    assert started(schedule) == [decoding, long, short]
    assert schedule.plan() == [(decoding, 3), (long, 5)]
    run(schedule)
    assert schedule.plan() == [(decoding, 1), (long, 7)]
    run(schedule)
    run(schedule)
    assert schedule.plan() == [(decoding, 1), (long, 1), (short, 4)]


def test_who_waits_for_pictures_holds_up_nobody() -> None:
    schedule = scheduler()
    blind, seeing = entry(ready=False), entry()
    schedule.add(blind)
    schedule.add(seeing)
    started(schedule)
    assert schedule.plan() == [(seeing, 10)]
    blind.ready = True
    assert (blind, 10) in schedule.plan()


def test_a_large_request_is_overtaken_but_not_starved() -> None:
    schedule = scheduler(rows=4, slots=4)
    schedule.add(entry(prompt=10))
    (holder,) = started(schedule)
    large = entry(prompt=60, limit=5)
    schedule.add(large)
    passed = 0
    for _ in range(OVERTAKEN_MAX + 3):
        schedule.add(entry())
        for one in started(schedule):
            passed += 1
            schedule.remove(one)
    assert passed == OVERTAKEN_MAX
    schedule.remove(holder)
    assert started(schedule)[0] is large


requests = st.tuples(
    st.sampled_from("abc"), st.integers(1, 40), st.integers(1, 20), st.integers(0, 2)
)


@given(
    arrivals=st.lists(st.lists(requests, max_size=3), max_size=20),
    budget=st.integers(1, 30),
    aborts=st.sets(st.integers(0, 60), max_size=10),
)
def test_everybody_is_served_and_nothing_is_lost(
    arrivals: list[list[tuple[str, int, int, int]]], budget: int, aborts: set[int]
) -> None:
    schedule = scheduler(rows=4, slots=3, budget=budget)
    arrived: list[Entry] = []
    steps = 0
    while arrivals or schedule.waiting or schedule.running:
        for tenant, prompt, limit, priority in arrivals.pop(0) if arrivals else ():
            arrived.append(entry(tenant, prompt=prompt, limit=limit, priority=priority))
            schedule.add(arrived[-1])
        for index in list(aborts):
            if index < len(arrived) and arrived[index] in (*schedule.waiting, *schedule.running):
                aborts.discard(index)
                schedule.remove(arrived[index])
        started(schedule)
        assert len(schedule.running) <= 3
        assert not schedule.waiting or schedule.running  # never idle while somebody waits
        decoding = [e for e in schedule.running if e.decoding]
        work = schedule.plan()
        assert {e for e, n in work if e.decoding} == set(decoding)
        assert sum(n for _, n in work) <= max(budget, len(decoding))
        spans = sorted((e.first_row, schedule.rows.needed(e.kv_tokens)) for e in schedule.running)
        for (first, count), (following, _) in itertools.pairwise(spans):
            assert first + count <= following
        run(schedule)
        steps += 1
        assert steps < 20 * 61 * 60
    assert schedule.rows.tokens_used == 0
    assert not schedule._counters._active


def test_less_is_read_while_others_decode() -> None:
    schedule = scheduler(rows=8, budget=30)
    schedule.beside_tokens = 5
    first, second = entry(prompt=20), entry(prompt=20)
    schedule.add(first)
    schedule.add(second)
    started(schedule)
    assert schedule.plan() == [(first, 20), (second, 10)]
    run(schedule)
    assert schedule.plan() == [(first, 1), (second, 4)]


def test_no_more_tokens_wait_than_get_their_turn_soon() -> None:
    schedule = scheduler(rows=1)  # 16 entries, so 32 may wait; each needs 11
    assert schedule.in_the_way(11) == 0
    assert schedule.in_the_way(1000) == 0  # nobody is in the way
    for _ in range(2):
        schedule.add(entry(prompt=5))
    assert schedule.waiting_tokens == 22
    assert schedule.in_the_way(10) == 0
    assert schedule.in_the_way(11) == 1
    assert schedule.in_the_way(16) == 1
    assert schedule.in_the_way(22) == 2
