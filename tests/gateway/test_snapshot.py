from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from backends.base import Failure, Fault, Kind
from gateway.snapshot import (
    MEMORY_MAX,
    OUTPUT_TOKENS_FIRST,
    RATE_WAIT_S,
    RETRY_AFTER_MAX_S,
    RETURN_S,
    World,
)
from policies.breaker import FAILURES_IN_A_ROW, FATAL_OPEN_S, OPEN_FIRST_S
from policies.latency import SILENT_S, occupancy
from policies.types import Attempt, BreakerState, Health, Prefix, Reason, Site, Snapshot
from tests.policies.builders import TRAITS, budget, facts, worker

CLOSED, OPEN, HALF_OPEN = BreakerState


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 5_000.0

    def __call__(self) -> float:
        return self.now_s


class Kit:
    """A world of one worker and one cloud model."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.reports = (worker("w1", running=2),)
        self.views = {"tenant:acme": (budget("tenant:acme", limit=5),)}
        self.world = World(
            workers=lambda: self.reports,
            clouds={"big": TRAITS},
            budgets=lambda: self.views,
            clock=self.clock,
        )

    def take(self) -> Snapshot:
        return self.world.take()

    def breaker(self, site: Site = Site.LOCAL) -> BreakerState:
        taken = self.take()
        return (taken.workers if site is Site.LOCAL else taken.clouds)[0].breaker

    def fail(self, kind: Kind, site: Site = Site.LOCAL, times: int = 1, **more: Any) -> None:
        for _ in range(times):
            with self.world.sending(attempt(site), 1, 1):
                pass
            self.world.failed(attempt(site), Failure(kind, "x", **more))

    def succeed(self, site: Site = Site.LOCAL, **more: Any) -> None:
        with self.world.sending(attempt(site), 1, 1):
            found = {"ttft_ms": 100.0, "total_ms": 1_100.0, "output_tokens": 101, **more}
            self.world.succeeded(attempt(site), "glm", **found)


def heard(kit: Kit) -> None:
    """The worker reports now."""
    kit.reports = tuple(replace(report, heard_s=kit.clock.now_s) for report in kit.reports)


def attempt(site: Site) -> Attempt:
    return Attempt(
        site=site,
        target="w1" if site is Site.LOCAL else "big",
        reason=Reason.LOCAL_FITS,
        hold_nano=1,
        scopes=(),
        ttft_ms=1.0,
        finish_ms=2.0,
    )


@pytest.fixture
def kit() -> Kit:
    return Kit()


def test_a_snapshot_is_what_was_reported_and_what_is_known_besides(kit: Kit) -> None:
    with kit.world.sending(attempt(Site.LOCAL), 30, 200):
        taken = kit.take()
    assert (taken.workers[0].running, taken.workers[0].in_flight) == (2, 1)
    assert taken.budgets is kit.views
    assert taken.cloud_enabled
    assert [(c.model, c.traits) for c in taken.clouds] == [("big", TRAITS)]


def test_without_cloud_models_the_cloud_is_off() -> None:
    world = World(workers=tuple, clouds={}, budgets=dict, clock=Clock())
    assert not world.take().cloud_enabled


@pytest.mark.parametrize(
    "error", [None, Failure(Kind.BROKEN, "x"), asyncio.CancelledError(), OSError()]
)
def test_what_is_in_flight_is_counted_until_the_attempt_is_left(
    kit: Kit, error: BaseException | None
) -> None:
    one = attempt(Site.LOCAL)
    try:
        with kit.world.sending(one, 30, 200), kit.world.sending(one, 5, 6):
            during = kit.take().workers[0]
            if error is not None:
                raise error
    except BaseException as raised:
        if raised is not error:
            raise
    after = kit.take().workers[0]
    assert (during.in_flight, during.in_flight_prompt_tokens, during.in_flight_output_tokens) == (
        2, 35, 206,
    )  # fmt: skip
    assert (after.in_flight, after.in_flight_prompt_tokens, after.in_flight_output_tokens) == (
        0, 0, 0,
    )  # fmt: skip


# ------------------------------------------------------------------ breakers


@pytest.mark.parametrize("kind", [Kind.CONNECT, Kind.SERVER_ERROR, Kind.TIMEOUT_FIRST, Kind.BROKEN])
def test_failures_in_a_row_open_the_breaker_of_their_target(kit: Kit, kind: Kind) -> None:
    kit.fail(kind, times=FAILURES_IN_A_ROW - 1)
    assert kit.breaker() is CLOSED
    kit.fail(kind)
    assert kit.breaker() is OPEN
    assert kit.breaker(Site.CLOUD) is CLOSED


FATAL = [Kind.AUTH, Kind.QUOTA, Kind.NOT_FOUND]


@pytest.mark.parametrize("fault", [Fault.UPSTREAM, Fault.GATEWAY])
@pytest.mark.parametrize("kind", FATAL)
def test_what_no_repetition_cures_opens_it_at_once(kit: Kit, kind: Kind, fault: Fault) -> None:
    """A key of ours that is refused is nothing of the target's, and still nobody gets an answer."""
    kit.fail(kind, Site.CLOUD, fault=fault)
    kit.clock.now_s += FATAL_OPEN_S - 0.1
    assert kit.breaker(Site.CLOUD) is OPEN
    kit.clock.now_s += 0.1
    assert kit.breaker(Site.CLOUD) is HALF_OPEN


@pytest.mark.parametrize(
    ("kind", "fault"),
    [(kind, Fault.CALLER) for kind in Kind]
    + [(kind, Fault.GATEWAY) for kind in Kind if kind not in FATAL],
)
def test_a_fault_that_is_not_the_targets_never_does(kit: Kit, kind: Kind, fault: Fault) -> None:
    kit.fail(kind, Site.CLOUD, times=20, fault=fault, retry_after_s=9.0)
    assert kit.breaker(Site.CLOUD) is CLOSED
    assert kit.take().clouds[0].blocked_until_s == 0.0


def test_a_worker_that_does_not_know_the_model_is_asked_again_when_it_has_reported(
    kit: Kit,
) -> None:
    heard(kit)
    kit.fail(Kind.NOT_FOUND, times=20)
    assert kit.breaker() is CLOSED
    assert kit.take().workers[0].refused
    kit.clock.now_s += 1.0
    heard(kit)
    assert not kit.take().workers[0].refused
    # who asks for an adapter that is gone does not take the worker from anybody
    gone = Failure(Kind.NOT_FOUND, "x")
    kit.world.failed(attempt(Site.LOCAL), gone, adapter="shop-faq")
    assert not kit.take().workers[0].refused


def test_what_is_known_of_a_worker_that_left_is_forgotten_when_nothing_runs_there(
    kit: Kit,
) -> None:
    kit.fail(Kind.AUTH)
    assert kit.breaker() is OPEN
    staying, kit.reports = kit.reports, ()
    running = kit.world.sending(attempt(Site.LOCAL), 1, 1)
    kit.take()
    kit.reports = staying
    assert kit.breaker() is OPEN, "something still ran there"
    running.close()
    kit.reports = ()
    kit.take()
    kit.reports = staying
    assert kit.breaker() is CLOSED, "another one under the same name"


@pytest.mark.parametrize("tokens", [101, None], ids=["metered", "unmetered"])
def test_a_success_closes_it_also_when_the_engine_reports_no_usage(
    kit: Kit, tokens: int | None
) -> None:
    for _ in range(3):
        kit.fail(Kind.BROKEN, times=FAILURES_IN_A_ROW - 1)
        kit.succeed(output_tokens=tokens)
        kit.clock.now_s += 60  # their share is another signal, within a window
    assert kit.breaker() is CLOSED
    kit.fail(Kind.BROKEN, times=FAILURES_IN_A_ROW)
    kit.clock.now_s += OPEN_FIRST_S
    kit.succeed(output_tokens=tokens)
    assert kit.breaker() is CLOSED


def test_only_one_request_probes_and_its_failure_waits_longer(kit: Kit) -> None:
    kit.reports = (worker("w1"), worker("w2"))  # the last one of all is tried again sooner
    kit.fail(Kind.CONNECT, times=FAILURES_IN_A_ROW)
    kit.clock.now_s += OPEN_FIRST_S
    assert kit.breaker() is HALF_OPEN
    with kit.world.sending(attempt(Site.LOCAL), 1, 1):
        assert kit.breaker() is OPEN
    kit.world.failed(attempt(Site.LOCAL), Failure(Kind.CONNECT, "x"))
    kit.clock.now_s += OPEN_FIRST_S
    assert kit.breaker() is OPEN, "it now waits twice as long"
    kit.clock.now_s += OPEN_FIRST_S
    assert kit.breaker() is HALF_OPEN


@pytest.mark.parametrize("kind", [None, Kind.BUSY, Kind.BAD_REQUEST])
def test_a_probe_that_says_nothing_of_the_target_lets_the_next_one_try(
    kit: Kit, kind: Kind | None
) -> None:
    """Its client left, the worker was full, or the request was bad: that is no half minute."""
    kit.fail(Kind.CONNECT, times=FAILURES_IN_A_ROW)
    kit.clock.now_s += OPEN_FIRST_S
    with kit.world.sending(attempt(Site.LOCAL), 1, 1):
        pass
    if kind is not None:
        fault = Fault.UPSTREAM if kind is Kind.BUSY else Fault.CALLER
        kit.world.failed(attempt(Site.LOCAL), Failure(kind, "x", fault=fault))
    assert kit.breaker() is HALF_OPEN


def test_another_request_that_ends_does_not_end_the_probe(kit: Kit) -> None:
    with kit.world.sending(attempt(Site.LOCAL), 1, 1):
        kit.fail(Kind.CONNECT, times=FAILURES_IN_A_ROW)
        kit.clock.now_s += OPEN_FIRST_S
        with kit.world.sending(attempt(Site.LOCAL), 1, 1):
            with kit.world.sending(attempt(Site.LOCAL), 1, 1):
                pass
            assert kit.breaker() is OPEN


def test_a_failed_probe_that_is_left_late_does_not_end_the_next_one(kit: Kit) -> None:
    """Its books may take longer to close than its target takes to be probed again."""
    kit.fail(Kind.CONNECT, times=FAILURES_IN_A_ROW)
    kit.clock.now_s += OPEN_FIRST_S
    first = kit.world.sending(attempt(Site.LOCAL), 1, 1)
    with first:
        kit.world.failed(attempt(Site.LOCAL), Failure(Kind.CONNECT, "x"))
        kit.clock.now_s += 2 * OPEN_FIRST_S
        assert kit.breaker() is HALF_OPEN
        second = kit.world.sending(attempt(Site.LOCAL), 1, 1)
        second.__enter__()
    assert kit.breaker() is OPEN, "the second is still under way"
    second.__exit__(None, None, None)
    assert kit.breaker() is HALF_OPEN


# ------------------------------------------------------------------ rate limits


@pytest.mark.parametrize("kind", [Kind.RATE_LIMITED, Kind.OVERLOADED, Kind.BUSY])
@pytest.mark.parametrize(
    ("told_s", "blocked_s"), [(7.5, 7.5), (None, RATE_WAIT_S), (0.0, 0.0), (1e9, RETRY_AFTER_MAX_S)]
)
def test_the_cloud_is_left_alone_as_long_as_it_says(
    kit: Kit, kind: Kind, told_s: float | None, blocked_s: float
) -> None:
    kit.fail(kind, Site.CLOUD, times=20, retry_after_s=told_s)
    assert kit.take().clouds[0].blocked_until_s == kit.clock.now_s + blocked_s
    assert kit.breaker(Site.CLOUD) is CLOSED, "too much is not ill"


def test_a_shorter_wait_does_not_undo_a_longer_one(kit: Kit) -> None:
    kit.fail(Kind.RATE_LIMITED, Site.CLOUD, retry_after_s=40.0)
    kit.fail(Kind.OVERLOADED, Site.CLOUD, retry_after_s=1.0)
    assert kit.take().clouds[0].blocked_until_s == kit.clock.now_s + 40.0


def test_a_busy_worker_reports_by_itself_when_it_is_not(kit: Kit) -> None:
    kit.fail(Kind.BUSY, times=20, retry_after_s=60.0)
    assert kit.breaker() is CLOSED
    assert kit.world.target("w1").blocked_until_s == 0.0


# ------------------------------------------------------------------ what is learned


def test_pace_and_first_token_are_learned_from_streams(kit: Kit) -> None:
    kit.succeed(Site.CLOUD)
    found = kit.take().clouds[0]
    assert (found.ttft_ewma_ms, found.decode_tokens_per_s) == (100.0, 100.0)
    kit.succeed(Site.CLOUD, ttft_ms=600.0)
    assert kit.take().clouds[0].ttft_ewma_ms == pytest.approx(200.0)


def test_our_own_measure_of_a_worker_is_not_compared_with_what_others_publish(kit: Kit) -> None:
    """It is another one: an answer of four tokens is mostly its beginning and its end. Who has
    published nothing yet is taken to be as quick as the others."""
    kit.succeed()  # 100 tokens a second, as we see it
    for pace in (40.0, 400.0):
        kit.reports = (
            worker("w1", decode_tokens_per_s=0.0),
            worker("w2", decode_tokens_per_s=pace),
        )
        assert [w.decode_tokens_per_s for w in kit.take().workers] == [pace, pace]


def test_an_answer_in_one_piece_says_nothing_of_its_beginning(kit: Kit) -> None:
    kit.succeed(Site.CLOUD, ttft_ms=None, total_ms=9_000.0)
    found = kit.take().clouds[0]
    assert (found.ttft_ewma_ms, found.decode_tokens_per_s) == (0.0, 0.0)
    assert kit.world.likely_output_tokens("glm", 4_000) == 101


@pytest.mark.parametrize(
    "answer", [{"output_tokens": 1}, {"total_ms": 100.0}, {"total_ms": 50.0}, {"output_tokens": 0}]
)
def test_no_pace_can_be_read_from_one_token_or_no_time(kit: Kit, answer: dict[str, Any]) -> None:
    kit.succeed(Site.CLOUD, **answer)
    assert kit.take().clouds[0].decode_tokens_per_s == 0.0


def test_the_likely_length_of_an_answer(kit: Kit) -> None:
    assert kit.world.likely_output_tokens("glm", 4_000) == OUTPUT_TOKENS_FIRST
    kit.succeed(output_tokens=1_000)
    assert kit.world.likely_output_tokens("glm", 4_000) == 1_000
    assert kit.world.likely_output_tokens("glm", 300) == 300
    kit.succeed(output_tokens=None)
    kit.succeed(output_tokens=0)
    assert kit.world.likely_output_tokens("glm", 4_000) == 1_000, "silence is no short answer"
    kit.succeed(output_tokens=500)
    assert kit.world.likely_output_tokens("glm", 4_000) == 900
    assert kit.world.likely_output_tokens("other", 4_000) == OUTPUT_TOKENS_FIRST


def test_retries_are_paid_by_requests(kit: Kit) -> None:
    granted = sum(kit.world.may_retry() for _ in range(1_000))
    assert 0 < granted < 1_000
    for _ in range(6):
        kit.world.offered()
    assert kit.world.may_retry()
    assert not kit.world.may_retry()


def test_a_worker_found_gone_is_not_asked_before_it_has_reported(kit: Kit) -> None:
    kit.reports = (worker("w1", heard_s=kit.clock.now_s),)
    kit.clock.now_s += 0.5
    kit.fail(Kind.CONNECT)
    (taken,) = kit.take().workers
    assert (taken.health, taken.returning) == (Health.DOWN, True)
    kit.clock.now_s += 0.5
    kit.reports = (worker("w1", heard_s=kit.clock.now_s),)
    (taken,) = kit.take().workers
    assert (taken.health, taken.returning) == (Health.UP, False)


def test_one_death_breaks_many_calls_and_is_one_failure(kit: Kit) -> None:
    kit.reports = (worker("w1", heard_s=kit.clock.now_s),)
    kit.take()
    kit.fail(Kind.BROKEN, times=3 * FAILURES_IN_A_ROW)
    assert kit.breaker() is CLOSED
    for _ in range(FAILURES_IN_A_ROW - 1):  # but one that reports and dies, again and again
        kit.clock.now_s += 1
        kit.reports = (worker("w1", heard_s=kit.clock.now_s),)
        kit.take()
        kit.fail(Kind.BROKEN)
    assert kit.breaker() is OPEN


def test_who_was_away_for_long_is_not_waited_for(kit: Kit) -> None:
    kit.reports = (worker("w1", health=Health.DOWN, heard_s=kit.clock.now_s),)
    assert kit.take().workers[0].returning
    kit.clock.now_s += RETURN_S
    assert not kit.take().workers[0].returning
    kit.reports = (worker("w1", health=Health.DOWN),)  # never heard of
    assert not kit.take().workers[0].returning


def test_a_busy_answer_counts_until_the_next_report(kit: Kit) -> None:
    kit.reports = (worker("w1", heard_s=kit.clock.now_s),)
    kit.fail(Kind.BUSY)
    assert kit.take().workers[0].refused
    kit.clock.now_s += 0.02
    kit.reports = (worker("w1", heard_s=kit.clock.now_s),)
    assert not kit.take().workers[0].refused


def test_what_was_sent_and_answered_since_a_report_is_added_to_it(kit: Kit) -> None:
    earlier = kit.world.sending(attempt(Site.LOCAL), 1, 1)
    kit.reports = (worker("w1", running=6),)  # five of them are of other gateways
    assert kit.take().workers[0].unreported == 0
    later = kit.world.sending(attempt(Site.LOCAL), 1, 1)
    assert occupancy(kit.take().workers[0]) == 7
    earlier.close()
    earlier.close()  # once is enough
    later.close()
    assert occupancy(kit.take().workers[0]) == 5


def test_every_answer_of_a_request_is_in_flight_at_a_worker(kit: Kit) -> None:
    kit.reports = (worker("w1", running=1),)
    assert kit.take().workers[0].unreported == 0
    sent = kit.world.sending(attempt(Site.LOCAL), 1, 8, 4)
    (now,) = kit.take().workers
    assert (now.in_flight, now.in_flight_output_tokens, occupancy(now)) == (4, 8, 5)
    sent.close()
    (now,) = kit.take().workers
    assert (now.in_flight, now.in_flight_output_tokens) == (0, 0)


def test_one_that_fails_every_other_time_is_ejected_too(kit: Kit) -> None:
    kit.reports = (worker("w1"), worker("w2"))
    for _ in range(5):
        kit.succeed()
        kit.fail(Kind.SERVER_ERROR)
    assert kit.breaker() is OPEN


def test_a_callers_own_mistakes_never_eject(kit: Kit) -> None:
    kit.fail(Kind.BAD_REQUEST, times=100, fault=Fault.CALLER)
    kit.fail(Kind.CONTEXT, times=100, fault=Fault.CALLER)
    kit.fail(Kind.BUSY, times=100)
    assert kit.breaker() is CLOSED


def test_the_last_worker_is_not_put_aside_in_silence_nor_for_long(
    kit: Kit, capsys: pytest.CaptureFixture[str]
) -> None:
    kit.fail(Kind.SERVER_ERROR, times=FAILURES_IN_A_ROW)
    assert kit.take().alerts == ("no worker can be asked: w1 ejected",)
    assert "last_worker_ejected" in capsys.readouterr().out
    for _ in range(4):  # it fails its probes too: it is tried again all the same
        kit.clock.now_s += OPEN_FIRST_S
        assert kit.breaker() is HALF_OPEN
        kit.fail(Kind.SERVER_ERROR)
    kit.clock.now_s += OPEN_FIRST_S
    kit.succeed()
    assert kit.take().alerts == ()


def test_one_of_several_is_ejected_for_longer_each_time(kit: Kit) -> None:
    kit.reports = (worker("w1"), worker("w2"))
    kit.fail(Kind.SERVER_ERROR, times=FAILURES_IN_A_ROW)
    kit.clock.now_s += OPEN_FIRST_S
    kit.fail(Kind.SERVER_ERROR)
    kit.clock.now_s += OPEN_FIRST_S
    assert kit.breaker() is OPEN
    assert kit.take().alerts == ()


def test_what_a_worker_has_read_is_remembered_until_it_is_another_process(kit: Kit) -> None:
    first = facts(prefixes=(Prefix(key="a", tokens=160), Prefix(key="b", tokens=300)))
    kit.reports = (worker("w1", up_since_s=1.0),)
    assert kit.world.take(first).workers[0].held_tokens == 0
    kit.world.sent(attempt(Site.LOCAL), replace(first, pictures=("p",)))
    asked = facts(
        prefixes=(Prefix(key="a", tokens=160), Prefix(key="c", tokens=500)), pictures=("p",)
    )
    taken = kit.world.take(asked).workers[0]
    assert (taken.held_tokens, taken.held_pictures) == (160, 1)
    assert kit.world.take().workers[0].held_tokens == 0
    kit.reports = (worker("w1", up_since_s=2.0),)
    assert kit.world.take(asked).workers[0].held_tokens == 0


def test_what_is_remembered_is_bounded_and_the_oldest_goes(kit: Kit) -> None:
    for number in range(MEMORY_MAX + 10):
        asked = facts(prefixes=(Prefix(key=f"k{number}", tokens=1),))
        kit.world.sent(attempt(Site.LOCAL), asked)
    memory = kit.world.target("w1").memory
    assert len(memory) == MEMORY_MAX
    assert "k9" not in memory
    assert "k10" in memory


def test_a_worker_that_owes_a_report_is_known_by_it(kit: Kit) -> None:
    kit.reports = (worker("w1", heard_s=kit.clock.now_s),)
    kit.clock.now_s += SILENT_S
    assert not kit.take().workers[0].silent
    kit.clock.now_s += 0.1
    assert kit.take().workers[0].silent
    kit.reports = (worker("w1", heard_s=kit.clock.now_s),)
    assert not kit.take().workers[0].silent
    kit.reports = (worker("w1"),)  # of one that was never heard of its health says enough
    assert not kit.take().workers[0].silent


def test_how_long_a_worker_is_idle_counts_from_its_last_request(kit: Kit) -> None:
    kit.reports = (worker("w1"),)
    assert kit.take().workers[0].idle_s > 1_000  # it has only come
    with kit.world.sending(attempt(Site.LOCAL), 1, 1):
        assert kit.take().workers[0].idle_s == 0.0
    kit.clock.now_s += 7.0
    assert kit.take().workers[0].idle_s == 7.0
    kit.reports = (worker("w1", running=1),)  # another gateway's
    assert kit.take().workers[0].idle_s == 0.0
