"""The worked example: an article's case for a server of one's own, computed anew.

What the article gives, as it gives it: a call of 300 input and 150 output tokens, at 0.015 and
0.025 CNY per thousand and 0.001 CNY a call; 100,000 calls a day; hardware for 150,000 CNY against
60,000 CNY a month of cloud; below 10,000 calls a month, rent. What it prints is compared with what
its own figures come to.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Final

from policies.tco_parts import breakeven, payback
from policies.types import NANO_PER_CNY, Value

INPUT_TOKENS: Final = 300
OUTPUT_TOKENS: Final = 150
INPUT_CNY_PER_1000: Final = Decimal("0.015")
OUTPUT_CNY_PER_1000: Final = Decimal("0.025")
FEE_CNY: Final = Decimal("0.001")
CALLS_PER_DAY: Final = 100_000
DAYS: Final = 30
HARDWARE_CNY: Final = 150_000
CLOUD_CNY_PER_MONTH: Final = 60_000
RENT_BELOW_CALLS: Final = 10_000
YEARS: Final = 3  # ours: the article does not say how long the hardware lasts

PRINTED_CALL_NANO: Final = 1_850_000  # 0.00185 CNY
PRINTED_MONTH_NANO: Final = 55_500 * NANO_PER_CNY
PRINTED_PAYBACK_MONTHS: Final = Decimal("2.5")


class Check(Value, frozen=True, kw_only=True):
    """One figure: as printed (None: the article prints none), as it comes out, and the steps.
    unit: cny (then in nano-CNY), months, calls."""

    what: str
    unit: str
    printed: int | Decimal | None
    found: int | Decimal
    steps: str

    @property
    def agrees(self) -> bool:
        return self.printed is None or self.printed == self.found


def call_nano() -> int:
    """What one call costs in nano-CNY."""
    cny = (
        Fraction(INPUT_TOKENS) * Fraction(INPUT_CNY_PER_1000) / 1000
        + Fraction(OUTPUT_TOKENS) * Fraction(OUTPUT_CNY_PER_1000) / 1000
        + Fraction(FEE_CNY)
    )
    nano = cny * NANO_PER_CNY
    assert nano.denominator == 1, "every price of the article is a whole number of nano-CNY"
    return nano.numerator


def month_nano() -> int:
    return call_nano() * CALLS_PER_DAY * DAYS


def checks() -> tuple[Check, ...]:
    """The article's case, step by step."""
    price = Fraction(HARDWARE_CNY * NANO_PER_CNY)
    stated = payback(price, Fraction(CLOUD_CNY_PER_MONTH * NANO_PER_CNY))
    ours = payback(price, Fraction(month_nano()))
    least = breakeven(price / (12 * YEARS), Fraction(call_nano()), Fraction(0))
    assert stated is not None, "60,000 a month pays 150,000 back"
    assert ours is not None, "so does 27,750"
    assert least is not None, "a call costs something"
    return (
        Check(
            what="call",
            unit="cny",
            printed=PRINTED_CALL_NANO,
            found=call_nano(),
            steps="300 x 0.015/1000 + 150 x 0.025/1000 + 0.001 = 0.0045 + 0.00375 + 0.001",
        ),
        Check(
            what="month",
            unit="cny",
            printed=PRINTED_MONTH_NANO,
            found=month_nano(),
            steps="0.00925 x 100,000 calls x 30 days",
        ),
        Check(
            what="payback_stated",
            unit="months",
            printed=PRINTED_PAYBACK_MONTHS,
            found=stated,
            steps="150,000 / 60,000 a month, power and upkeep left out",
        ),
        Check(
            what="payback_corrected",
            unit="months",
            printed=None,
            found=ours,
            steps="150,000 / 27,750 a month: its own traffic at its own prices",
        ),
        Check(
            what="rent_below",
            unit="cny",
            printed=None,
            found=call_nano() * RENT_BELOW_CALLS,
            steps="10,000 calls a month x 0.00925: so little is never worth a server",
        ),
        Check(
            what="breakeven",
            unit="calls",
            printed=None,
            found=least,
            steps="150,000 / 36 months / 0.00925: hardware alone, written off over three years",
        ),
    )
