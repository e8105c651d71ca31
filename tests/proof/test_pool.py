"""The short form of `make proof-pool`, and that its judgement can fail."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.proof.callers import Answered, Callers, judged
from tests.proof.house import CHUNKS
from tests.proof.pool import holds, prove, undisturbed
from tests.proof.windows import median, p99, ratio, twins


@pytest.mark.slow
async def test_a_worker_that_is_killed_or_hangs_takes_no_request_with_it(tmp_path: Path) -> None:
    figures = await prove(tmp_path, nano=False, quick=True)
    assert holds(figures), figures
    assert figures["answered"] > 50
    assert figures["rolled"]
    assert set(figures["at_the_roll"].split()[1::2]) == {"ok"}, figures
    assert figures["resent"] > 0  # the positive control: the faults met requests


def stream(*events: str) -> bytes:
    return "".join(f"data: {event}\n\n" for event in events).encode()


WORD = '{"choices":[{"delta":{"content":"word "},"finish_reason":null}]}'
END = '{"choices":[{"delta":{},"finish_reason":"stop"}]}'
ERROR = '{"error":{"code":"upstream_broken"}}'


@pytest.mark.parametrize(
    ("seen", "how"),
    [
        (stream(*[WORD] * CHUNKS, END, "[DONE]"), "ok"),
        (stream(*[WORD] * (CHUNKS - 1), END, "[DONE]"), "false_done"),
        (stream(*[WORD] * CHUNKS, "[DONE]"), "false_done"),
        (stream(WORD, ERROR, "[DONE]"), "false_done"),
        (stream(WORD, ERROR), "broken"),
        (stream(WORD), "unexplained"),
        (b"", "unexplained"),
    ],
)
def test_how_a_stream_ended(seen: bytes, how: str) -> None:
    assert judged(seen, words=CHUNKS) == how


@pytest.mark.parametrize("name", ["failed_before", "false_done", "unexplained", "charged_twice"])
def test_one_of_them_is_enough(name: str) -> None:
    zero = ("failed_before", "false_done", "unexplained", "charged_twice")
    good = {**dict.fromkeys(zero, 0), "out_of_rotation_stop_s": 5.0}
    assert holds(good)
    assert not holds({**good, name: 1})
    assert not holds({**good, "out_of_rotation_stop_s": 11.0})


@pytest.mark.parametrize("name", ["ratio_kill", "ratio_stop"])
def test_others_that_wait_are_seen(name: str) -> None:
    calm = {"ratio_kill": 1.2, "ratio_stop": 0.9}
    assert undisturbed(calm)
    assert not undisturbed({**calm, name: 1.21})
    assert not undisturbed({**calm, name: float("nan")})  # nothing was measured


def answered(window: str, number: int, total_ms: float, **more: Any) -> Answered:
    row = {"stream": False, "due_s": number / 10, "began_s": 0.0, "how": "ok", "attempts": 1}
    return Answered(window, number, total_ms=total_ms, **{**row, **more})


def test_only_arrivals_that_both_windows_answered_at_once_are_compared() -> None:
    """Whoever the dead worker had is not one of the others; its twin is left out as well."""
    answers = [
        *(answered("calm", n, 100.0 + n) for n in range(10)),
        answered("kill", 0, 150.0),
        answered("kill", 1, 5_000.0, attempts=2),
        answered("kill", 2, 9_000.0, how="broken"),
        answered("kill", 3, 206.0),
    ]  # and after it the window was over
    assert twins(answers, "kill", "calm") == ([150.0, 206.0], [100.0, 103.0])
    assert ratio(answers, "kill", "calm") == 2.0
    assert math.isnan(ratio(answers, "stop", "calm"))


def test_the_slowest_in_a_hundred() -> None:
    assert p99(list(range(1_000))) == 990
    assert p99([3.0, 1.0]) == 3.0
    assert math.isnan(p99([]))
    assert (median([3.0, 1.0, 2.0]), median([1.0, 2.0])) == (2.0, 1.5)
    assert math.isnan(median([]))


async def test_every_window_plays_the_same_arrivals(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_: Callers, stream: bool) -> tuple[str, int, str, str]:
        return "ok", 1, "", ""

    monkeypatch.setattr(Callers, "_answer", at_once)
    async with aiohttp.ClientSession() as http:
        callers = Callers(http, "http://127.0.0.1:1", "", words=None)
        for name in ("one", "other"):
            await callers.window(name, 500.0, asyncio.sleep(0.1))
        await callers.quiet()
    windows = {
        name: [(a.due_s, a.stream) for a in sorted(callers.answers) if a.window == name]
        for name in ("one", "other")
    }
    shorter = min(map(len, windows.values()))
    assert windows["one"][:shorter] == windows["other"][:shorter]
    for number, (due_s, stream) in enumerate(windows["one"]):  # one in each interval
        assert number / 500 <= due_s <= (number + 1) / 500
        assert stream is (number % 2 == 0)
