"""An estimate of Ark's tokenizer, and its implicit prefix cache.

The real tokenizer is not public. The estimate is deterministic: about 1.3 tokens for an English
word, one token for two Chinese characters, one for a mark. Sums are therefore near the truth and
never equal to it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from hashlib import blake2b

MESSAGE_TOKENS = 4  # role and separators of one message; an estimate like the rest
CACHE_BLOCK_TOKENS = 128  # grain in which a prefix is recognised

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_HAN = re.compile("[\u4e00-\u9fff]")
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")
_PIECE = re.compile(rf"[{_CJK}]{{1,2}}| ?[A-Za-z]{{1,6}}|[0-9]{{1,3}}|\s+|.", re.DOTALL)


def pieces(text: str) -> list[str]:
    """Text -> tokens; joined, they are the text again."""
    return _PIECE.findall(text)


def count(text: str) -> int:
    """Number of tokens of a text."""
    return len(pieces(text))


def prefix_hashes(parts: Iterable[tuple[str, int]]) -> tuple[list[bytes], int]:
    """Prompt -> (one hash for each prefix of whole blocks, number of tokens).

    A part is a text and its weight in tokens; weight 0 means that the text itself is counted, any
    other that the text only names what is weighed (a picture, the frame of a message).
    """
    hashes: list[bytes] = []
    chain = blake2b(digest_size=16)
    filled = total = 0
    for part, weight in parts:
        found = [] if weight else pieces(part)
        total += weight or len(found)
        at = 0
        while at < len(found):  # as many pieces as still go into the block
            taken = found[at : at + CACHE_BLOCK_TOKENS - filled]
            chain.update("\x00".join((*taken, "")).encode("utf-8", "surrogatepass"))
            at += len(taken)
            filled += len(taken)
            if filled == CACHE_BLOCK_TOKENS:
                filled = 0
                hashes.append(chain.digest())
        if weight:
            chain.update(part.encode("utf-8", "surrogatepass"))
            blocks, filled = divmod(filled + weight, CACHE_BLOCK_TOKENS)
            hashes.extend([chain.digest()] * blocks)
    return hashes, total


def words_in(text: str) -> int:
    """Words of a text as people count them: a Chinese character counts as one."""
    return len(_WORD.findall(text))


def is_chinese(text: str) -> bool:
    """Whether there is a Chinese character in it."""
    return _HAN.search(text) is not None


class PrefixCache:
    """Remembers prefixes of prompts, by account and model, least recently used out first."""

    def __init__(self, *, blocks_max: int, ttl_s: float, clock: Callable[[], float]) -> None:
        self._blocks_max = blocks_max
        self._ttl_s = ttl_s
        self._clock = clock
        self._seen: OrderedDict[tuple[str, bytes], float] = OrderedDict()

    def hit(self, scope: str, hashes: list[bytes], *, prefix_tokens_min: int) -> int:
        """Tokens of the longest known prefix (0 below the minimum); remembers this prompt."""
        now = self._clock()
        known = 0
        for index, digest in enumerate(hashes):
            if now - self._seen.get((scope, digest), -self._ttl_s) >= self._ttl_s:
                break
            known = index + 1
        for digest in hashes:
            self._seen[scope, digest] = now
            self._seen.move_to_end((scope, digest))
        while len(self._seen) > self._blocks_max:
            self._seen.popitem(last=False)
        tokens = known * CACHE_BLOCK_TOKENS
        return tokens if tokens >= prefix_tokens_min else 0
