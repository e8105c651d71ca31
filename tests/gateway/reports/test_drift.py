from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from structlog.testing import capture_logs

from gateway.ledger.rows import Row
from gateway.reports.drift import WINDOW_S, DriftWatch, image_drift
from policies.drift import PICTURES_MIN, Drift
from tests.gateway.reports.test_report import row


def picture(expected: int, counted: int, **more: Any) -> Row:
    return row(image_tokens_expected=expected, image_tokens=counted, **more)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_an_alarm_once_in_a_window() -> None:
    clock = Clock()
    alarms: list[Drift] = []
    watch = DriftWatch(clock, alarm=alarms.append)
    with capture_logs() as logs:
        for _ in range(3 * PICTURES_MIN):
            watch.saw(picture(1_000, 1_100))
        assert [line["event"] for line in logs] == ["image_token_drift"]
        assert (logs[0]["target"], logs[0]["share"]) == ("local:w1", 0.1)
        clock.now_s = WINDOW_S
        for _ in range(PICTURES_MIN):
            watch.saw(picture(1_000, 1_100))
        assert len(logs) == len(alarms) == 2


def test_right_counts_other_targets_and_answers_without_pictures_are_quiet() -> None:
    watch = DriftWatch(Clock())
    with capture_logs() as logs:
        for i in range(3 * PICTURES_MIN):
            watch.saw(picture(1_000, 1_001))
            watch.saw(picture(0, 500))
            watch.saw(picture(1_000, 1_500, target=f"x{i}"))  # too few of each
        assert logs == []


async def test_rows_of_the_books_by_target() -> None:
    async def rows() -> AsyncIterator[Row]:
        for each in (
            picture(144, 144),
            picture(144, 146),
            picture(1_280, 697, target="w2"),
            picture(0, 3, target="w3"),
        ):
            yield each

    assert await image_drift(rows()) == [
        Drift(target="local:w1", answers=2, expected=288, counted=290),
        Drift(target="local:w2", answers=1, expected=1_280, counted=697),
    ]
