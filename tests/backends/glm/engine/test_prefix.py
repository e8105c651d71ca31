from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.glm.engine.prefix import BLOCK, PrefixIndex, block_keys
from backends.glm.types import Pixels, Prompt

IMAGE = 7


def prompt(ids: list[int], *pictures: tuple[bytes, int]) -> Prompt:
    """`pictures`: key and tokens of each, for the runs of IMAGE in `ids`."""
    pixels = None
    if pictures:
        pixels = Pixels(
            values=np.zeros((1, 1), np.float32),
            grid=np.ones((len(pictures), 3), np.int64),
            tokens=tuple(n for _, n in pictures),
            keys=tuple(key for key, _ in pictures),
        )
    return Prompt(ids=ids, image_token_id=IMAGE, pixels=pixels, thinking="closed")


LONG = list(range(100, 100 + 4 * BLOCK + 3))


def test_equal_beginnings_have_equal_keys_and_nothing_else_has() -> None:
    whole = block_keys(prompt(LONG), "a")
    assert len(whole) == len(set(whole)) == 4
    assert block_keys(prompt(LONG[: 3 * BLOCK]), "a") == whole[:3]
    changed = [*LONG]
    changed[BLOCK] += 1
    assert block_keys(prompt(changed), "a")[0] == whole[0]
    assert not set(block_keys(prompt(changed), "a")[1:]) & set(whole)


def test_tenants_share_nothing() -> None:
    assert not set(block_keys(prompt(LONG), "a")) & set(block_keys(prompt(LONG), "b"))


def test_pictures_count_by_their_content() -> None:
    ids = [*range(100, 110), *[IMAGE] * 30, *range(200, 230), *[IMAGE] * 10, *range(300, 316)]

    def keys(first: bytes, second: bytes) -> list[bytes]:
        return block_keys(prompt(ids, (first, 30), (second, 10)), "")

    one, other = keys(b"cat", b"dog"), keys(b"cat", b"cow")
    assert len(one) == 6
    # The second picture stands in places 70 to 79: its block and all behind it differ.
    assert one[:4] == other[:4]
    assert not set(one[4:]) & set(other[4:])
    assert not set(keys(b"ant", b"dog")) & set(one)


def test_an_answer_belongs_to_the_next_prompt() -> None:
    asked, answer = LONG[: 2 * BLOCK + 5], LONG[2 * BLOCK + 5 :]
    assert block_keys(prompt(asked), "", answer) == block_keys(prompt(LONG), "")


def test_the_longest_kept_beginning_is_found() -> None:
    index = PrefixIndex(10)
    keys = block_keys(prompt(LONG), "")
    assert index.match(keys) == []
    made = index.keep(keys[:3])
    assert [i for i, _ in made] == [0, 1, 2]
    assert index.match(keys) == [block for _, block in made]
    assert index.kept(keys) == 3
    assert [i for i, _ in index.keep(keys)] == [3]


def test_the_least_recently_used_goes_and_ends_before_beginnings() -> None:
    index = PrefixIndex(4)
    old, new = [b"a0", b"a1"], [b"b0", b"b1"]
    index.keep(old)
    index.keep(new)
    index.match(old)
    index.keep([b"c0"])
    assert (index.kept(old), index.kept(new)) == (2, 1)


def test_a_prompt_longer_than_the_room_keeps_its_beginning() -> None:
    index = PrefixIndex(2)
    assert [i for i, _ in index.keep([b"0", b"1", b"2"])] == [0, 1]
    assert PrefixIndex(0).keep([b"0"]) == []


@given(
    prompts=st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=6), max_size=30),
    room=st.integers(0, 8),
)
def test_no_block_is_two_prompts(prompts: list[list[str]], room: int) -> None:
    """Against what every block was last written with."""
    index = PrefixIndex(room)
    written: dict[int, bytes] = {}
    for letters in prompts:
        keys = ["".join(letters[: i + 1]).encode() for i in range(len(letters))]
        found = index.match(keys)
        assert [written[block] for block in found] == keys[: len(found)]
        for i, block in index.keep(keys):
            written[block] = keys[i]
        assert len(index) <= room
        if room >= len(keys):
            assert index.kept(keys) == len(keys)


@pytest.mark.parametrize(
    ("kept", "readers", "expected"),
    [(0, [], 0), (0, ["abcx", "ax"], 3), (2, ["abcd"], 2), (0, ["xbcd"], 0)],
)
def test_what_waiting_would_save(kept: int, readers: list[str], expected: int) -> None:
    own = [letter.encode() for letter in "abcd"]
    index = PrefixIndex(9)
    index.keep(own[:kept])
    assert index.soon(own, [[c.encode() for c in reader] for reader in readers]) == expected
