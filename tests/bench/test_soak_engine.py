"""The soak in short: the same code, fewer requests, answers compared with the worker's own."""

from __future__ import annotations

import pytest

from tests.bench.soak_engine import Found, soak


@pytest.mark.slow
def test_nothing_is_kept_of_requests_that_ended_or_were_given_up() -> None:
    # Without rest: memory needs thousands of requests to tell anything, see `make soak-engine`.
    found = soak(requests=160, seed=2, threads=1, reference="alone", restless=True)
    assert found.counts["answered"] > 50
    assert found.counts["left"] > 5
    assert found.wrong == []
    assert found.leaked == {"slots": 0, "kv_tokens": 0, "descriptors": 0}


def test_growth_and_leaks_are_seen() -> None:
    found = Found(
        kept=[{"slots": 0, "kv_tokens": 0}, {"slots": 1, "kv_tokens": 0}],
        rss_mb=[100, 200, 203, 210],
    )
    assert found.leaked == {"slots": 1, "kv_tokens": 0}
    assert found.rss_growth == pytest.approx(0.05)
