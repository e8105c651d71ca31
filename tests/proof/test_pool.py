"""The short form of `make proof-pool`, and that its judgement can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof.pool import CHUNKS, holds, judged, prove, undisturbed


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
