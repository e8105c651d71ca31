from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from backends.glm.model import vision_thread
from backends.glm.model.vision_thread import Encoding, VisionThread
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


class Heard:
    def __init__(self) -> None:
        self._heard: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self.on_ready = self._heard.put

    def get(self) -> Exception | None:
        return self._heard.get(timeout=WAIT_S)

    @property
    def empty(self) -> bool:
        return self._heard.empty()


def held(kept_bytes: int = 10**6) -> tuple[VisionThread, Encoder]:
    """VisionThread whose first batch has begun and waits, so that what follows comes together."""
    encoder = Encoder()
    made = VisionThread(encoder, kept_bytes=kept_bytes)
    made.encode([picture("0")], "", Heard().on_ready)
    assert encoder.entered.acquire(timeout=WAIT_S)
    return made, encoder


def values(encoding: Encoding) -> list[float]:
    return encoding.features[:, 0].tolist() if encoding.ready else []


def test_pictures_of_several_requests_are_encoded_together_each_once() -> None:
    vision, encoder = held()
    one, two = Heard(), Heard()
    first = vision.encode([picture("a"), picture("b", 16)], "", one.on_ready)
    second = vision.encode([picture("b", 16), picture("c")], "", two.on_ready)
    encoder.gate.release(2)
    assert (one.get(), two.get()) == (None, None)
    assert encoder.batches == [[b"0"], [b"a", b"b", b"c"]]
    assert values(first) == [97.0] * 2 + [98.0] * 4
    assert values(second) == [98.0] * 4 + [99.0] * 2


def test_what_was_seen_is_remembered_for_its_tenant_only() -> None:
    vision, encoder = held()
    encoder.gate.release(10)
    heard = Heard()
    vision.encode([picture("a")], "x", heard.on_ready)
    assert heard.get() is None
    again = Heard()
    assert values(vision.encode([picture("a")], "x", again.on_ready)) == [97.0] * 2
    assert again.empty
    other = Heard()
    assert not vision.encode([picture("a")], "y", other.on_ready).ready
    assert other.get() is None
    assert (vision.asked, vision.remembered) == (4, 1)


def test_no_more_is_kept_than_may_be() -> None:
    vision, encoder = held(kept_bytes=2 * 16)  # two pictures of 2 x 2 numbers
    encoder.gate.release(10)
    for key in "abc":
        heard = Heard()
        vision.encode([picture(key)], "", heard.on_ready)
        assert heard.get() is None
    assert [key for _, key in vision._kept] == [b"b", b"c"]
    assert vision._bytes == 2 * 16


def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision_thread, "BATCH_PATCHES", 16)
    vision, encoder = held()
    heard = Heard()
    vision.encode([picture(key) for key in "abc"], "", heard.on_ready)
    encoder.gate.release(3)
    assert heard.get() is None
    assert encoder.batches == [[b"0"], [b"a", b"b"], [b"c"]]


def test_one_that_cannot_be_encoded_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    vision, encoder = held()
    good, bad = Heard(), Heard()
    encoding = vision.encode([picture("a")], "", good.on_ready)
    vision.encode([picture("bad")], "", bad.on_ready)
    encoder.gate.release(10)
    assert good.get() is None
    assert values(encoding) == [97.0] * 2
    assert "cannot look" in str(bad.get())
    assert any("2 pictures failed together" in line for line in caplog.messages)


def test_who_left_is_not_told_and_not_worked_for() -> None:
    vision, encoder = held()
    gone, stays = Heard(), Heard()
    vision.cancel(vision.encode([picture("a")], "", gone.on_ready))
    vision.encode([picture("b")], "", stays.on_ready)
    encoder.gate.release(10)
    assert stays.get() is None
    assert gone.empty
    assert encoder.batches == [[b"0"], [b"b"]]


def test_the_thread_lives_while_there_is_something_to_look_at() -> None:
    vision, encoder = held()
    assert vision_threads()
    encoder.gate.release(10)
    for _ in range(3):
        heard = Heard()
        vision.encode([picture("a"), picture(str(heard))], "", heard.on_ready)
        assert heard.get() is None
        for thread in vision_threads():
            thread.join(WAIT_S)
        assert not vision_threads()


def vision_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "glm-vision"]


def test_nobody_looks_after_the_end() -> None:
    vision, encoder = held()
    encoder.gate.release(1)
    vision.stop(WAIT_S)
    vision.encode([picture("a")], "", Heard().on_ready)
    assert not vision_threads()
    assert encoder.batches == [[b"0"]]
    VisionThread(encoder, kept_bytes=0).stop(WAIT_S)  # who has never looked has nothing to end
