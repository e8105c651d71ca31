"""How much of one's own servers was used, and what the rest of them cost.

A server costs its idle second whether anybody asks or not. What answers carry of it is their full
cost; the rest is the price of capacity that stood ready and was not used, and nobody's mistake: it
is what a budget for hardware has to know.
"""

from __future__ import annotations

from policies.server_cost import ServerRate
from policies.types import Value


class LocalUse(Value, frozen=True, kw_only=True):
    """One worker over a time. busy_us: microseconds of a whole server, so a slot counts
    as its share. carried_nano: booked to answers. marginal_nano: of it, what answering added."""

    target: str
    answers: int = 0
    busy_us: int = 0
    carried_nano: int = 0
    marginal_nano: int = 0

    def plus(self, *, slot_ms: int, slots: int, posted_nano: int, marginal_nano: int) -> LocalUse:
        """One more answer."""
        return LocalUse(
            target=self.target,
            answers=self.answers + 1,
            busy_us=self.busy_us + 1000 * slot_ms // max(1, slots),
            carried_nano=self.carried_nano + posted_nano,
            marginal_nano=self.marginal_nano + marginal_nano,
        )

    def utilisation(self, window_ms: int) -> float:
        """Share of the server's time that answers took. Above 1 only if its slots changed."""
        return self.busy_us / (1000 * window_ms) if window_ms > 0 else 0.0

    def whole_nano(self, rate: ServerRate, window_ms: int) -> int:
        """What the server cost in that time: idle all of it, and what the answers added."""
        idle = rate.idle_nano_per_s * window_ms // 1000
        return idle + rate.marginal_nano_per_s * self.busy_us // 1_000_000

    def unused_nano(self, rate: ServerRate, window_ms: int) -> int:
        """What no answer carries."""
        return max(0, self.whole_nano(rate, window_ms) - self.carried_nano)
