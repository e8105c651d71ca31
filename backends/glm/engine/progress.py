"""Whether the engine gets on: what it has to do and has done, and for how long nothing came of it.

A worker whose engine hangs still answers its probes, so nobody else can tell. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

# Starting a GPU's kernels for the first time takes seconds, and a busy machine as many again.
STALL_MIN_S = 60.0
# How many times its expected time the longest piece of work may take. The speed is measured on a
# short prompt with a small picture. At the far end of a long context a step of prompt is up to
# six times as dear, and attention makes the largest picture three times as dear a patch (both
# computed from the 9B's published widths).
STALL_TIMES = 10
# More than this between two looks is not counted: the process was stopped, or starved, itself.
LOOK_MAX_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """`busy`: it has something to do at this moment; `done`: pieces of work ended so far."""

    busy: bool
    done: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulse:
    """The engine's steps, and the encoding of pictures beside them."""

    steps: Part
    pictures: Part


def stall_limit_s(*, step_tokens: int, picture_tokens: int, prefill_tokens_per_s: float) -> float:
    """Seconds without progress after which an engine is taken to hang. A piece of work is a step of
    at most `step_tokens`, or one picture of at most `picture_tokens`; the speed is that of prompts,
    pictures and all."""
    longest_s = max(step_tokens, picture_tokens) / max(prefill_tokens_per_s, 0.1)
    return max(STALL_MIN_S, STALL_TIMES * longest_s)


class Watch:
    """Looks at pulses, again and again, and notices when one stands still."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._looked_s: float | None = None
        self._done = [0, 0]
        self._still_s = [0.0, 0.0]

    def look(self, pulse: Pulse, now_s: float) -> str | None:
        """What has not moved for too long while it had something to do; None: all is well."""
        passed_s = 0.0 if self._looked_s is None else min(LOOK_MAX_S, now_s - self._looked_s)
        self._looked_s = now_s
        for i, part in enumerate((pulse.steps, pulse.pictures)):
            moved = not part.busy or part.done != self._done[i]
            self._still_s[i] = 0.0 if moved else self._still_s[i] + passed_s
            self._done[i] = part.done
        for still_s, what in zip(self._still_s, ("step", "picture"), strict=True):
            if still_s >= self._stall_s:
                return f"no {what} has ended for {still_s:.0f} s while requests wait for one"
        return None
