"""Choice of a worker inside the pool: power of two choices.

Several gateways share a pool and do not see each other's next move. If each took the best worker,
all would take the same one; two drawn at random and the better of them is nearly as good and cannot
herd (Mitzenmacher 2001).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from policies.latency import Forecast, occupancy
from policies.types import WorkerState

T = TypeVar("T")

COLDEST = 0.1  # Envoy's min_weight_percent


def load(worker: WorkerState, forecast: Forecast) -> float:
    """How much a worker has to do, to compare it with others: the predicted time, and the more of
    it the more of its slots are taken (a batch shares one engine). Equal workers thus fill evenly.
    """
    share = max(COLDEST, worker.warmth) * worker.weight
    return forecast.finish_ms * (1.0 + occupancy(worker) / max(1, worker.slots)) / share


def warmth(up_for_s: float, warm_up_s: float) -> float:
    """How much of its share a worker gets that is up for so long: from COLDEST to all of it, in a
    straight line (Envoy's slow start). Its caches are empty and its speed is not measured yet; a
    pool that threw everything at the newcomer would wait for it alone."""
    if warm_up_s <= 0 or up_for_s >= warm_up_s:
        return 1.0
    return max(COLDEST, up_for_s / warm_up_s)


def order(
    scored: Sequence[tuple[float, str, T]], rng: Random, favourite: str | None = None
) -> list[T]:
    """Targets in the order in which to try them.

    scored:    (load, name, target); the lesser load wins. Among equals names decide, but a worker
               with nothing to do is drawn first as often as any other. The first place goes to the
               better of two drawn at random; the others follow by load.
    favourite: the name of one that is compared with the two in any case, because it holds what the
               others lack. Its load says already what that is worth, so it wins only when it is.
    """
    count = len(scored)
    if count == 1:
        return [scored[0][2]]
    ranked = sorted(scored, key=_by_load)
    if count > 1:
        # random() and not sample(): this stands in the way of every request
        one, other = int(rng.random() * count), int(rng.random() * (count - 1))
        other += other >= one
        first = one if ranked[one][0] <= ranked[other][0] else other
        if favourite is not None:
            for place in range(first):  # whoever stands before it has less to do or as much
                if ranked[place][1] == favourite:
                    first = place
                    break
        ranked.insert(0, ranked.pop(first))
    return [target for _, _, target in ranked]


def _by_load(row: tuple[float, str, object]) -> tuple[float, str]:
    return row[0], row[1]
