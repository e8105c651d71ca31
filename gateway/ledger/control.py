"""The part of the ledger that no request waits for: leases, sweeping, reading rows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from gateway.ledger import rows
from gateway.ledger.budgets import BudgetDesk
from gateway.ledger.entries import entry
from gateway.ledger.marks import Hot
from gateway.ledger.parts import (
    HOLD_S_MAX,
    REMEMBER_MS,
    Corrected,
    Swept,
    Till,
)
from gateway.ledger.rows import Row, RowState, encode

SWEEP_CALLS_MAX: Final = 50  # of one sweep, so that a large backlog does not keep the loop
SWEEP_BATCH_MAX: Final = 1000  # Lua's stack holds some thousand arguments
CLOCK_SLACK_S: Final = 60.0  # between a gateway's clock and the server's, when rows are looked up


class Control(BudgetDesk):
    """See `gateway.ledger.ledger.Ledger`, which this is the quiet half of."""

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

    async def correct(self, unreconciled: Row, correction: Row) -> Corrected:
        """Books what the bill said of an unreconciled row: a row of its own with the difference,
        which every budget that still counts that request gets back. Once for each hold, whoever
        asks and however often. Raises ValueError unless the difference is one that a bill below
        the hold can make."""
        if unreconciled.state != RowState.UNRECONCILED:
            raise ValueError(f"{unreconciled.hold_id} is {unreconciled.state}, not unreconciled")
        if correction.state != RowState.CORRECTION or correction.hold_id != unreconciled.hold_id:
            raise ValueError(f"this is not a correction of {unreconciled.hold_id}")
        if not -unreconciled.posted_nano <= correction.posted_nano <= 0:
            raise ValueError(f"{unreconciled.hold_id} was posted at its bound: it can only go down")
        reply = await self._control.run(
            self._keys.correct,
            unreconciled.hold_id,
            correction.posted_nano,
            encode(correction),
            unreconciled.at_ms,
            *unreconciled.drawn,
        )
        return Corrected(difference_nano=reply[1], already=reply[0] == 0)

    # ------------------------------------------------------------ reading

    async def rows(
        self, *, since_ms: int | None = None, until_ms: int | None = None, batch: int = 500
    ) -> AsyncIterator[Row]:
        """Rows of requests that arrived in [since_ms, until_ms), in the order of booking.

        Corrections belong to the time of the request that they correct, however late they came.
        """
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
                break
            start = "(" + entries[-1][0].decode()
        if until_ms is not None:
            async for row in self._late_corrections(since_ms or 0, until_ms, end):
                yield row

    async def _late_corrections(
        self, since_ms: int, until_ms: int, after: str
    ) -> AsyncIterator[Row]:
        ids = await self._control.call(
            "ZRANGEBYSCORE", self._keys.corrected, since_ms, f"({until_ms}"
        )
        for entry_id in sorted(ids, key=_order):
            if _order(entry_id) > (int(after), 2**63):
                for stream_id, flat in await self._control.call(
                    "XRANGE", self._keys.rows, entry_id.decode(), entry_id.decode()
                ):
                    yield entry(stream_id, flat).row

    def hot(self) -> Hot:
        """The rows as the archive sees them: by the id under which each was booked."""
        return Hot(self._control, self._keys)

    async def book(
        self,
        spool: str,
        number: int,
        scopes: tuple[str, ...],
        row: Row | None,
        *,
        expired: bool = False,
    ) -> bool:
        """Books an entry of a spool (see `spool`); False: it was booked before. row None: it cost
        nothing and leaves no row. The budgets of the time of its request are charged, whether they
        have room or not: the money is spent."""
        counters: list[str | int] = []
        for budget in self._budgets.drawn_then(scopes, row.at_ms / 1000) if row else ():
            counters += [budget.counter, budget.drop_ms]
        reply = await self._control.run(
            self._keys.book,
            spool,
            number,
            row.posted_nano if row else 0,
            rows.encode(row) if row else "",
            "x" if expired else "",
            *counters,
        )
        return bool(reply == 1)

    async def latest_rows(self, count: int) -> AsyncIterator[Row]:
        """The rows booked last, the oldest of them first."""
        entries = await self._control.call("XREVRANGE", self._keys.rows, "+", "-", "COUNT", count)
        for stream_id, flat in reversed(entries):
            yield entry(stream_id, flat).row

    async def till(self) -> Till:
        posted, held = await self._control.call("HMGET", self._keys.till, "posted", "held")
        return Till(posted_nano=int(posted or 0), held_nano=int(held or 0))


def _order(entry_id: bytes) -> tuple[int, int]:
    """A stream id as numbers, which sort as the stream does."""
    ms, _, count = entry_id.partition(b"-")
    return int(ms), int(count)
