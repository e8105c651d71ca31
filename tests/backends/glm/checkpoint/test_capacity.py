from __future__ import annotations

import pytest

from backends.glm.checkpoint.capacity import (
    BESIDE_TOKENS_MIN,
    SLOTS_CPU,
    SLOTS_CUDA,
    STEP_TOKENS_CPU,
    STEP_TOKENS_CUDA,
    Asked,
    Capacity,
    beside_tokens,
    capacity,
    useful_tokens,
)

GIB = 2**30


DEFAULT = Asked()


def room(
    asked: Asked = DEFAULT, *, cuda: bool = False, free: int = GIB, context: int = 4096
) -> Capacity:
    return capacity(asked, cuda=cuda, free_bytes=free, token_bytes=40_960, max_model_len=context)


def test_the_device_decides() -> None:
    cpu, cuda = room(), room(cuda=True)
    assert (cpu.slots, cpu.step_tokens) == (SLOTS_CPU, STEP_TOKENS_CPU)
    assert (cuda.slots, cuda.step_tokens) == (SLOTS_CUDA, STEP_TOKENS_CUDA)
    assert cpu.kv_tokens * 40_960 <= GIB / 4
    assert cuda.kv_tokens * 40_960 <= GIB / 2 * 0.8
    large = room(cuda=True, free=20 * GIB, context=10**6)
    assert 0.79 < large.kv_tokens * 40_960 / (18 * GIB) <= 0.8


def test_a_row_is_no_longer_than_a_request_can_be() -> None:
    assert room(free=10**15).row_tokens == 4096
    assert room(free=10**15).kv_tokens == SLOTS_CPU * 4096


def test_what_is_remembered_is_a_share_of_the_cache() -> None:
    made = room()
    assert made.kept_tokens == made.kv_tokens // 8
    assert 0 < made.kept_bytes < made.kv_tokens * 40_960 / 8
    none = room(Asked(kept_tokens=0))
    assert (none.kept_tokens, none.kept_bytes) == (0, 0)


def test_the_operator_decides() -> None:
    made = room(Asked(slots=3, kv_tokens=300, step_tokens=7))
    assert (made.slots, made.rows, made.row_tokens, made.step_tokens) == (3, 3, 100, 7)


def test_what_the_check_before_loading_has_found_room_for_is_made() -> None:
    assert useful_tokens(131_072, asked_for=True) == 131_072
    assert useful_tokens(131_072, asked_for=False) == 8192
    assert useful_tokens(4096, asked_for=False) == 4096
    made = capacity(
        DEFAULT,
        cuda=True,
        free_bytes=100_000,
        token_bytes=40_960,
        max_model_len=131_072,
        least_tokens=8192,
    )
    assert made.kv_tokens == 8192
    assert made.cache_bytes(40_960) == (8192 + 1024 + 256) * 40_960


@pytest.mark.parametrize("free", [0, 1, 10**6])
def test_something_is_left_however_small_the_memory(free: int) -> None:
    assert room(free=free).row_tokens >= 1


def test_reading_beside_others_takes_a_tenth_of_a_second() -> None:
    assert beside_tokens(512, 2000.0) == 200
    assert beside_tokens(512, 10**6) == 512
    assert beside_tokens(512, 0.0) == BESIDE_TOKENS_MIN
