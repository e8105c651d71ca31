from __future__ import annotations

from backends.glm.engine.speeds import RETRY_AFTER_MAX_S, Rate, Speeds


def test_a_rate_weighs_requests_by_their_size() -> None:
    rate = Rate()
    assert rate.per_second == 0.0
    rate.add(1000, 1.0)
    rate.add(5, 0.05)  # 100 a second: mostly overhead
    assert 900 < rate.per_second < 1000


def test_one_request_and_all_together() -> None:
    speeds = Speeds()
    speeds.step(decoded=0, seconds=5.0)  # a step that only read prompts says nothing of decoding
    assert (speeds.decode.per_second, speeds.total.per_second) == (0.0, 0.0)
    speeds.step(decoded=8, seconds=0.1)
    assert (round(speeds.decode.per_second), round(speeds.total.per_second)) == (10, 80)


def test_when_to_come_back() -> None:
    speeds = Speeds()
    assert speeds.retry_after_s(1, 4) == 1
    speeds.requests.add(1, 11.5)
    assert speeds.retry_after_s(1, 1) == 12
    assert speeds.retry_after_s(1, 4) == 3
    assert speeds.retry_after_s(4, 4) == 12
    assert speeds.retry_after_s(1000, 4) == RETRY_AFTER_MAX_S
