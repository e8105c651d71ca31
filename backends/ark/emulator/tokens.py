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
        units = [(part, weight)] if weight else [(piece, 1) for piece in pieces(part)]
        for unit, tokens in units:
            chain.update(unit.encode("utf-8", "surrogatepass") + b"\x00")
            total += tokens
            filled += tokens
            while filled >= CACHE_BLOCK_TOKENS:
                filled -= CACHE_BLOCK_TOKENS
                hashes.append(chain.digest())
    return hashes, total


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
