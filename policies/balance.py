"""Choice of a worker inside the pool: power of two choices.

Several gateways share a pool and do not see each other's next move. If each took the best worker,
all would take the same one; two drawn at random and the better of them is nearly as good and cannot
herd (Mitzenmacher 2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


def order(scored: Sequence[tuple[float, str, T]], rng: Random) -> list[T]:
    """Targets in the order in which to try them.

    scored: (load, name, target); the lesser load wins, names break ties. The first place goes to
    the better of two drawn at random; the others follow by load.
    """
    ranked = sorted(scored, key=lambda row: row[:2])
    if len(ranked) <= 2:
        return [target for _, _, target in ranked]
    first = min(rng.sample(range(len(ranked)), 2))
    ranked.insert(0, ranked.pop(first))
    return [target for _, _, target in ranked]
