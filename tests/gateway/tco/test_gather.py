from __future__ import annotations

from fractions import Fraction

import pytest
from msgspec.structs import replace

from gateway.tco.gather import JOBS_MAX, NothingToStudy, gather
from policies.types import Reason, Site
from tests.gateway.ledger.kit import row
from tests.gateway.tco.kit import START_MS, rows


def test_what_the_books_say_and_what_is_studied() -> None:
    made = list(rows(400))
    found = gather(reversed(made))
    assert [job.at_ms for job in found.jobs] == sorted(one.at_ms for one in made)
    assert (found.booked.requests, found.booked.local_requests) == (400, 300)
    assert found.booked.estimated == 100
    assert found.booked.pinned == 50
    assert found.booked.cloud_nano == sum(one.posted_nano for one in made if one.site is Site.CLOUD)
    assert sum(job.cloud_nano for job in found.jobs) == sum(one.cloud_nano or 0 for one in made)
    assert (found.booked.workers, found.booked.cards) == ({"w1"}, {"ark-2026-10"})
    assert found.span_s * 1000 - (made[-1].at_ms - made[0].at_ms) in range(1000)


def test_slot_time_of_cloud_answers_is_learned_from_local_ones() -> None:
    """The rows were made with 1/20 ms a prompt token, rounded down, and 25 ms an output token."""
    found = gather(rows(400))
    assert abs(found.completion_ms - 25) < Fraction(1, 100)
    assert abs(found.prompt_ms - Fraction(1, 20)) < Fraction(1, 1000)
    assert gather(rows(400), token_ms=Fraction(7)).completion_ms == 7


def test_earlier_attempts_cost_and_are_no_traffic() -> None:
    one, two, *_ = rows(2)
    failed = replace(one, attempt=0, final=False, site=Site.CLOUD, posted_nano=5)
    found = gather([one, failed, two])
    assert (len(found.jobs), found.booked.rows, found.booked.cloud_nano) == (2, 3, 5)


def test_a_correction_changes_the_price_of_its_request() -> None:
    *_, cloud = rows(4)
    assert cloud.site is Site.CLOUD
    open_ = replace(cloud, state="unreconciled", completion_tokens=0)
    less = replace(cloud, state="correction", final=False, posted_nano=-100)
    found = gather([*list(rows(3)), open_, less])
    assert (found.booked.requests, found.booked.unreconciled) == (4, 0)
    assert found.jobs[-1].cloud_nano == cloud.posted_nano - 100
    assert found.booked.cloud_nano == cloud.posted_nano - 100


def test_what_has_no_answer_or_no_price_is_left_out_and_counted() -> None:
    silent = row("yz-s.0", at_ms=START_MS)
    unpriced = row("yz-u.0", at_ms=START_MS, site=Site.LOCAL, completion_tokens=5, slot_ms=1)
    found = gather([silent, unpriced, *rows(10)])
    assert (found.booked.unanswered, found.booked.unpriced, len(found.jobs)) == (1, 1, 10)


def test_a_replay_is_stretched_back() -> None:
    plain, slow = gather(rows(50)), gather(rows(50), time_scale=20)
    assert slow.jobs[-1].at_ms - slow.jobs[0].at_ms == 20 * (
        plain.jobs[-1].at_ms - plain.jobs[0].at_ms
    )
    assert slow.jobs[-1].slot_ms == plain.jobs[-1].slot_ms


def test_nothing_to_study_says_what_is_missing() -> None:
    with pytest.raises(NothingToStudy, match="at least two answered requests"):
        gather([])
    cloud_only = [replace(one, reason=Reason.POOL_DOWN, site=Site.CLOUD) for one in rows(5)]
    with pytest.raises(NothingToStudy, match="give --token-ms"):
        gather(cloud_only)
    assert len(gather(cloud_only, token_ms=Fraction(30)).jobs) == 5


def test_only_the_latest_are_studied_when_there_are_very_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert JOBS_MAX >= 100_000
    monkeypatch.setattr("gateway.tco.gather.JOBS_MAX", 30)
    found = gather(rows(50))
    assert (len(found.jobs), found.booked.left_out, found.booked.rows) == (30, 20, 50)
