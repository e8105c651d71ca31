from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from policies.plan import place, plan
from policies.types import (
    BreakerState,
    BudgetView,
    Capability,
    CloudState,
    Facts,
    Health,
    ImageSize,
    Line,
    Plan,
    Reason,
    Refusal,
    Site,
    SloClass,
    Snapshot,
    WorkerState,
)
from policies.weigh import Rules
from tests.policies.builders import (
    BLIND,
    INTERNAL,
    NOW_S,
    PUBLIC,
    SENSITIVE,
    TRAITS,
    budget,
    busy,
    cloud,
    decide,
    facts,
    full,
    label,
    rules,
    snapshot,
    worker,
)

OPEN = BreakerState.OPEN
BOTH = (cloud("big"), cloud("small"))
SHORT = replace(TRAITS, context_tokens=TRAITS.context_tokens // 1_000)
HUGE = (ImageSize(width=9_000, height=10),)  # more than 200 times as long as wide


@dataclass(frozen=True)
class Case:
    """One request in one world, and the reason that it must get."""

    reason: Reason
    route: str  # of the first attempt; "refused" when there is none
    world: Snapshot
    facts: Facts = field(default_factory=facts)
    rules: Rules = field(default_factory=rules)


REASONS: dict[str, Case] = {
    "the normal case": Case(Reason.LOCAL_FITS, "local:w1", snapshot(worker(), clouds=BOTH)),
    "late, and still sooner than the cloud": Case(
        Reason.LOCAL_FITS,
        "local:w1",
        snapshot(worker(), clouds=(cloud("big", ttft_ewma_ms=900.0),)),
        facts(deadline_ms=10),
    ),
    "sensitive": Case(
        Reason.PINNED, "local:w1", snapshot(worker(), clouds=BOTH), facts(level=SENSITIVE)
    ),
    "sensitive, and late": Case(
        Reason.PINNED,
        "local:w1",
        snapshot(busy(), clouds=BOTH),
        facts(level=SENSITIVE, deadline_ms=1),
    ),
    "local/ asked": Case(
        Reason.LOCAL_ASKED, "local:w1", snapshot(busy(), clouds=BOTH), facts(side=Site.LOCAL)
    ),
    "late without a cloud": Case(Reason.CLOUD_OFF, "local:w1", snapshot(busy())),
    "late, the cloud has no money": Case(
        Reason.CLOUD_BUDGET,
        "local:w1",
        snapshot(
            busy(),
            clouds=BOTH,
            budgets=(budget("backend:cloud", limit=9_000_000, posted=8_999_999),),
        ),
    ),
    "late, the cloud is failing": Case(
        Reason.CLOUD_BREAKER, "local:w1", snapshot(busy(), clouds=(cloud(breaker=OPEN),))
    ),
    "late, the cloud wants us to wait": Case(
        Reason.CLOUD_BREAKER,
        "local:w1",
        snapshot(busy(), clouds=(cloud(blocked_until_s=NOW_S + 1),)),
    ),
    "late, the cloud cannot see": Case(
        Reason.CLOUD_UNFIT,
        "local:w1",
        snapshot(busy(), clouds=(cloud(traits=BLIND),)),
        facts(image=True),
    ),
    "every slot and queue place is taken": Case(
        Reason.POOL_FULL, "cloud:big", snapshot(full("w1"), full("w2"), clouds=BOTH)
    ),
    "the pool is later than the service aims at": Case(
        Reason.POOL_FULL, "cloud:big", snapshot(busy(), clouds=BOTH)
    ),
    "the pool is later than the caller allows": Case(
        Reason.DEADLINE, "cloud:big", snapshot(busy(), clouds=BOTH), facts(deadline_ms=1_000)
    ),
    "no worker is up": Case(
        Reason.POOL_DOWN,
        "cloud:big",
        snapshot(worker("w1", health=Health.DOWN), worker("w2", breaker=OPEN), clouds=BOTH),
    ),
    "no worker at all": Case(Reason.POOL_DOWN, "cloud:big", snapshot(clouds=BOTH)),
    "cloud/ asked": Case(
        Reason.CLOUD_ASKED, "cloud:big", snapshot(worker(), clouds=BOTH), facts(side=Site.CLOUD)
    ),
    "no worker can see": Case(
        Reason.LOCAL_UNFIT,
        "cloud:big",
        snapshot(worker(traits=BLIND), clouds=BOTH),
        facts(image=True),
    ),
    "no worker serves that model": Case(
        Reason.LOCAL_UNFIT, "cloud:big", snapshot(worker(), clouds=BOTH), rules=rules(local=("no",))
    ),
    "no worker fetches a picture": Case(
        Reason.LOCAL_UNFIT,
        "cloud:big",
        snapshot(worker(), clouds=BOTH),
        facts(remote_images=1, needs=frozenset({Capability.VISION})),
    ),
    "the pool has no money": Case(
        Reason.LOCAL_BUDGET,
        "cloud:big",
        snapshot(worker(), clouds=BOTH, budgets=(budget("backend:local", limit=5, posted=5),)),
    ),
    # refusals
    "sensitive, no room": Case(
        Reason.SENSITIVE_LOCAL_UNAVAILABLE,
        "refused",
        snapshot(full(), clouds=BOTH),
        facts(level=SENSITIVE),
    ),
    "sensitive, no worker": Case(
        Reason.SENSITIVE_LOCAL_UNAVAILABLE,
        "refused",
        snapshot(clouds=BOTH),
        facts(level=SENSITIVE, side=Site.LOCAL),
    ),
    "a budget for everything": Case(
        Reason.BUDGET_EXHAUSTED,
        "refused",
        snapshot(worker(), clouds=BOTH, budgets=(budget("tenant:acme", limit=5, posted=5),)),
    ),
    "cloud/ asked and no money": Case(
        Reason.BUDGET_EXHAUSTED,
        "refused",
        snapshot(worker(), clouds=BOTH, budgets=(budget("backend:cloud", limit=0),)),
        facts(side=Site.CLOUD),
    ),
    "no room anywhere": Case(Reason.NO_CAPACITY, "refused", snapshot(full())),
    "nothing at all": Case(Reason.NO_CAPACITY, "refused", snapshot()),
    "no room here, no money there": Case(
        Reason.NO_CAPACITY,
        "refused",
        snapshot(full(), clouds=BOTH, budgets=(budget("backend:cloud", limit=0),)),
    ),
    "local/ asked, no room": Case(
        Reason.NO_CAPACITY, "refused", snapshot(full(), clouds=BOTH), facts(side=Site.LOCAL)
    ),
    "no such model": Case(
        Reason.MODEL_UNKNOWN, "refused", snapshot(worker(), clouds=BOTH), facts(model="gpt-9")
    ),
    "cloud/ asked for what must stay": Case(
        Reason.SIDE_FORBIDDEN,
        "refused",
        snapshot(worker(), clouds=BOTH),
        facts(level=SENSITIVE, side=Site.CLOUD),
    ),
    "cloud/ asked without a cloud": Case(
        Reason.UNFIT, "refused", snapshot(worker()), facts(side=Site.CLOUD)
    ),
    "too long for everybody": Case(
        Reason.TOO_LONG,
        "refused",
        snapshot(worker(), clouds=BOTH),
        facts(prompt_tokens_likely=TRAITS.context_tokens),
    ),
    "nobody can see": Case(
        Reason.UNFIT,
        "refused",
        snapshot(worker(traits=BLIND), clouds=(cloud(traits=BLIND),)),
        facts(image=True),
    ),
    "a picture that the processor refuses": Case(
        Reason.UNFIT, "refused", snapshot(worker()), facts(image=True, images=HUGE)
    ),
    "sensitive, with a picture that somebody would have to fetch": Case(
        Reason.UNFIT,
        "refused",
        snapshot(worker(), clouds=BOTH),
        facts(level=SENSITIVE, remote_images=1, needs=frozenset({Capability.VISION})),
    ),
    "no price is known": Case(
        Reason.UNFIT,
        "refused",
        snapshot(clouds=(cloud("free?"),)),
        rules=rules(cloud_models=("free?",)),
    ),
}

# Given to attempts, or before the plan.
ELSEWHERE = {Reason.FALLBACK}
ELSEWHERE |= {Reason.BUDGET_SOFT}  # test_steer.py
ELSEWHERE |= {Reason.QUEUE_LATE}  # gateway/pool/waiting.py
# Repeating these cannot help, whatever becomes of the pool in the next second.
FINAL = {
    Reason.BUDGET_EXHAUSTED,
    Reason.MODEL_UNKNOWN,
    Reason.SIDE_FORBIDDEN,
    Reason.TOO_LONG,
    Reason.UNFIT,
}


@pytest.mark.parametrize("case", REASONS.values(), ids=REASONS)
def test_the_reason(case: Case) -> None:
    decision = decide(case.facts, case.world, case.rules)
    assert decision.why.reason is case.reason
    if isinstance(decision, Refusal):
        assert case.route == "refused"
        assert decision.reason is case.reason
        assert (decision.retry_after_s is None) == (case.reason in FINAL)
    else:
        first = decision.attempts[0]
        assert f"{first.site.value}:{first.target}" == case.route


def test_every_reason_is_reached() -> None:
    assert {case.reason for case in REASONS.values()} | ELSEWHERE == set(Reason)


VERDICTS: dict[str, tuple[Snapshot, dict[str, Any], str]] = {
    "chosen": (snapshot(worker(), clouds=BOTH), {}, "local:w1"),
    "next": (snapshot(worker(), clouds=BOTH), {}, "cloud:big"),
    "down": (snapshot(worker(health=Health.DOWN)), {}, "local:w1"),
    "draining": (snapshot(worker(health=Health.DRAINING)), {}, "local:w1"),
    "full": (snapshot(full()), {}, "local:w1"),
    "other_model": (snapshot(worker()), {"rules": rules(local=("no",))}, "local:w1"),
    "remote_image": (snapshot(worker()), {"facts": facts(remote_images=1)}, "local:w1"),
    "unfit": (snapshot(worker(traits=BLIND)), {"facts": facts(image=True)}, "local:w1"),
    "too_long": (snapshot(worker(traits=SHORT)), {"facts": facts(image=True)}, "local:w1"),
    "breaker_open": (snapshot(worker(breaker=OPEN)), {}, "local:w1"),
    "side": (snapshot(worker(), clouds=BOTH), {"facts": facts(side=Site.CLOUD)}, "local:w1"),
    "label": (snapshot(worker(), clouds=BOTH), {"facts": facts(level=SENSITIVE)}, "cloud:big"),
    "rate_limited": (snapshot(clouds=(cloud(blocked_until_s=1e9),)), {}, "cloud:big"),
    "unpriced": (snapshot(clouds=(cloud("x"),)), {"rules": rules(cloud_models=("x",))}, "cloud:x"),
    "over_budget": (
        snapshot(clouds=BOTH, budgets=(budget("backend:cloud", limit=10_199_999),)),
        {},
        "cloud:big",
    ),
}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_verdict_on_a_target(verdict: str) -> None:
    world, given_, target = VERDICTS[verdict]
    decision = decide(given_.get("facts", facts()), world, given_.get("rules"))
    found = {f"{c.site.value}:{c.target}": c for c in decision.why.considered}
    assert found[target].verdict == verdict
    # figures are shown for those that could be asked, had the money been there
    priced = verdict in ("chosen", "next", "over_budget")
    assert (found[target].ttft_ms is not None) == priced
    assert (found[target].hold_nano is not None) == priced


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        (cloud(breaker=OPEN), "breaker_open"),
        (cloud(traits=BLIND), "unfit"),
        (cloud(blocked_until_s=NOW_S + 0.1), "rate_limited"),
        (cloud(blocked_until_s=NOW_S), "chosen"),
        (cloud(breaker=BreakerState.HALF_OPEN), "chosen"),
    ],
)
def test_the_verdict_on_a_cloud_model(state: CloudState, verdict: str) -> None:
    decision = decide(facts(image=True), snapshot(clouds=(state,)))
    assert [c.verdict for c in decision.why.considered] == [verdict]


# ------------------------------------------------------------------ money


def test_what_is_held() -> None:
    """By hand: the cloud's bound at list price, the worker's time at a third of its known pace."""
    found = decide(facts(), snapshot(worker(), clouds=BOTH))
    assert isinstance(found, Plan)
    holds = {attempt.target: attempt.hold_nano for attempt in found.attempts}
    assert holds == {
        "w1": 6_030_100,  # 3 * (200/2000 s + 1000/50 s), one more ms, at an eighth of 800,000/s
        "big": 200 * 1_000 + 1_000 * 10_000,
        "small": 200 * 100 + 1_000 * 1_000,
    }
    assert [attempt.scopes for attempt in found.attempts] == [
        ("tenant:acme", "user:app", "model:glm", "backend:local"),
        ("tenant:acme", "user:app", "model:glm", "backend:cloud"),
        ("tenant:acme", "user:app", "model:glm", "backend:cloud"),
    ]


def test_a_local_hold_is_bounded_by_the_longest_time_that_an_attempt_may_take() -> None:
    slow = worker(decode_tokens_per_s=0.001)
    found = decide(facts(side=Site.LOCAL), snapshot(slow), rules(local_total_s=10.0))
    assert isinstance(found, Plan)
    assert found.attempts[0].hold_nano == 10_001 * 100


def test_held_money_does_not_count_before_the_ledger_says_so() -> None:
    """Holds are freed any moment; the ledger refuses what it must."""
    held = budget("backend:cloud", limit=10_200_000, held=10_200_000)
    found = decide(facts(side=Site.CLOUD), snapshot(clouds=BOTH, budgets=(held,)))
    assert found.why.reason is Reason.CLOUD_ASKED


def test_every_budget_of_a_scope_counts() -> None:
    day, month = budget("user:app", limit=10**12), budget("user:app", limit=1_000_000)
    found = decide(facts(side=Site.CLOUD), snapshot(clouds=BOTH, budgets=(day, month)))
    assert found.why.reason is Reason.BUDGET_EXHAUSTED


def test_the_dear_model_over_its_budget_leaves_the_cheap_one() -> None:
    left = budget("backend:cloud", limit=5_000_000)
    found = decide(facts(side=Site.CLOUD), snapshot(clouds=BOTH, budgets=(left,)))
    assert isinstance(found, Plan)
    assert [attempt.target for attempt in found.attempts] == ["small"]


# ------------------------------------------------------------------ order


def test_a_worker_in_time_stands_before_a_late_one_whatever_is_drawn() -> None:
    world = snapshot(
        *(busy(f"w{i}") for i in range(5)),
        worker("slow-but-free", decode_tokens_per_s=1.0, prefill_tokens_per_s=100.0),
        clouds=BOTH,
    )
    for seed in range(20):
        found = decide(facts(deadline_ms=3_000), world, seed=seed)
        assert isinstance(found, Plan)
        assert found.attempts[0].target == "slow-but-free"


def test_the_cloud_models_stand_in_the_order_of_the_route() -> None:
    quick_second = (cloud("big", ttft_ewma_ms=900.0), cloud("small", ttft_ewma_ms=100.0))
    found = decide(facts(side=Site.CLOUD), snapshot(clouds=quick_second))
    assert isinstance(found, Plan)
    assert [a.target for a in found.attempts] == ["big", "small"]


def test_a_cloud_model_that_is_late_gives_way_to_one_that_is_not() -> None:
    late_first = (cloud("big", ttft_ewma_ms=900.0), cloud("small", ttft_ewma_ms=100.0))
    found = decide(facts(side=Site.CLOUD, deadline_ms=500), snapshot(clouds=late_first))
    assert isinstance(found, Plan)
    assert [a.target for a in found.attempts] == ["small", "big"]


@pytest.mark.parametrize(
    ("world", "asked", "most", "sites"),
    [
        (snapshot(worker("a"), worker("b"), worker("c"), clouds=BOTH), facts(), 3, "llc"),
        (snapshot(worker("a"), worker("b"), worker("c"), clouds=BOTH), facts(), 4, "lllc"),
        (snapshot(worker("a"), worker("b"), worker("c"), clouds=BOTH), facts(), 1, "l"),
        (snapshot(worker("a"), clouds=BOTH), facts(), 3, "lcc"),
        (snapshot(busy("a"), busy("b"), clouds=BOTH), facts(), 3, "ccl"),
        (snapshot(busy("a"), clouds=BOTH[:1]), facts(), 3, "cl"),
        (snapshot(worker("a"), worker("b"), worker("c")), facts(), 3, "lll"),
        (snapshot(worker("a"), clouds=BOTH), facts(level=SENSITIVE), 3, "l"),
        (snapshot(worker("a"), clouds=BOTH), facts(side=Site.LOCAL), 3, "l"),
        (snapshot(worker("a"), clouds=BOTH), facts(side=Site.CLOUD), 3, "cc"),
    ],
)
def test_the_last_attempt_is_for_the_other_side(
    world: Snapshot, asked: Facts, most: int, sites: str
) -> None:
    found = decide(asked, world, rules(attempts_max=most))
    assert isinstance(found, Plan)
    assert "".join(attempt.site.value[0] for attempt in found.attempts) == sites
    assert [a.reason for a in found.attempts[1:]] == [Reason.FALLBACK] * (len(sites) - 1)


def test_a_batch_waits_longer_before_it_costs_money() -> None:
    world = snapshot(busy(), clouds=BOTH)
    assert decide(facts(slo=SloClass.INTERACTIVE), world).why.reason is Reason.POOL_FULL
    assert decide(facts(slo=SloClass.BATCH), world).why.reason is Reason.LOCAL_FITS


def test_an_unknown_model_is_told_the_known_ones() -> None:
    found = decide(facts(model="gpt-9"), snapshot(worker()))
    assert isinstance(found, Refusal)
    assert found.message == "no model 'gpt-9'; known: glm, glm-latest"


def test_an_adapter_is_for_the_workers_that_have_it() -> None:
    asked = facts(adapter="faq", label=label(PUBLIC))
    with_it = worker("w2", adapters=frozenset({"faq", "x"}))
    found = decide(asked, snapshot(worker("w1"), with_it, clouds=(cloud("big"),)))
    assert isinstance(found, Plan)
    assert {attempt.target for attempt in found.attempts} == {"w2"}


def test_an_adapter_that_no_worker_has_is_an_unknown_model() -> None:
    for workers in ([], [worker(adapters=frozenset({"x"}))]):
        found = decide(facts(adapter="faq"), snapshot(*workers, clouds=(cloud("big"),)))
        assert isinstance(found, Refusal)
        assert found.reason is Reason.MODEL_UNKNOWN
        assert found.message == "no worker has the adapter 'faq' of 'glm'"


def test_an_adapter_whose_workers_are_away_is_not_unknown() -> None:
    away = worker(adapters=frozenset({"faq"}), health=Health.DOWN)
    found = decide(facts(adapter="faq"), snapshot(away, worker("w2"), clouds=(cloud("big"),)))
    assert isinstance(found, Refusal)
    assert found.reason is not Reason.MODEL_UNKNOWN


# ------------------------------------------------------------------ properties

CAPABILITIES = st.sampled_from([TRAITS, BLIND])
WORKERS = st.builds(
    worker,
    name=st.sampled_from(["w1", "w2", "w3", "w4"]),
    model=st.sampled_from(["glm-flash", "other"]),
    traits=CAPABILITIES,
    health=st.sampled_from(Health),
    breaker=st.sampled_from(BreakerState),
    slots=st.integers(1, 8),
    running=st.integers(0, 8),
    waiting=st.integers(0, 8),
    in_flight=st.integers(0, 8),
    in_flight_output_tokens=st.integers(0, 60_000),
    decode_tokens_per_s=st.sampled_from([0.0, 1.0, 50.0]),
)
CLOUDS = st.builds(
    cloud,
    model=st.sampled_from(["big", "small", "unpriced"]),
    traits=CAPABILITIES,
    breaker=st.sampled_from(BreakerState),
    blocked_until_s=st.sampled_from([0.0, NOW_S + 5]),
    ttft_ewma_ms=st.sampled_from([0.0, 100.0, 5_000.0]),
)
BUDGETS = st.builds(
    budget,
    st.sampled_from(["tenant:acme", "user:app", "model:glm", "backend:cloud", "backend:local"]),
    limit=st.sampled_from([0, 2_000_000, 10_200_000, 10**12]),
    posted=st.sampled_from([0, 1_000_000, 10**12]),
)
WORLDS = st.builds(
    lambda workers, clouds, budgets, on: snapshot(
        *workers, clouds=tuple(clouds), budgets=tuple(budgets), cloud_enabled=on
    ),
    st.lists(WORKERS, max_size=4, unique_by=lambda w: w.id),
    st.lists(CLOUDS, max_size=3, unique_by=lambda c: c.model),
    st.lists(BUDGETS, max_size=2),
    st.booleans(),
)
FACTS = st.builds(
    facts,
    request_id=st.sampled_from(["yz-1", "yz-2"]),
    model=st.sampled_from(["glm", "glm", "glm", "unknown"]),
    level=st.sampled_from([PUBLIC, INTERNAL, SENSITIVE]),
    side=st.none() | st.sampled_from(Site),
    image=st.booleans(),
    remote_images=st.sampled_from([0, 0, 0, 2]),
    prompt_tokens_likely=st.sampled_from([100, 40_000]),
    output_tokens_max=st.integers(1, 8_000),
    deadline_ms=st.none() | st.integers(1, 20_000),
    slo=st.sampled_from(SloClass),
)
RULES = st.builds(
    rules,
    cloud_models=st.permutations(["big", "small", "unpriced"]).map(tuple),
    local=st.sampled_from([("*",), ("glm-flash",)]),
    attempts_max=st.integers(1, 4),
)


@given(FACTS, WORLDS, RULES, st.integers(0, 2**32))
def test_what_is_true_of_every_plan(asked: Facts, world: Snapshot, how: Rules, seed: int) -> None:
    decision = plan(asked, world, how, NOW_S, Random(seed))
    assert decision == plan(asked, world, how, NOW_S, Random(seed)), "it can be replayed"
    assert decision.why.label == asked.label
    _covers(decision.why.considered, asked, world, how)
    if isinstance(decision, Refusal):
        return
    attempts = decision.attempts
    assert 1 <= len(attempts) <= how.attempts_max
    assert len({(a.site, a.target) for a in attempts}) == len(attempts)
    assert attempts[0].reason is decision.why.reason
    assert all(a.reason is Reason.FALLBACK for a in attempts[1:])
    verdicts = {(c.site, c.target): c.verdict for c in decision.why.considered}
    assert [verdicts[a.site, a.target] for a in attempts[:1]] == ["chosen"]
    assert all(verdicts[a.site, a.target] == "next" for a in attempts[1:])
    workers = {w.id: w for w in world.workers}
    clouds = {c.model: c for c in world.clouds}
    for attempt in attempts:
        assert asked.side in (None, attempt.site)
        assert attempt.hold_nano > 0
        assert 0 < attempt.ttft_ms <= attempt.finish_ms
        for scope in attempt.scopes:
            for view in world.budgets.get(scope, ()):
                assert view.posted_nano + attempt.hold_nano <= view.limit_nano
        if attempt.site is Site.CLOUD:
            _may_leave(asked, world, clouds[attempt.target])
            assert attempt.permit is not None
            assert attempt.permit.request_id == asked.request_id
        else:
            _can_take(asked, workers[attempt.target])
            assert attempt.permit is None


def _covers(considered: Any, asked: Facts, world: Snapshot, how: Rules) -> None:
    """A decision tells about every target that there was, or about none when the name is wrong."""
    expected = []
    if asked.model in how.routes:
        expected = [(Site.LOCAL, w.id) for w in world.workers]
        if world.cloud_enabled:
            known = {c.model for c in world.clouds}
            wanted = how.routes[asked.model].cloud
            expected += [(Site.CLOUD, model) for model in wanted if model in known]
    assert [(c.site, c.target) for c in considered] == expected


def _may_leave(asked: Facts, world: Snapshot, target: CloudState) -> None:
    assert asked.label.level < SENSITIVE
    assert world.cloud_enabled
    assert target.breaker is not OPEN
    assert target.blocked_until_s <= NOW_S
    assert target.rpm_left != 0
    assert asked.needs <= target.traits.capabilities


def _can_take(asked: Facts, target: WorkerState) -> None:
    assert target.health is Health.UP
    assert target.breaker is not OPEN
    assert asked.needs <= target.traits.capabilities
    assert not asked.remote_images
    assert max(target.running + target.waiting, target.in_flight) < (
        target.slots + target.queue_limit
    )


@given(FACTS, WORLDS, RULES, st.integers(0, 99))
def test_the_strictest_label_never_meets_the_cloud(
    asked: Facts, world: Snapshot, how: Rules, seed: int
) -> None:
    pinned = replace(asked, label=label(SENSITIVE))
    decision = plan(pinned, world, how, NOW_S, Random(seed))
    if isinstance(decision, Plan):
        assert {a.site for a in decision.attempts} == {Site.LOCAL}
        assert decision.why.reason is Reason.PINNED
    assert all(c.verdict == "label" for c in decision.why.considered if c.site is Site.CLOUD)


@given(WORLDS, st.lists(BUDGETS, max_size=1))
def test_more_money_never_turns_a_plan_into_a_refusal(
    world: Snapshot, more: list[BudgetView]
) -> None:
    poor = snapshot(*world.workers, clouds=world.clouds, budgets=tuple(more))
    rich = snapshot(*world.workers, clouds=world.clouds)
    if isinstance(decide(facts(), poor), Plan):
        assert isinstance(decide(facts(), rich), Plan)


def test_a_free_slot_that_looks_slow_is_asked_all_the_same() -> None:
    """Measured in a bad moment, and never measured again if nobody asked it."""
    slow = worker(decode_tokens_per_s=0.1, prefill_tokens_per_s=0.1)
    decision = decide(facts(), snapshot(slow, clouds=BOTH))
    assert isinstance(decision, Plan)
    assert (decision.attempts[0].site, decision.why.reason) == (Site.LOCAL, Reason.LOCAL_FITS)
    hurried = decide(facts(deadline_ms=500), snapshot(slow, clouds=BOTH))
    assert (hurried.why.reason, hurried.attempts[0].site) == (Reason.DEADLINE, Site.CLOUD)
    queued = worker(decode_tokens_per_s=0.1, prefill_tokens_per_s=0.1, running=1, slots=1)
    crowded = decide(facts(), snapshot(queued, clouds=BOTH))
    assert (crowded.why.reason, crowded.attempts[0].site) == (Reason.POOL_FULL, Site.CLOUD)


def waiting(world: Snapshot, **line: int) -> Snapshot:
    return replace(world, line=Line(**{"places": 4, **line}))


def test_who_finds_the_slots_taken_waits_as_long_as_there_are_places() -> None:
    world = snapshot(full(), full("w2"))
    assert isinstance(decide(facts(), world), Refusal)
    made = decide(facts(), waiting(world))
    assert isinstance(made, Plan)
    assert made.attempts[0].queued_ms > 0
    refused = decide(facts(), waiting(world, interactive=4))
    assert isinstance(refused, Refusal)
    assert {c.verdict for c in refused.why.considered} == {"full"}


def test_those_before_us_in_the_line_are_part_of_the_forecast() -> None:
    queued = []
    for ahead in (0, 1, 2, 3):
        made = decide(facts(), waiting(snapshot(worker(running=8)), interactive=ahead))
        assert isinstance(made, Plan)
        queued.append(made.attempts[0].queued_ms)
    assert queued == sorted(set(queued))
    batch = decide(facts(), waiting(snapshot(worker(running=8)), batch=3))
    assert isinstance(batch, Plan)
    assert batch.attempts[0].queued_ms == queued[0]  # interactive goes before batch


def test_a_worker_that_was_well_a_moment_ago_is_waited_for_when_nothing_else_is_there() -> None:
    away = worker(health=Health.DOWN, returning=True)
    assert isinstance(decide(facts(), snapshot(away)), Refusal)
    made = decide(facts(), waiting(snapshot(away)))
    assert isinstance(made, Plan)
    assert [a.target for a in made.attempts] == ["w1"] * 3
    cloudy = decide(facts(), waiting(snapshot(away, clouds=BOTH)))
    assert isinstance(cloudy, Plan)
    assert (cloudy.attempts[0].site, cloudy.why.reason) == (Site.CLOUD, Reason.POOL_DOWN)
    gone = decide(facts(), waiting(snapshot(worker(health=Health.DOWN))))
    assert isinstance(gone, Refusal)


def test_too_long_is_said_with_the_longest_context_and_only_when_length_is_all_that_lacks() -> None:
    longer = facts(prompt_tokens_likely=TRAITS.context_tokens + 1)
    refused = decide(longer, snapshot(worker("w1", traits=SHORT), worker("w2"), clouds=BOTH))
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.param) == (Reason.TOO_LONG, "messages")
    assert f"maximum context length behind this name, which is {TRAITS.context_tokens} tokens" in (
        refused.message
    )
    assert {c.verdict for c in refused.why.considered} == {"too_long"}
    # a shorter request would not be answered either
    seeing = replace(longer, needs=frozenset({Capability.VISION}))
    blind = decide(seeing, snapshot(worker(traits=BLIND)))
    assert isinstance(blind, Refusal)
    assert (blind.reason, blind.param) == (Reason.UNFIT, None)
    assert "(vision)" in blind.message
    # somebody whose context may be long enough is only away
    away = decide(longer, snapshot(worker("w1", traits=SHORT), worker("w2", health=Health.DOWN)))
    assert isinstance(away, Refusal)
    assert away.reason is Reason.NO_CAPACITY


def test_a_worker_may_be_for_some_labels_and_tenants_only() -> None:
    public = worker("w1", levels=frozenset({PUBLIC}))
    ours = worker("w2", tenants=frozenset({"acme"}))
    made = decide(facts(level=SENSITIVE), snapshot(public, ours))
    assert isinstance(made, Plan)
    assert {a.target for a in made.attempts} == {"w2"}
    refused = decide(facts(level=SENSITIVE, tenant="other"), snapshot(public, ours))
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.UNFIT
    assert "label or tenant" in refused.message
    assert {c.verdict for c in refused.why.considered} == {"other_label", "other_tenant"}


def test_a_free_worker_is_placed_and_one_that_failed_us_only_when_no_other_fits() -> None:
    here = decide(facts(), snapshot(worker()))
    assert isinstance(here, Plan)
    planned = here.attempts[0]
    both = snapshot(worker("w1"), worker("w2", running=8))
    found = place(facts(), both, rules(), Random(0), planned)
    assert found is not None
    assert (found.target, found.reason, found.queued_ms) == ("w1", planned.reason, 0.0)
    assert place(facts(), both, rules(), Random(0), planned, frozenset({"w1"})) is None
    again = place(facts(), both, rules(), Random(0), planned, frozenset({"w1", "w2"}))
    assert again is not None
    assert again.target == "w1"
