"""What of a request a worker is likely to hold already, and what that is worth.

A worker that has read the same beginning lately (a system prompt, the turns before this one) need
not read it again, and one that has seen a picture need not encode it again. Each gateway remembers,
within bounds, what it has sent where; whether a worker still has it only the worker knows, so this
is a hint. It decides through the forecast alone: what is held is taken off the prompt that has to
be read, and the worker that would then be ready first is asked, wherever the caches are.

Keys are hashes over the tenant, the label and everything up to a point of the prompt. Tenants and
labels never share a key, as they never share a cached prefix (`salt`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence

from policies.types import Prefix, Sensitivity

# A conversation grows at its end, so the last boundaries are those that the next request shares.
BOUNDARIES_MAX = 64
# Longer texts (pictures as base64, mostly) are sampled: this is a hint, not a proof of equality.
SAMPLED_ABOVE_CHARS = 16_384
SAMPLES, SAMPLE_CHARS = 32, 128
# Engines keep whole blocks of this many tokens (vLLM's default, and our worker's), so a shorter
# beginning is held by nobody. SGLang keeps single tokens; of so few nobody would notice.
BLOCK_TOKENS = 16
# Of the time that reading a picture takes, its encoding is a good part and its tokens the rest.
PICTURE_SHARE = 0.5
KEY_BYTES = 8


def salt(tenant: str, level: Sensitivity) -> str:
    """Parts the prefix caches of engines: requests of different tenants or labels never share."""
    text = f"{tenant}\0{int(level)}".encode()
    return hashlib.blake2b(text, digest_size=16, person=b"yuzui-salt").hexdigest()


def fingerprint(text: str) -> bytes:
    """Tells two texts apart; of a long one its length, its ends and some of its middle are used."""
    size = len(text)
    if size > SAMPLED_ABOVE_CHARS:
        step = (size - SAMPLE_CHARS) // (SAMPLES - 1)
        parts = [text[at : at + SAMPLE_CHARS] for at in range(0, size, step)]
        text = f"{size}\0" + "".join(parts) + text[-SAMPLE_CHARS:]
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def prefixes(salted: str, parts: Iterable[tuple[bytes, int]]) -> tuple[Prefix, ...]:
    """The boundaries of a prompt. parts: fingerprint and likely tokens of each, in order."""
    found = []
    hashed = hashlib.blake2b(salted.encode(), digest_size=KEY_BYTES)
    tokens = 0
    for part, size in parts:
        hashed.update(part)
        tokens += size
        found.append(Prefix(key=hashed.hexdigest(), tokens=tokens))
    return tuple(found[-BOUNDARIES_MAX:])


def held_tokens(asked: Sequence[Prefix], known: Collection[str]) -> int:
    """Tokens of the longest beginning that is known, in whole blocks."""
    for prefix in reversed(asked):
        if prefix.key in known:
            return prefix.tokens // BLOCK_TOKENS * BLOCK_TOKENS
    return 0


def saved_tokens(held: int, pictures_known: int, pictures: int, image_tokens: int) -> float:
    """Prompt tokens that need not be read: those of the beginning, and of pictures that were seen
    behind it their encoding."""
    if not pictures:
        return float(held)
    seen = PICTURE_SHARE * image_tokens * min(1.0, pictures_known / pictures)
    return max(float(held), seen)
