from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from backends.glm.model import eyes
from backends.glm.model.eyes import Eyes, Sight
from backends.glm.types import Picture

WAIT_S = 20


class Encoder:
    """Says a picture's key back; can be held, and breaks on a picture called "bad"."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def encode(self, pictures: Sequence[Picture]) -> list[Any]:
        self.entered.release()
        assert self.gate.acquire(timeout=WAIT_S)
        self.batches.append([picture.key for picture in pictures])
        if any(picture.key == b"bad" for picture in pictures):
            raise RuntimeError("cannot look at this")
        return [torch.full((picture.tokens, 2), float(picture.key[0])) for picture in pictures]


def picture(key: str, patches: int = 8) -> Picture:
    return Picture(
        key=key.encode(),
        values=np.zeros((patches, 3), np.float32),
        grid=(1, 2, patches // 2),
        tokens=patches // 4,
    )


class Told:
    def __init__(self) -> None:
        self._told: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self.told = self._told.put

    def get(self) -> Exception | None:
        return self._told.get(timeout=WAIT_S)

    @property
    def empty(self) -> bool:
        return self._told.empty()


def held(kept_bytes: int = 10**6) -> tuple[Eyes, Encoder]:
    """Eyes whose first batch has begun and waits, so that what follows comes together."""
    encoder = Encoder()
    made = Eyes(encoder, kept_bytes=kept_bytes)
    made.look([picture("0")], "", Told().told)
    assert encoder.entered.acquire(timeout=WAIT_S)
    return made, encoder


def values(sight: Sight) -> list[float]:
    return [] if sight.features is None else sight.features[:, 0].tolist()


def test_pictures_of_several_requests_are_encoded_together_each_once() -> None:
    look, encoder = held()
    one, two = Told(), Told()
    first = look.look([picture("a"), picture("b", 16)], "", one.told)
    second = look.look([picture("b", 16), picture("c")], "", two.told)
    encoder.gate.release(2)
    assert (one.get(), two.get()) == (None, None)
    assert encoder.batches == [[b"0"], [b"a", b"b", b"c"]]
    assert values(first) == [97.0] * 2 + [98.0] * 4
    assert values(second) == [98.0] * 4 + [99.0] * 2


def test_what_was_seen_is_remembered_for_its_tenant_only() -> None:
    look, encoder = held()
    encoder.gate.release(10)
    told = Told()
    look.look([picture("a")], "x", told.told)
    assert told.get() is None
    again = Told()
    assert values(look.look([picture("a")], "x", again.told)) == [97.0] * 2
    assert again.empty
    other = Told()
    assert look.look([picture("a")], "y", other.told).features is None
    assert other.get() is None
    assert (look.asked, look.remembered) == (4, 1)


def test_no_more_is_kept_than_may_be() -> None:
    look, encoder = held(kept_bytes=2 * 16)  # two pictures of 2 x 2 numbers
    encoder.gate.release(10)
    for key in "abc":
        told = Told()
        look.look([picture(key)], "", told.told)
        assert told.get() is None
    assert [key for _, key in look._kept] == [b"b", b"c"]
    assert look._bytes == 2 * 16


def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eyes, "BATCH_PATCHES", 16)
    look, encoder = held()
    told = Told()
    look.look([picture(key) for key in "abc"], "", told.told)
    encoder.gate.release(3)
    assert told.get() is None
    assert encoder.batches == [[b"0"], [b"a", b"b"], [b"c"]]


def test_one_that_cannot_be_encoded_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    look, encoder = held()
    good, bad = Told(), Told()
    sight = look.look([picture("a")], "", good.told)
    look.look([picture("bad")], "", bad.told)
    encoder.gate.release(10)
    assert good.get() is None
    assert values(sight) == [97.0] * 2
    assert "cannot look" in str(bad.get())
    assert any("2 pictures failed together" in line for line in caplog.messages)


def test_who_left_is_not_told_and_not_worked_for() -> None:
    look, encoder = held()
    gone, stays = Told(), Told()
    look.forget(look.look([picture("a")], "", gone.told))
    look.look([picture("b")], "", stays.told)
    encoder.gate.release(10)
    assert stays.get() is None
    assert gone.empty
    assert encoder.batches == [[b"0"], [b"b"]]


def test_the_thread_lives_while_there_is_something_to_look_at() -> None:
    look, encoder = held()
    assert eyes_threads()
    encoder.gate.release(10)
    for _ in range(3):
        told = Told()
        look.look([picture("a"), picture(str(told))], "", told.told)
        assert told.get() is None
        for thread in eyes_threads():
            thread.join(WAIT_S)
        assert not eyes_threads()


def eyes_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "glm-eyes"]


def test_nobody_looks_after_the_end() -> None:
    look, encoder = held()
    encoder.gate.release(1)
    look.stop(WAIT_S)
    look.look([picture("a")], "", Told().told)
    assert not eyes_threads()
    assert encoder.batches == [[b"0"]]
    Eyes(encoder, kept_bytes=0).stop(WAIT_S)  # who has never looked has nothing to end
