"""Watches whether pictures are counted as expected: as answers come, and over rows of the books."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog

from gateway.ledger.rows import Row
from policies.drift import Drift

_log = structlog.get_logger("yuzui.drift")

WINDOW_S: Final = 3_600.0  # a rule does not change by the minute, nor does an alarm repeat faster


class DriftWatch:
    """Adds up a window for each target and says so once in it, when it is off."""

    def __init__(
        self, clock: Callable[[], float], *, alarm: Callable[[Drift], None] | None = None
    ) -> None:
        """clock: monotonic seconds. alarm: told beside the log."""
        self._clock = clock
        self._alarm = alarm
        self._seen: dict[str, Drift] = {}
        self._since_s = clock()
        self._said: set[str] = set()

    def saw(self, row: Row) -> None:
        """One settled attempt."""
        if row.image_tokens_expected <= 0:
            return
        if self._clock() - self._since_s >= WINDOW_S:
            self._seen.clear()
            self._said.clear()
            self._since_s = self._clock()
        name = target_of(row)
        found = self._seen.get(name, Drift(target=name))
        found = self._seen[name] = found.plus(row.image_tokens_expected, row.image_tokens)
        if found.alarming and name not in self._said:
            self._said.add(name)
            _log.warning(
                "image_token_drift",
                target=name,
                answers=found.answers,
                expected=found.expected,
                counted=found.counted,
                share=round(found.share, 4),
            )
            if self._alarm is not None:
                self._alarm(found)


async def image_drift(rows: AsyncIterator[Row]) -> list[Drift]:
    """Every target whose answers had pictures with a known rule, by name."""
    found: dict[str, Drift] = {}
    async for row in rows:
        name = target_of(row)
        drift = found.get(name, Drift(target=name))
        more = drift.plus(row.image_tokens_expected, row.image_tokens)
        if more is not drift:
            found[name] = more
    return [found[name] for name in sorted(found)]


def target_of(row: Row) -> str:
    """Where it was answered, as reports name it."""
    return f"{row.site.value}:{row.target}"
