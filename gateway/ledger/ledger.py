"""The books: money is held before a request is sent and posted after, in Redis, by Lua.

    reserve    a hold on every budget of the request, or on none   -> Reserved | Exhausted
    mark_sent  the request is about to leave: it may be billed from here on
    grow       a larger hold, on every budget or on none
    settle     post the cost and write the row, in one step
    void       give the hold back: certainly not billed
    sweep      resolve what its gateway no longer can

Every operation may be repeated: the second time changes nothing and answers alike. Resolved holds
are remembered for REMEMBER_S and then forgotten; commands do not survive a connection, so none can
arrive later than that. A hold belongs to the gateway that made it; others may only sweep it.

Invariants, at every moment: posted + held <= limit for every budget whose limit was not lowered;
the till's posted equals the sum of the rows; the till's held equals the sum of the open holds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any, Final

from msgspec.structs import replace

from gateway.ledger import rows
from gateway.ledger.parts import (
    BOOK,
    CORRECT,
    DEFINITIONS,
    DELETE_BUDGET,
    GROW,
    HOLD_S_MAX,
    LEASE,
    MARK_SENT,
    REMEMBER_MS,
    REMEMBER_S,
    RESERVE,
    RESTORE,
    SET_BUDGET,
    SETTLE,
    STANDING,
    SWEEP,
    VOID,
    Exhausted,
    HoldClosed,
    HoldRequest,
    Keys,
    Reserved,
    Settled,
    Swept,
    Till,
)
from gateway.ledger.rows import Row
from gateway.ledger.views import Budget, BudgetStatus
from gateway.ledger.watch import PUT_BACK_S, Noted, Watched
from gateway.redis.link import LedgerFault, LedgerUnavailable, RedisLink
from policies.budget import HoldState, Period
from policies.types import MONEY_NANO_MAX

__all__ = [
    "BudgetStatus", "Exhausted", "HoldClosed", "HoldRequest", "Ledger", "LedgerFault",
    "LedgerUnavailable", "Period", "Reserved", "Row", "Settled", "Swept", "Till",
]  # fmt: skip

_log = logging.getLogger(__name__)

LEASE_S: Final = 10.0  # a gateway that was not heard of for so long is taken for dead
RELOADS_MAX: Final = 5  # of definitions within one reservation, while somebody keeps changing them
# Operations that nobody's request waits for. A connection that says nothing is cut after three of
# these, and a failover shall be noticed and checked within ten seconds.
CONTROL_TIMEOUT_S: Final = 2.5
ABANDONED_MAX: Final = 10_000

_STATES: Final = {
    b"D": HoldState.POSTED,
    b"V": HoldState.VOIDED,
    b"E": HoldState.EXPIRED,
}


class Ledger(Watched):
    """One process's access to the books. Make it with `connect`; use it on one event loop.

    Every method that talks to Redis raises LedgerUnavailable when Redis is down, slow, loading or
    read-only, and LedgerFault when it holds something that no ledger wrote.
    """

    def __init__(
        self, hot: RedisLink, control: RedisLink, keys: Keys, *, lease_s: float, server_clock: bool
    ) -> None:
        super().__init__(hot, control, keys, lease_s=lease_s, server_clock=server_clock)
        self._abandoned: dict[str, None] = {}  # to be voided as soon as Redis can be reached

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        instance: str,
        call_timeout_s: float = 1.0,
        lease_s: float = LEASE_S,
        books: str = "main",
        server_clock: bool = True,
    ) -> Ledger:
        """Opens the books at `url` (see gateway.redis.target) under the name `instance`, which no
        other live process may have.

        server_clock: leases, deadlines and periods follow the clock of the server, so that a
        gateway with a wrong clock harms nobody. False: they follow the `now_s` that is passed in,
        for tests. Raises LedgerUnavailable (also for a server that must not keep books: one that
        evicts, or a replica), ValueError.
        """
        scripts = (RESERVE, MARK_SENT, GROW, SETTLE, VOID)
        hot = await RedisLink.connect(url, scripts=scripts, call_timeout_s=call_timeout_s)
        try:
            control = await RedisLink.connect(
                url,
                scripts=(
                    SWEEP,
                    LEASE,
                    DEFINITIONS,
                    SET_BUDGET,
                    DELETE_BUDGET,
                    RESTORE,
                    STANDING,
                    BOOK,
                    CORRECT,
                ),
                call_timeout_s=max(call_timeout_s, CONTROL_TIMEOUT_S),
            )
        except BaseException:
            await hot.close()
            raise
        keys = Keys(books, instance)
        ledger = cls(hot, control, keys, lease_s=lease_s, server_clock=server_clock)
        try:
            await ledger.watch()
            ledger._check_frozen()
        except BaseException:
            await hot.close()
            await control.close()
            raise
        return ledger

    # ------------------------------------------------------------ the life of a hold

    async def reserve(
        self, hold: HoldRequest, now_s: float, *, patience_s: float | None = None
    ) -> Reserved | Exhausted:
        """Holds `amount_nano` on every budget of the hold's scopes, or on none.

        patience_s: for who has another way and need not wait for all of the call's time limit
        When the answer does not come (LedgerUnavailable with ambiguous, or the caller is
        cancelled) the hold is voided as soon as Redis can be reached; use a new id to try again.
        Raises HoldClosed for an id that is resolved, ValueError for an amount or deadline out of
        range.
        """
        if not 0 <= hold.amount_nano <= MONEY_NANO_MAX:
            raise ValueError(f"a hold of {hold.amount_nano} nano-CNY is out of range")
        if not 0 < hold.deadline_s - now_s <= HOLD_S_MAX:
            raise ValueError(f"a hold lives up to {HOLD_S_MAX:.0f} s")
        if not hold.sent:  # the cloud's money; what a local request costs is ours
            self._check_frozen()
        draft, ours_s = rows.encode(hold.draft), now_s + self._skew_s
        try:
            for _ in range(RELOADS_MAX):
                drawn = self._budgets.drawn(hold.scopes, ours_s)
                asked = self._hot.run(
                    self._keys.reserve,
                    hold.id,
                    hold.amount_nano,
                    "S" if hold.sent else "P",
                    int(1000 * (hold.deadline_s - now_s)),
                    draft,
                    self._keys.owner,
                    self._lease_ms,
                    self._clock(now_s),
                    self._budgets.epoch,
                    more=[budget.packed for budget in drawn],
                )
                reply = await (asked if patience_s is None else _soon(asked, patience_s))
                if reply[0] != 0:
                    return self._reserved(hold, draft, drawn, reply)
                epoch, limits, defs = reply[2:]
                self._budgets.load(epoch.decode(), limits, defs, ours_s)
        except asyncio.CancelledError:
            self._give_back_soon(hold.id)
            raise
        except LedgerUnavailable as error:
            if error.ambiguous:
                self._give_back_soon(hold.id)
            raise
        raise LedgerUnavailable("the budgets keep changing", ambiguous=False)

    def _reserved(
        self, hold: HoldRequest, draft: bytes, drawn: list[Budget], reply: list[Any]
    ) -> Reserved | Exhausted:
        if reply[0] == 1:
            self._budgets.saw(drawn, reply[1:])
            noted = Noted(hold.id, drawn, hold.amount_nano, hold.sent, draft, hold.deadline_s)
            self._open.setdefault(hold.id, noted)  # a repetition changes nothing
            return Reserved(hold_id=hold.id, budgets=tuple([budget.view for budget in drawn]))
        if reply[0] == 2:
            return self._no_room(drawn[reply[1]], reply[2:], hold.amount_nano)
        raise HoldClosed(hold.id, _STATES[reply[1]])

    async def mark_sent(self, hold_id: str) -> bool:
        """Call it just before the first byte leaves. False: the hold is not open (it ran out);
        nothing may be sent then."""
        self._check_frozen()
        marked = bool(await self._hot.run(self._keys.mark_sent, hold_id) == 1)
        if marked and hold_id in self._open:
            self._open[hold_id].sent = True
        return marked

    async def grow(self, hold_id: str, amount_nano: int) -> Reserved | Exhausted:
        """Makes an open hold `amount_nano` large, on every budget that it draws on, or leaves it as
        it is. Repeating it changes nothing. Raises HoldClosed when the hold is not open any more,
        ValueError for an amount out of range."""
        if not 0 < amount_nano <= MONEY_NANO_MAX:
            raise ValueError(f"a hold of {amount_nano} nano-CNY is out of range")
        reply: list[Any] = await self._hot.run(self._keys.grow, hold_id, amount_nano)
        noted = self._open.get(hold_id)
        drawn = noted.drawn if noted is not None else []
        if reply[0] == 1:
            if noted is not None:
                noted.amount_nano = max(noted.amount_nano, amount_nano)
            self._took(drawn, reply[1:])
            return Reserved(hold_id=hold_id, budgets=tuple([budget.view for budget in drawn]))
        if reply[0] == 2:
            counter = reply[3].decode()
            budget = self._budgets.of(counter.rpartition("|")[0].rpartition("|")[0])
            if budget is not None and budget.counter == counter:
                return self._no_room(budget, reply[1:3], amount_nano)
            if budget is not None:  # its period is over, the hold is older
                then = replace(budget.view, posted_nano=reply[1], held_nano=reply[2])
                return Exhausted(budget=then, period=budget.period, amount_nano=amount_nano)
            raise LedgerUnavailable("the budgets keep changing", ambiguous=False)
        state = _STATES[reply[1]] if reply[0] == 3 else HoldState.VOIDED
        raise HoldClosed(hold_id, state)

    def _no_room(self, budget: Budget, figures: list[int], amount_nano: int) -> Exhausted:
        self._budgets.saw((budget,), figures)
        return Exhausted(budget=budget.view, period=budget.period, amount_nano=amount_nano)

    async def settle(self, hold_id: str, row: Row) -> Settled:
        """Posts `row.posted_nano`, at most what was held, and writes the row.

        A cost above the hold is clamped to it: the row then has the flag `clamped` and the whole
        figure as claimed_nano. After LedgerUnavailable the same call may be repeated until the
        hold's deadline. Raises ValueError for a negative cost.
        """
        if row.posted_nano < 0:
            raise ValueError("a cost cannot be negative")
        encoded, cost_nano = rows.encode(row), min(row.posted_nano, MONEY_NANO_MAX)
        reply = await self._settle(hold_id, cost_nano, encoded)
        noted = self._open.get(hold_id)
        if reply[0] == 2 and noted is not None and await self._lost(noted):
            reply = await self._settle(hold_id, cost_nano, encoded)
        self._open.pop(hold_id, None)
        if reply[0] == 1:
            if noted is not None:
                noted.row, noted.cost_nano, noted.settled_s = encoded, cost_nano, time.monotonic()
                self._recent.append(noted)
                self._took(noted.drawn, reply[2:])
            return Settled(posted_nano=reply[1], already=False)
        if reply[0] == 0:
            return Settled(posted_nano=reply[1], already=True, state=_STATES[reply[2]])
        _log.error("settled_unknown_hold: %s", hold_id)
        return Settled(posted_nano=0, already=True, state=None)

    def _settle(self, hold_id: str, cost_nano: int, row: bytes) -> asyncio.Future[Any]:
        return self._hot.run(self._keys.settle, hold_id, cost_nano, row, self._clock(), REMEMBER_MS)

    async def _lost(self, noted: Noted) -> bool:
        """Whether an open hold of ours was lost with a server; it is put back then."""
        swept = noted.deadline_s < time.time() or time.monotonic() - self._contact_s > PUT_BACK_S
        if swept or not self._server_clock:
            return False  # its end may be forgotten already: booked once is enough
        return await self._restore(noted)

    async def void(self, hold_id: str) -> None:
        """Gives a hold back. An id that is not known is refused from now on, so a reservation
        that is still under way cannot take effect later. After LedgerUnavailable the ledger
        repeats it by itself."""
        try:
            reply = await self._send_void(hold_id)
        except LedgerUnavailable:
            self._abandon(hold_id)
            raise
        self._voided(hold_id, reply)

    def _send_void(self, hold_id: str) -> asyncio.Future[Any]:
        return self._hot.run(self._keys.void, hold_id, self._clock(), REMEMBER_MS)

    def _voided(self, hold_id: str, reply: list[Any]) -> None:
        self._abandoned.pop(hold_id, None)
        noted = self._open.pop(hold_id, None)
        if reply[0] == 1 and noted is not None:
            self._took(noted.drawn, reply[1:])

    def _took(self, drawn: Sequence[Budget], figures: Sequence[int]) -> None:
        """Figures after a hold ended. A hold of nothing drew on no counter and brings none."""
        if len(figures) == 2 * len(drawn):
            self._budgets.saw(drawn, figures)

    def _abandon(self, hold_id: str) -> None:
        if len(self._abandoned) >= ABANDONED_MAX:  # the sweeper gets what does not fit
            _log.error("hold_left_to_the_sweeper: %s", hold_id)
            return
        self._abandoned[hold_id] = None

    def _give_back_soon(self, hold_id: str) -> None:
        """Voids without waiting for the answer; `refresh` repeats what does not succeed."""
        self._abandon(hold_id)
        try:
            sent = self._send_void(hold_id)
        except LedgerUnavailable:
            return

        def done(reply: asyncio.Future[Any]) -> None:
            if not reply.cancelled() and reply.exception() is None:
                self._voided(hold_id, reply.result())

        sent.add_done_callback(done)

    async def refresh(self, now_s: float) -> None:
        """Reads definitions and figures anew and repeats what could not be voided. Call it every
        second: between replies it is what `views` lives from."""
        await self.watch()
        await super().refresh(now_s)
        for hold_id in list(self._abandoned):
            self._voided(hold_id, await self._send_void(hold_id))
        self._forget_swept(now_s)

    def _forget_swept(self, now_s: float) -> None:
        """Drops notes on holds that the sweeper has resolved by now; they end about in order."""
        while self._open:
            noted = next(iter(self._open.values()))
            if noted.deadline_s > now_s - REMEMBER_S:
                return
            del self._open[noted.id]

    async def ping(self) -> None:
        """Returns when the hot path is fit for use, else raises LedgerUnavailable."""
        await self._hot.call("PING")

    async def close(self) -> None:
        """Ends the lease, so that whatever is still open is swept at once, and disconnects."""
        try:
            await self._control.run(self._keys.lease, self._keys.owner, 0, self._clock())
        except LedgerUnavailable:
            _log.warning("lease_not_ended: it runs out by itself")
        await self._control.close()
        await self._hot.close()


async def _soon(asked: asyncio.Future[Any], patience_s: float) -> Any:
    """The reply, if it comes in time. One that has come while this loop stood still is in time."""
    done, _ = await asyncio.wait((asked,), timeout=patience_s)
    if not done:
        asked.cancel()  # the link reads the late reply and drops it
        raise LedgerUnavailable("Redis did not answer in time", ambiguous=True)
    return asked.result()
