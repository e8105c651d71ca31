from __future__ import annotations

from typing import Any

import pytest

from backends.ark.emulator.faults import Refused
from backends.ark.emulator.limits import Limiter, Wish
from backends.ark.emulator.settings import Burst
from tests.backends.ark.conftest import Start
from tests.backends.ark.kit import GLM_5_3, KEY, SEED_1_8, SEED_2_0, SEED_2_1, post

QUIET = Burst(enabled=False)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def limiter(clock: Clock, **changes: Any) -> Limiter:
    return Limiter(
        **{"window_s": 60.0, "concurrency": None, "burst": QUIET, "clock": clock, **changes}
    )


def wish(**changes: Any) -> Wish:
    fields = {"account": "a", "name": "m", "rpm": 2, "tpm": 1000, "burst_code": "Burst"}
    return Wish(**{**fields, **changes})


def refusal(limits: Limiter, asked: Wish, tokens: int | None = None) -> str | None:
    """The code of the refusal, or None: a request, or tokens when they are given."""
    try:
        if tokens is None:
            limits.count_request(asked)
        else:
            limits.take(asked, tokens)
    except Refused as refused:
        return refused.code
    return None


def test_requests_a_minute_are_shared_by_the_endpoints_of_a_model() -> None:
    clock = Clock()
    limits = limiter(clock)
    assert refusal(limits, wish()) is None
    assert refusal(limits, wish(endpoint="ep-1")) is None
    assert refusal(limits, wish()) == "ModelAccountRpmRateLimitExceeded"
    assert refusal(limits, wish(endpoint="ep-1")) == "RateLimitExceeded.EndpointRPMExceeded"
    assert refusal(limits, wish(account="b")) is None
    assert refusal(limits, wish(name="other")) is None
    clock.now_s = 60.0
    assert refusal(limits, wish()) is None


def test_an_endpoint_has_caps_of_its_own() -> None:
    limits = limiter(Clock())
    tight = wish(endpoint="ep-1", endpoint_rpm=1, endpoint_tpm=100, rpm=None)
    assert refusal(limits, tight) is None
    assert refusal(limits, tight) == "RateLimitExceeded.EndpointRPMExceeded"
    assert refusal(limits, wish(rpm=None)) is None
    assert refusal(limits, tight, 101) == "RateLimitExceeded.EndpointTPMExceeded"
    assert refusal(limits, tight, 100) is None


def test_tokens_are_deducted_before_they_are_used_and_corrected_after() -> None:
    limits = limiter(Clock())
    taken = limits.take(wish(), 900)
    assert refusal(limits, wish(), 200) == "ModelAccountTpmRateLimitExceeded"
    limits.release(taken, 50)
    assert refusal(limits, wish(), 200) is None


def test_what_ends_in_a_later_minute_is_not_booked_there() -> None:
    clock = Clock()
    limits = limiter(clock)
    taken = limits.take(wish(), 900)
    clock.now_s = 60.0
    limits.release(taken, 1000)
    assert refusal(limits, wish(), 1000) is None


def test_concurrency_is_of_an_account() -> None:
    limits = limiter(Clock(), concurrency=1)
    taken = limits.take(wish(), 1)
    assert refusal(limits, wish(name="other"), 1) == "InflightBatchsizeExceeded"
    assert refusal(limits, wish(account="b"), 1) is None
    limits.release(taken, 1)
    assert refusal(limits, wish(), 1) is None


def test_growth_of_three_million_tokens_in_a_minute_is_a_burst() -> None:
    clock = Clock()
    limits = limiter(clock, burst=Burst())
    roomy = wish(tpm=None)
    assert refusal(limits, roomy, 3_000_000) is None
    assert refusal(limits, roomy, 1) == "Burst"
    clock.now_s = 60.0
    assert refusal(limits, roomy, 3_000_001) is None


def test_growth_of_a_fifth_in_three_minutes_is_a_burst_when_there_is_traffic() -> None:
    clock = Clock()
    limits = limiter(clock, burst=Burst())
    roomy = wish(tpm=None)
    for minute, tokens in enumerate((2_000_000, 2_000_000, 2_000_000, 2_400_000)):
        clock.now_s = 60.0 * minute
        assert refusal(limits, roomy, tokens) is None
    assert refusal(limits, roomy, 1) == "Burst"


async def test_limits_over_http(start: Start) -> None:
    clock = Clock()
    emulator = await start(
        clock=clock,
        endpoints={"ep-1": {"model": SEED_2_0, "rpm": 1}},
        limits={"doubao-seed-2-0-mini": {"rpm": 3}, "*": {"tpm": 5000}},
        send_retry_after=True,
    )
    clock.now_s = 45.0
    assert (await post(emulator.url, model="ep-1"))[0] == 200
    status, headers, body = await post(emulator.url, model="ep-1")
    assert (status, headers["retry-after"]) == (429, "16")
    assert body["error"]["code"] == "RateLimitExceeded.EndpointRPMExceeded"
    assert (await post(emulator.url))[0] == 200
    # A request that fails still counts.
    assert (await post(emulator.url, messages=[{"role": "boss", "content": "x"}]))[0] == 400
    status, _, body = await post(emulator.url)
    assert body["error"]["code"] == "ModelAccountRpmRateLimitExceeded"
    # Deducted at once: input and the limit of the output.
    status, _, body = await post(emulator.url, model=GLM_5_3, max_completion_tokens=6000)
    assert (status, body["error"]["code"]) == (429, "ModelAccountTpmRateLimitExceeded")
    assert (await post(emulator.url, model=GLM_5_3, max_completion_tokens=600))[0] == 200


@pytest.mark.parametrize(
    ("model", "code"), [(SEED_2_1, "RequestBurstTooFast"), (SEED_1_8, "ServerOverloaded")]
)
async def test_a_burst_has_the_code_of_its_generation(start: Start, model: str, code: str) -> None:
    emulator = await start(burst={"growth_tokens": 500}, limits={"*": {"tpm": 10**9}})
    status, _, body = await post(emulator.url, model=model, max_completion_tokens=600)
    assert (status, body["error"]["code"]) == (429, code)


async def test_accounts_do_not_share(start: Start) -> None:
    keys = [{"key": KEY, "account": "a"}, {"key": "other", "account": "b"}]
    emulator = await start(keys=keys, limits={"*": {"rpm": 1}})
    other = {"Authorization": "Bearer other"}
    assert (await post(emulator.url))[0] == 200
    assert (await post(emulator.url))[0] == 429
    assert (await post(emulator.url, headers=other))[0] == 200
    assert [row.account for row in emulator.books.charged.rows] == ["a", "b"]
