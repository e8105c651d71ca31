"""How a target has answered lately: the second signal that ejects it.

A breaker counts failures in a row, so a worker that fails every other request never trips it. The
share of failures within a window does. The two together are linkerd's; its consecutive count and
rate are per endpoint, and so are these: statistics across hosts need five of them and more (Envoy),
and our pools have fewer.

Counted is what the target did: a caller's own mistake and a busy answer are neither good nor bad.
"""

from __future__ import annotations

import math

from policies.types import Value

WINDOW_S = 20.0  # the weight of an answer falls to 1/e in so long
ANSWERS_MIN = 10.0  # fewer prove nothing (Envoy: 5 hosts of 100 requests; linkerd: configurable)
FAILING_SHARE = 0.5


class Window(Value, frozen=True, kw_only=True):
    """Good and bad answers, each with a weight that decays with its age."""

    good: float = 0.0
    bad: float = 0.0
    at_s: float = 0.0


def add(window: Window, now_s: float, *, well: bool) -> Window:
    """One more answer."""
    left = math.exp(-max(0.0, now_s - window.at_s) / WINDOW_S)
    return Window(good=window.good * left + well, bad=window.bad * left + (not well), at_s=now_s)


def failing(window: Window) -> bool:
    """Whether too many of the last answers were bad."""
    answers = window.good + window.bad
    return answers >= ANSWERS_MIN and window.bad >= FAILING_SHARE * answers
