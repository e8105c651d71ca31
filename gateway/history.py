"""How long answers have been, by tenant and model: what a bound on the next one is made from."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator

from gateway.ledger.rows import Outcome, Row
from policies.topup import output_bound

LENGTHS_MAX = 256  # of one tenant and model; a quantile of 0.99 needs about a hundred
CALLERS_MAX = 10_000
EVERY = 16  # answers between two looks at the quantile


class _Lengths:
    def __init__(self) -> None:
        self.latest: deque[int] = deque(maxlen=LENGTHS_MAX)
        self.bound: int | None = None
        self.fresh = 0


class History:
    """Bounded, in memory, of this process; seeded from the rows at its start."""

    def __init__(self, tokens_max: int) -> None:
        """tokens_max: no bound is above this."""
        self._tokens_max = tokens_max
        self._of: OrderedDict[tuple[str, str], _Lengths] = OrderedDict()

    def saw(self, tenant: str, model: str, tokens: int, *, cut: bool) -> None:
        """An answer came whole; cut: it ended at an output limit, so it may have been longer."""
        if tokens <= 0:
            return
        known = self._of.get((tenant, model))
        if known is None:
            known = self._of[tenant, model] = _Lengths()
            if len(self._of) > CALLERS_MAX:
                self._of.popitem(last=False)
        self._of.move_to_end((tenant, model))
        known.latest.append(2 * tokens if cut else tokens)
        known.fresh += 1
        if known.fresh >= EVERY or known.bound is None:
            known.fresh = 0
            known.bound = output_bound(known.latest, most=self._tokens_max)

    def bound(self, tenant: str, model: str) -> int | None:
        """Tokens that the next answer will hardly exceed; None: not enough is known."""
        known = self._of.get((tenant, model))
        return None if known is None else known.bound

    async def seed(self, rows: AsyncIterator[Row]) -> None:
        """Takes over what the books tell of earlier answers."""
        async for row in rows:
            if row.outcome == Outcome.OK:
                cut = row.finish_reason == "length"
                self.saw(row.tenant, row.model, row.completion_tokens, cut=cut)
