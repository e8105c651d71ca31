"""Budgets in the books: defined, changed, counted anew, deleted, each change in the audit trail."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from gateway.ledger.parts import Keys
from gateway.ledger.views import KEEP_FINISHED_S, Budget, BudgetStatus, BudgetViews, Definition
from gateway.redis.link import RedisLink
from policies.budget import (
    BudgetOptions,
    Period,
    check_options,
    check_scope,
    check_start_day,
    check_zone,
)
from policies.types import MONEY_NANO_MAX, BudgetView, Value

_log = logging.getLogger(__name__)

FIGURES_CHUNK: Final = 500  # budgets read by one HMGET, which blocks the server for its length
SKEW_WARN_S: Final = 2.0
CHANGES_MAX: Final = 5  # of one budget by somebody else while we change it
WHO_CHARS_MAX: Final = 128
AUDIT_ENTRIES_MAX: Final = 10_000  # of one look; the trail itself is never cut
TOLD: Final = b"told"
NOBODY: Final = "unknown"

_encode = msgspec.json.Encoder(order="deterministic").encode


class AuditEntry(Value, frozen=True, kw_only=True):
    """One change of one budget. at_ms: by the clock of the server. before, after: None where there
    was or is none. posted_nano, held_nano: in the period and count of the moment before it."""

    at_ms: int
    who: str
    act: str  # set | raise | freeze | unfreeze | reset | delete
    scope: str
    period: str
    before: Definition | None
    after: Definition | None
    posted_nano: int
    held_nano: int


class NoSuchBudget(LookupError):
    """There is no budget with this scope and period."""

    def __init__(self, scope: str, period: str) -> None:
        super().__init__(f"there is no budget {scope!r} with period {period!r}")


class BudgetDesk:
    """The part of the ledger that defines budgets and reads their figures."""

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

    # ------------------------------------------------------------ changing

    async def set_budget(
        self,
        scope: str,
        *,
        limit_nano: int,
        period: Period | str,
        zone: str,
        now_s: float,
        start_day: int = 1,
        options: BudgetOptions | None = None,
        who: str = NOBODY,
    ) -> None:
        """Makes a budget, or changes the one with this scope and period.

        A new budget counts from the moment it is set: what is under way or was spent before is
        not in it. So does one that moves to another zone or first day. Any other change keeps the
        count; a limit below what is posted and held refuses everything until the period ends.
        options: None: the defaults, or those that it has. A frozen budget stays frozen. Raises
        ValueError.
        """
        period = Period(period)
        # without a midnight of its own a change of zone would begin a new count for nothing
        zone = check_zone(zone) if period.zoned else "UTC"
        start_day = check_start_day(period, start_day)
        if options is not None:
            check_options(options, period)

        def changed(old: Definition | None) -> Definition:
            known = old or _FIRST
            kept = known.options if options is None else options
            frozen = known.mode == "F"
            return msgspec.structs.replace(
                known,
                limit_nano=limit_nano,
                mode="F" if frozen else "" if kept.hard else "S",
                zone=zone,
                start_day=start_day,
                options=kept,
            )

        await self._change(scope, period, "set", changed, who=who, now_s=now_s)

    async def raise_budget(
        self, scope: str, period: Period | str, *, add_nano: int, now_s: float, who: str = NOBODY
    ) -> None:
        """Adds to a limit (atomically: two raises at once both count). Raises NoSuchBudget,
        ValueError."""
        if add_nano <= 0:
            raise ValueError("a budget is raised by more than nothing; `set` lowers one")

        def changed(old: Definition | None) -> Definition:
            known = _known(old, scope, period)
            return msgspec.structs.replace(known, limit_nano=known.limit_nano + add_nano)

        await self._change(scope, Period(period), "raise", changed, who=who, now_s=now_s)

    async def freeze_budget(
        self, scope: str, period: Period | str, *, frozen: bool, now_s: float, who: str = NOBODY
    ) -> None:
        """A frozen budget refuses everything from now on; what is under way ends as usual. Raises
        NoSuchBudget."""

        def changed(old: Definition | None) -> Definition:
            known = _known(old, scope, period)
            mode = "F" if frozen else "" if known.options.hard else "S"
            return msgspec.structs.replace(known, mode=mode)

        act = "freeze" if frozen else "unfreeze"
        await self._change(scope, Period(period), act, changed, who=who, now_s=now_s)

    async def reset_budget(
        self, scope: str, period: Period | str, *, now_s: float, who: str = NOBODY
    ) -> None:
        """Counts from nothing again; what is under way is settled into the old count. The trail
        keeps what was posted. Raises NoSuchBudget."""

        def changed(old: Definition | None) -> Definition:
            return _known(old, scope, period)

        await self._change(scope, Period(period), "reset", changed, who=who, now_s=now_s)

    async def _change(
        self,
        scope: str,
        period: Period,
        act: str,
        changed: Callable[[Definition | None], Definition],
        *,
        who: str,
        now_s: float,
    ) -> None:
        """Reads, changes and writes one definition; begins again when somebody was quicker."""
        budget_id = f"{period.value}|{check_scope(scope)}"
        for _ in range(CHANGES_MAX):
            await self.refresh(now_s)
            old = self._budgets.of(budget_id)
            new = changed(old.definition if old is not None else None)
            if not 0 <= new.limit_nano <= MONEY_NANO_MAX:
                raise ValueError(f"a limit is 0 to {MONEY_NANO_MAX} nano-CNY")
            reply = await self._control.run(
                self._keys.set_budget,
                budget_id,
                new.mode,
                new.limit_nano,
                new.zone,
                new.start_day,
                _encode(new.options),
                self._clock(now_s),
                secrets.token_hex(8),
                act,
                check_who(who),
                int(act == "reset"),
                old.definition.version if old is not None else 0,
                *_counter(old, now_s),
            )
            await self.refresh(now_s)
            if reply[0] != -1:
                return
        raise ValueError("somebody else keeps changing this budget; look at it and try again")

    async def delete_budget(
        self, scope: str, period: Period | str, *, now_s: float, who: str = NOBODY
    ) -> bool:
        """Removes a budget; False: there was none. Its open holds settle as usual."""
        await self.refresh(now_s)
        budget_id = f"{Period(period).value}|{check_scope(scope)}"
        reply = await self._control.run(
            self._keys.delete_budget,
            budget_id,
            *_counter(self._budgets.of(budget_id), now_s),
            secrets.token_hex(8),
            check_who(who),
        )
        await self.refresh(now_s)
        return bool(reply == 1)

    # ------------------------------------------------------------ looking

    async def budgets(self, now_s: float) -> list[BudgetStatus]:
        """Every budget with its figures of now, ordered by scope and period."""
        await self.refresh(now_s)
        found = [budget.status() for budget in self._budgets.all(now_s + self._skew_s)]
        return sorted(found, key=lambda status: (status.scope, _ORDER[status.period]))

    def known_budgets(self) -> list[Budget]:
        """The same as this process last saw it: no Redis, no await."""
        return self._budgets.known()

    async def claim_alert(self, key: str, claim_s: float) -> bool | None:
        """Whether this process is the one to tell of a crossing. None: it was told for good."""
        name, px = self._keys.alert(key), int(1000 * claim_s)
        reply = await self._control.call("SET", name, self._keys.owner, "NX", "PX", px)
        if reply is not None:
            return True
        return None if await self._control.call("GET", name) == TOLD else False

    async def alert_told(self, key: str, remember_s: float) -> None:
        """Nobody needs to tell of this crossing any more."""
        await self._control.call("SET", self._keys.alert(key), TOLD, "PX", int(1000 * remember_s))

    async def audit(
        self, *, since_ms: int = 0, scope: str | None = None, period: str | None = None
    ) -> list[AuditEntry]:
        """Changes since a moment, the oldest first; of one budget when it is named."""
        found = await self._control.call(
            "XRANGE", self._keys.audit, since_ms, "+", "COUNT", AUDIT_ENTRIES_MAX
        )
        entries = [
            _entry(entry_id, dict(zip(f[::2], f[1::2], strict=True))) for entry_id, f in found
        ]
        return [
            entry
            for entry in entries
            if scope in (None, entry.scope) and period in (None, entry.period)
        ]

    def views(self) -> Mapping[str, tuple[BudgetView, ...]]:
        """What this process knows of every budget, by scope; no Redis, no await. A hint for the
        plan, as fresh as the last reply or refresh. A live view: read it before the next await."""
        return self._budgets.views()

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

    def _clock(self, now_s: float | None = None) -> int:
        """What the scripts are told as the time: nothing, or in tests the last `now_s`."""
        if self._server_clock:
            return 0
        if now_s is not None:
            self._now_s = now_s
        return int(1000 * self._now_s)


_FIRST: Final = Definition(
    limit_nano=0, mode="", generation="", version=0, zone="", start_day=1, options=BudgetOptions()
)
_ORDER: Final = {period: i for i, period in enumerate(Period)}


def check_who(who: str) -> str:
    """Returns a name as the trail keeps it. Raises ValueError."""
    if not 0 < len(who) <= WHO_CHARS_MAX or not who.isprintable():
        raise ValueError(
            f"who changes a budget is told in 1 to {WHO_CHARS_MAX} printable characters"
        )
    return who


def _known(old: Definition | None, scope: str, period: str) -> Definition:
    if old is None:
        raise NoSuchBudget(scope, str(period))
    return old


def _counter(budget: Budget | None, now_s: float) -> tuple[str, int]:
    """What counted until now, and when it may be dropped."""
    return (budget.counter if budget is not None else "", int(1000 * (now_s + KEEP_FINISHED_S)))


def _entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> AuditEntry:
    def definition(name: bytes) -> Definition | None:
        limit, _, lines = fields[name].decode().partition("\n")
        return Definition.read(limit, lines) if lines else None

    period, _, scope = fields[b"id"].decode().partition("|")
    return AuditEntry(
        at_ms=int(entry_id.split(b"-")[0]),
        who=fields[b"who"].decode(),
        act=fields[b"act"].decode(),
        scope=scope,
        period=period,
        before=definition(b"from"),
        after=definition(b"to"),
        posted_nano=int(fields[b"p"]),
        held_nano=int(fields[b"h"]),
    )
