from __future__ import annotations

import heapq
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from policies import turns
from policies.turns import BATCH_EVERY, Turns
from policies.types import Attempt, Health, Reason, Site, SloClass
from tests.policies.builders import facts, rules, worker

RULES = replace(rules(), patience_ms={SloClass.INTERACTIVE: 30_000.0, SloClass.BATCH: 90_000.0})


def attempt(site: Site = Site.LOCAL, *, ttft_ms: float, queued_ms: float = 0.0) -> Attempt:
    return Attempt(
        site=site,
        target="x",
        reason=Reason.LOCAL_FITS,
        hold_nano=1,
        scopes=(),
        ttft_ms=ttft_ms,
        queued_ms=queued_ms,
        finish_ms=ttft_ms,
    )


def order(arrivals: list[str], *, length: int = 100) -> list[str]:
    """Tenants in the order in which they are served when all have arrived at once."""
    state, line = Turns(), []
    for number, tenant in enumerate(arrivals):
        state, tag = turns.join(state, facts(tenant=tenant, output_tokens_likely=length))
        line.append((tag, number, tenant))
    heapq.heapify(line)
    found = []
    while line:
        tag, _, tenant = heapq.heappop(line)
        state = turns.served(state, tag)
        found.append(tenant)
    return found


def test_one_tenant_is_served_in_the_order_of_arrival() -> None:
    state, tags = Turns(), []
    for _ in range(5):
        state, tag = turns.join(state, facts())
        tags.append(tag)
    assert tags == sorted(set(tags))


def test_a_tenant_that_sends_a_hundred_at_once_does_not_stand_before_one_that_sends_two() -> None:
    served = order(["many"] * 100 + ["few"] * 2)
    assert served.index("few") <= 1
    assert served[:4].count("few") == 2


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60))
def test_everybody_is_served_once_and_nobody_gets_ahead_by_more_than_one_turn(
    arrivals: list[str],
) -> None:
    served = order(arrivals)
    assert Counter(served) == Counter(arrivals)
    total = Counter(arrivals)
    seen: Counter[str] = Counter()
    for tenant in served:
        for other in total:
            if seen[other] < total[other]:  # as long as the other one waits too
                assert seen[tenant] <= seen[other] + 1
        seen[tenant] += 1


def test_what_is_dear_counts_for_more_turns() -> None:
    state = Turns()
    line = []
    for number in range(6):
        for tenant, length in (("long", 1_000), ("short", 100)):
            state, tag = turns.join(state, facts(tenant=tenant, output_tokens_likely=length))
            line.append((tag, number, tenant))
    served = [tenant for _, _, tenant in sorted(line)]
    assert served[:7].count("short") >= 5


def test_a_newcomer_does_not_get_what_it_did_not_ask_for_in_the_past() -> None:
    """Who was quiet for an hour begins where the others are, not an hour behind them."""
    state = Turns()
    for _ in range(50):
        state, tag = turns.join(state, facts(tenant="busy"))
        state = turns.served(state, tag)
    state, tag = turns.join(state, facts(tenant="new"))
    assert tag == state.virtual > 0


def test_who_leaves_without_a_slot_has_not_paid_for_one() -> None:
    state = Turns()
    for _ in range(200):
        state, _ = turns.join(state, facts(tenant="a"))
    staying, kept = turns.join(state, facts(tenant="a"))
    for _ in range(200):
        staying = turns.left(staying, facts(tenant="a"))
    # one still waits, with the tag that it has; the next begins where that one alone would end
    _, tag = turns.join(staying, facts(tenant="a"))
    assert tag == pytest.approx(turns.cost(facts(tenant="a")))
    assert tag < kept
    assert turns.left(staying, facts(tenant="a")) == Turns()


def test_who_has_nothing_in_line_is_forgotten() -> None:
    state, tag = turns.join(Turns(), facts(tenant="once"))
    state = turns.served(state, tag)
    state, tag = turns.join(state, facts(tenant="other"))
    state = turns.served(state, tag + 10_000)
    assert state.finish == {}


def test_batch_has_every_tenth_turn() -> None:
    since, drawn = 0, []
    for _ in range(3 * BATCH_EVERY):
        slo = turns.first_class(since)
        since = 0 if slo is SloClass.BATCH else since + 1
        drawn.append(slo)
    assert drawn.count(SloClass.BATCH) == 3
    assert drawn[0] is SloClass.INTERACTIVE


@pytest.mark.parametrize(
    ("changes", "elsewhere_ms", "expected_ms"),
    [
        ({}, None, 30_000.0),
        ({"slo": SloClass.BATCH}, None, 90_000.0),
        ({"deadline_ms": 500}, None, 430.0),  # what its own first token takes is part of it
        ({}, 300.0, 1_930.0),
        ({}, 9_000.0, 8_930.0),  # there it would come later still
        ({"deadline_ms": 50}, 10.0, 0.0),
    ],
)
def test_patience(changes: dict[str, int], elsewhere_ms: float | None, expected_ms: float) -> None:
    asked = facts(**changes)
    other = None if elsewhere_ms is None else attempt(Site.CLOUD, ttft_ms=elsewhere_ms)
    wanted = float(changes.get("deadline_ms", 2_000))
    here = attempt(ttft_ms=5_070.0, queued_ms=5_000.0)
    assert turns.patience_ms(asked, here, other, wanted, RULES) == expected_ms


def test_who_would_wait_in_vain_does_not() -> None:
    """Eight run, each for some 2 s: the ninth in line has its turn in some 2 s."""
    taken = worker(running=8)
    assert not turns.hopeless(facts(), [taken], ahead=8, left_ms=2_000)
    assert turns.hopeless(facts(), [taken], ahead=8, left_ms=1_000)
    assert turns.hopeless(facts(), [taken], ahead=80, left_ms=5_000)
    two = [taken, worker("w2", running=8)]
    assert not turns.hopeless(facts(), two, ahead=8, left_ms=1_000)


def test_a_free_slot_and_a_worker_that_comes_back_leave_hope() -> None:
    assert not turns.hopeless(facts(), [worker()], ahead=0, left_ms=0)
    away = worker(health=Health.DOWN, returning=True)
    assert not turns.hopeless(facts(), [away], ahead=9, left_ms=1)
    assert not turns.hopeless(facts(), [], ahead=9, left_ms=1)
