from __future__ import annotations

import pytest

from backends.glm.engine.progress import (
    LOOK_MAX_S,
    STALL_MIN_S,
    Part,
    Pulse,
    Watch,
    stall_limit_s,
)

AT_REST = Part(busy=False, done=0)


def pulse(part: Part, *, pictures: bool) -> Pulse:
    return Pulse(steps=AT_REST, pictures=part) if pictures else Pulse(steps=part, pictures=AT_REST)


@pytest.mark.parametrize(("pictures", "what"), [(False, "step"), (True, "picture")])
def test_what_stands_still_is_named(pictures: bool, what: str) -> None:
    watch = Watch(10.0)
    still = pulse(Part(busy=True, done=3), pictures=pictures)
    found = [watch.look(still, float(now_s)) for now_s in range(12)]
    # The first look sees three pieces more than before.
    assert found[:10] == [None] * 10
    assert found[10] == f"no {what} has ended for 10 s while requests wait for one"


def test_progress_and_rest_begin_anew() -> None:
    watch = Watch(3.0)
    for now_s in range(40):
        moving = Part(busy=True, done=now_s // 2)
        assert watch.look(Pulse(steps=moving, pictures=AT_REST), float(now_s)) is None
    for now_s in range(40, 80):
        part = Part(busy=now_s % 3 != 0, done=20)
        assert watch.look(Pulse(steps=part, pictures=AT_REST), float(now_s)) is None


def test_steps_do_not_hide_a_picture_that_hangs() -> None:
    watch = Watch(5.0)
    seen = [
        watch.look(
            Pulse(steps=Part(busy=True, done=now_s), pictures=Part(busy=True, done=0)), now_s
        )
        for now_s in range(7)
    ]
    assert seen[5] is not None
    assert "picture" in seen[5]


def test_a_process_that_was_stopped_has_not_hung() -> None:
    watch = Watch(10.0)
    still = Pulse(steps=Part(busy=True, done=1), pictures=AT_REST)
    watch.look(still, 0.0)
    assert watch.look(still, 1000.0) is None  # SIGSTOP, SIGCONT
    looks = 1
    while watch.look(still, 1000.0 + looks) is None:
        looks += 1
    assert looks == 10 - LOOK_MAX_S


def test_the_limit_goes_by_the_longest_piece_of_work() -> None:
    quick = stall_limit_s(step_tokens=2048, picture_tokens=6144, prefill_tokens_per_s=5000.0)
    assert quick == STALL_MIN_S
    slow = stall_limit_s(step_tokens=512, picture_tokens=6144, prefill_tokens_per_s=50.0)
    assert slow == 10 * 6144 / 50
    unmeasured = stall_limit_s(step_tokens=512, picture_tokens=0, prefill_tokens_per_s=0.0)
    assert unmeasured >= STALL_MIN_S
