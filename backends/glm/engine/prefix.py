"""Which beginnings of prompts are kept, so that they need not be read again. Pure.

A prompt is cut into blocks of BLOCK tokens. A block's key is a hash over everything up to its end:
whose cache it is, the ids, and for places of pictures the pictures' own hashes. Two prompts that
share a key share every token before it, and a key of one tenant is no key of another.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from backends.glm.types import Prompt

BLOCK = 16  # tokens: vLLM's block; shorter finds a little more, longer costs less per token
_KEY_BYTES = 16
# Waiting for another's prefill is worth while when it saves at least so much reading.
SHARED_BLOCKS_MIN = 4


def block_keys(prompt: Prompt, partition: str, answer: Sequence[int] = ()) -> list[bytes]:
    """Keys of the whole blocks of a prompt with the beginning of an answer behind it; `partition`:
    whose cache it is, see `Job.partition`."""
    ids = np.asarray([*prompt.ids, *answer], dtype=np.int64)
    pictures: list[tuple[int, int, bytes]] = []  # first and last place, hash
    if prompt.pixels is not None:
        places = np.flatnonzero(prompt.token_types)
        taken = 0
        for tokens, key in zip(prompt.pixels.tokens, prompt.pixels.keys, strict=True):
            pictures.append((int(places[taken]), int(places[taken + tokens - 1]), key))
            taken += tokens
    keys: list[bytes] = []
    key = hashlib.sha256(partition.encode()).digest()
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        mixed = hashlib.blake2b(key, digest_size=_KEY_BYTES)
        mixed.update(ids[start : start + BLOCK].tobytes())
        while pictures and pictures[0][1] < start:
            pictures.pop(0)
        for first, _, picture in pictures:
            if first >= start + BLOCK:
                break
            mixed.update(picture)
        key = mixed.digest()
        keys.append(key)
    return keys


class PrefixIndex:
    """Where kept blocks lie, the least recently used given up first."""

    def __init__(self, blocks: int) -> None:
        """`blocks`: how many there is room for."""
        self._free = list(range(blocks))[::-1]
        self._kept: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def match(self, keys: Sequence[bytes]) -> list[int]:
        """Where the longest kept beginning lies, block by block."""
        found = []
        for key in keys:
            if key not in self._kept:
                break
            found.append(self._kept[key])
        self._touch(keys[: len(found)])
        return found

    def kept(self, keys: Sequence[bytes]) -> int:
        """How many blocks `match` would find."""
        return next((i for i, key in enumerate(keys) if key not in self._kept), len(keys))

    def soon(self, keys: Sequence[bytes], read_now: Iterable[Sequence[bytes]]) -> int:
        """How many further blocks would be found if those who read these prompts now were done."""
        most = kept = self.kept(keys)
        for others in read_now:
            pairs = enumerate(zip(keys, others, strict=False))
            same = next((i for i, (own, other) in pairs if own != other), None)
            most = max(most, min(len(keys), len(others)) if same is None else same)
        return most - kept

    def keep(self, keys: Sequence[bytes]) -> list[tuple[int, int]]:
        """Make room for the blocks of a prompt that are not kept yet: (index in `keys`, where its
        entries are to be copied)."""
        known = self.kept(keys)
        self._touch(keys[:known])
        made: list[tuple[int, int]] = []
        own = set(keys)
        for index in range(known, len(keys)):
            key = keys[index]
            if key in self._kept:
                continue
            if not self._free:
                oldest = next(iter(self._kept), None)
                if oldest is None or oldest in own:
                    break  # the prompt alone fills the whole room
                self._free.append(self._kept.pop(oldest))
            self._kept[key] = self._free.pop()
            made.append((index, self._kept[key]))
        self._touch(keys[: known + len(made)])
        return made

    def forget(self, keys: Iterable[bytes]) -> None:
        """Keep these blocks no longer: what `keep` made room for was not copied."""
        for key in keys:
            self._free.append(self._kept.pop(key))

    def _touch(self, keys: Sequence[bytes]) -> None:
        # Last to first: what follows a block is of no use without it, so it goes earlier.
        for key in reversed(keys):
            if key in self._kept:
                self._kept.move_to_end(key)
