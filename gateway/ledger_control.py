"""The part of the ledger that no request waits for: leases, sweeping, budgets, reading rows."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Final

from gateway.archive.entries import entry
from gateway.archive.marks import Hot
from gateway.budget_views import KEEP_FINISHED_S, BudgetStatus, BudgetViews
from gateway.ledger_parts import (
    HOLD_S_MAX,
    REMEMBER_MS,
    Keys,
    Swept,
    Till,
)
from gateway.redis_link import RedisLink
from gateway.rows import Row
from policies.budget import Period, check_scope, check_zone
from policies.types import MONEY_NANO_MAX, BudgetView

_log = logging.getLogger(__name__)

SWEEP_CALLS_MAX: Final = 50  # of one sweep, so that a large backlog does not keep the loop
SWEEP_BATCH_MAX: Final = 1000  # Lua's stack holds some thousand arguments
FIGURES_CHUNK: Final = 500  # budgets read by one HMGET, which blocks the server for its length
CLOCK_SLACK_S: Final = 60.0  # between a gateway's clock and the server's, when rows are looked up
SKEW_WARN_S: Final = 2.0


class Control:
    """See `gateway.ledger.Ledger`, which this is the quiet half of."""

    def __init__(
        self, control: RedisLink, keys: Keys, *, lease_s: float, server_clock: bool
    ) -> None:
        self._control = control
        self._keys = keys
        self._lease_ms = int(1000 * lease_s)
        self._server_clock = server_clock
        self._budgets = BudgetViews()
        self._skew_s = 0.0  # the server's clock minus ours
        self._now_s = 0.0  # the caller's clock as last heard of

    # ------------------------------------------------------------ keeping the books in order

    async def renew_lease(self, now_s: float) -> None:
        """Says that this process lives; call it every second or two. Reservations say it too."""
        await self._control.run(
            self._keys.lease, self._keys.owner, self._lease_ms, self._clock(now_s)
        )

    async def sweep(self, now_s: float, batch: int = 200) -> Swept:
        """Resolves holds past their deadline and all holds of processes whose lease has run out:
        PENDING is voided; SENT is posted in full with a row made from its draft, state
        `unreconciled`. Any process may do it at any time; `batch` bounds how long one call blocks
        Redis (some microseconds a hold)."""
        if not 1 <= batch <= SWEEP_BATCH_MAX:
            raise ValueError(f"a sweep's batch is 1 to {SWEEP_BATCH_MAX}")
        voided = expired = 0
        for _ in range(SWEEP_CALLS_MAX):
            owners = [
                o.decode() for o in await self._control.call("ZRANGE", self._keys.owners, 0, -1)
            ]
            reply = await self._control.run(
                self._keys.sweep(owners),
                self._clock(now_s),
                batch,
                REMEMBER_MS,
                self._lease_ms,
                *owners,
            )
            voided += reply[0]
            expired += reply[1]
            if not reply[2]:
                break
        return Swept(voided=voided, expired=expired)

    async def refresh(self, now_s: float) -> None:
        """Reads definitions and figures anew."""
        reply = await self._control.run(self._keys.definitions, self._budgets.epoch)
        if self._server_clock:
            skew_s = reply[0] / 1000 - now_s
            if abs(skew_s) > SKEW_WARN_S and abs(self._skew_s) <= SKEW_WARN_S:
                _log.warning("clock_skew: the server's clock is %+.1f s from ours", skew_s)
            self._skew_s = skew_s
        if len(reply) > 2:
            self._budgets.load(reply[1].decode(), reply[2], reply[3], now_s + self._skew_s)
        budgets = self._budgets.all(now_s + self._skew_s)
        for i in range(0, len(budgets), FIGURES_CHUNK):
            chunk = budgets[i : i + FIGURES_CHUNK]
            fields = [f"{budget.counter}|{part}" for budget in chunk for part in "ph"]
            figures = await self._control.call("HMGET", self._keys.counters, *fields)
            self._budgets.saw(chunk, [int(figure or 0) for figure in figures])

    # ------------------------------------------------------------ budgets

    async def set_budget(
        self, scope: str, *, limit_nano: int, period: Period | str, zone: str, now_s: float
    ) -> None:
        """Makes a budget, or changes the limit of the one with this scope and period.

        A new budget counts from the moment it is set: what is under way or was spent before is
        not in it. So does one that moves to another zone. A changed limit keeps the count; below
        what is posted and held it refuses everything until the period ends. Raises ValueError.
        """
        period = Period(period)
        if not 0 <= limit_nano <= MONEY_NANO_MAX:
            raise ValueError(f"a limit is 0 to {MONEY_NANO_MAX} nano-CNY")
        if period is Period.TOTAL:
            zone = "UTC"  # it has no midnight, and a change of zone would begin a new count
        await self._control.run(
            self._keys.set_budget,
            f"{period.value}|{check_scope(scope)}",
            limit_nano,
            check_zone(zone),
            self._clock(now_s),
            secrets.token_hex(8),
        )
        await self.refresh(now_s)

    async def delete_budget(self, scope: str, period: Period | str, *, now_s: float) -> bool:
        """Removes a budget; False: there was none. Its open holds settle as usual."""
        await self.refresh(now_s)
        budget_id = f"{Period(period).value}|{check_scope(scope)}"
        budget = self._budgets.of(budget_id)
        reply = await self._control.run(
            self._keys.delete_budget,
            budget_id,
            budget.counter if budget is not None else "",
            int(1000 * (now_s + KEEP_FINISHED_S)),
            secrets.token_hex(8),
        )
        await self.refresh(now_s)
        return bool(reply == 1)

    async def budgets(self, now_s: float) -> list[BudgetStatus]:
        """Every budget with its figures of now, ordered by scope and period."""
        await self.refresh(now_s)
        found = [budget.status() for budget in self._budgets.all(now_s + self._skew_s)]
        return sorted(found, key=lambda status: (status.scope, status.period))

    def views(self) -> Mapping[str, tuple[BudgetView, ...]]:
        """What this process knows of every budget, by scope; no Redis, no await. A hint for the
        plan, as fresh as the last reply or refresh. A live view: read it before the next await."""
        return self._budgets.views()

    # ------------------------------------------------------------ reading

    async def rows(
        self, *, since_ms: int | None = None, until_ms: int | None = None, batch: int = 500
    ) -> AsyncIterator[Row]:
        """Rows of requests that arrived in [since_ms, until_ms), in the order of booking."""
        # An entry's id is when it was booked: after the request arrived, by a day at most.
        start = "-" if since_ms is None else str(max(0, since_ms - int(1000 * CLOCK_SLACK_S)))
        end = "+" if until_ms is None else str(until_ms + int(1000 * (HOLD_S_MAX + CLOCK_SLACK_S)))
        while True:
            entries = await self._control.call(
                "XRANGE", self._keys.rows, start, end, "COUNT", batch
            )
            for stream_id, flat in entries:
                row = entry(stream_id, flat).row
                if (since_ms is None or row.at_ms >= since_ms) and (
                    until_ms is None or row.at_ms < until_ms
                ):
                    yield row
            if len(entries) < batch:
                return
            start = "(" + entries[-1][0].decode()

    def hot(self) -> Hot:
        """The rows as the archive sees them: by the id under which each was booked."""
        return Hot(self._control, self._keys)

    async def till(self) -> Till:
        posted, held = await self._control.call("HMGET", self._keys.till, "posted", "held")
        return Till(posted_nano=int(posted or 0), held_nano=int(held or 0))

    def _clock(self, now_s: float | None = None) -> int:
        """What the scripts are told as the time: nothing, or in tests the last `now_s`."""
        if self._server_clock:
            return 0
        if now_s is not None:
            self._now_s = now_s
        return int(1000 * self._now_s)
