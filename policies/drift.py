"""Whether pictures are counted as their rule says.

What is held for a picture, and what a local answer is compared with, rests on a published rule for
its tokens. When engine or cloud count otherwise by more than a little, the rule or our reading of
it is wrong, and money is held and compared by a wrong figure: that is worth an alert.
"""

from __future__ import annotations

from policies.types import Value

DRIFT_PERCENT_MAX = 2
PICTURES_MIN = 20  # answers with pictures; of fewer a single odd one would decide


class Drift(Value, frozen=True, kw_only=True):
    """Answers with pictures of one target: tokens by the rule, and as counted.

    target: site:worker or site:model
    """

    target: str
    answers: int = 0
    expected: int = 0
    counted: int = 0

    @property
    def share(self) -> float:
        """How much more was counted than expected; negative: less."""
        return self.counted / self.expected - 1.0 if self.expected else 0.0

    @property
    def alarming(self) -> bool:
        """Whether it is more than chance and more than rounding."""
        off = abs(self.counted - self.expected)
        return self.answers >= PICTURES_MIN and 100 * off > DRIFT_PERCENT_MAX * self.expected

    def plus(self, expected: int, counted: int) -> Drift:
        """One more answer. Without a rule, or when the engine does not say, it tells nothing."""
        if expected <= 0 or counted <= 0:
            return self
        return Drift(
            target=self.target,
            answers=self.answers + 1,
            expected=self.expected + expected,
            counted=self.counted + counted,
        )
