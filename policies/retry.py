"""How many further attempts the whole gateway may make.

A fixed number of retries per request multiplies the load just when a backend is ill. A budget does
not: a share of the requests of the last seconds, plus a small allowance for quiet hours. The
figures are Finagle's (20 % and 10 a second, counted over 10 seconds).
"""

from __future__ import annotations

from policies.types import Value

SHARE = 0.2
PER_SECOND = 10.0
WINDOW_S = 10.0


class RetryBudget(Value, frozen=True, kw_only=True):
    """Balance in attempts at a moment of the clock that is passed in."""

    balance: float = PER_SECOND * WINDOW_S
    at_s: float = 0.0


def offered(budget: RetryBudget, now_s: float) -> RetryBudget:
    """A request arrived: a fifth of an attempt is put by."""
    return RetryBudget(balance=_aged(budget, now_s) + SHARE, at_s=now_s)


def withdraw(budget: RetryBudget, now_s: float) -> tuple[RetryBudget, bool]:
    """Takes one further attempt out of the budget; False when there is none left."""
    balance = _aged(budget, now_s)
    if balance < 1.0:
        return RetryBudget(balance=balance, at_s=now_s), False
    return RetryBudget(balance=balance - 1.0, at_s=now_s), True


def _aged(budget: RetryBudget, now_s: float) -> float:
    """Balance after the time since: the allowance flows in, nothing is kept beyond the window."""
    elapsed_s = max(0.0, now_s - budget.at_s)
    return min(budget.balance + elapsed_s * PER_SECOND, 2 * PER_SECOND * WINDOW_S)
