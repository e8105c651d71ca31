"""Whether the server still is the one whose books we know, and what to do when it is not.

Every connection says which server it leads to (its run id). A server that was not checked is not
trusted with the cloud's money: `reserve` and `mark_sent` refuse until its books were compared with
what this process remembers, and what it has lost was put back. Local requests go on: what they
cost is ours.

    same server, or a restart whose log was whole     checked within a second, nothing lost
    a replica that took over                          open holds and settlements of the last
                                                      seconds are put back by who made them; what
                                                      nobody can put back is reported (`lost_nano`)
    a server without our books                        the cloud stays frozen until they are back
    a server that may evict, or a replica             refused at the start; frozen when found later
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.ledger.control import Control
from gateway.ledger.parts import REMEMBER_MS, REMEMBER_S, Keys
from gateway.ledger.views import Budget
from gateway.redis.link import LedgerUnavailable, RedisLink
from policies.types import MONEY_NANO_MAX, Value

_log = logging.getLogger(__name__)

CHECKPOINTS_MAX: Final = 64
CHECKPOINT_EVERY_S: Final = 5.0
# After that long a check that only lacks other processes' settlements is closed, and says so.
PATIENCE_S: Final = 8.0
CHECK_BATCH: Final = 2_000
RECENT_MAX: Final = 50_000
REPLAY_S: Final = 20.0  # a replica that is further behind than that is not one
# What we remember may be put back only as long as a server that knows its end still remembers it
# too: once forgotten, it would be booked twice.
PUT_BACK_S: Final = REMEMBER_S - 10.0


class Standing(Value, frozen=True, kw_only=True):
    """The books at one moment. open_nano: -1 when it was not asked for."""

    posted_nano: int
    held_nano: int
    last_row: tuple[int, int]
    open_nano: int
    epoch: str

    @classmethod
    def read(cls, reply: list[Any]) -> Standing:
        posted, held, last, open_nano, epoch = reply
        ms, _, number = last.decode().partition("-")
        return cls(
            posted_nano=posted, held_nano=held, last_row=(int(ms), int(number)),
            open_nano=open_nano, epoch=epoch.decode(),
        )  # fmt: skip


class Checkpoints:
    """What the books said at moments of the past: a check need not read all rows ever booked."""

    def __init__(self) -> None:
        self._known: deque[tuple[tuple[int, int], int]] = deque(maxlen=CHECKPOINTS_MAX)
        self._noted_s = -1e9

    def note(self, standing: Standing, now_s: float) -> None:
        if now_s - self._noted_s >= CHECKPOINT_EVERY_S:
            self._noted_s = now_s
            self._known.append((standing.last_row, standing.posted_nano))

    def before(self, last_row: tuple[int, int]) -> tuple[tuple[int, int], int]:
        """The latest one that a server whose last row is this must agree with."""
        for row, posted_nano in reversed(self._known):
            if row <= last_row:
                return row, posted_nano
        return (0, 0), 0

    def forget(self) -> None:
        self._known.clear()
        self._noted_s = -1e9


def unfit(info: Mapping[str, str]) -> str:
    """Why a server may not keep books, from its INFO; "" when it may."""
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        return (
            f"the Redis server may evict keys (maxmemory-policy {policy}), and an evicted counter "
            "is a budget that starts anew; set maxmemory-policy noeviction"
        )
    if info.get("role", "master") not in ("master", "primary"):
        return "the Redis server is a replica; name the primary, or an address that follows it"
    return ""


def read_info(text: str) -> dict[str, str]:
    """The lines `name:value` of INFO."""
    return dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)


@dataclass(slots=True)
class Noted:
    """What this process knows of one of its holds: enough to put it back. row, cost_nano and
    settled_s (monotonic) once it is settled."""

    id: str
    drawn: list[Budget]
    amount_nano: int
    sent: bool
    draft: bytes
    deadline_s: float
    row: bytes = b""
    cost_nano: int = 0
    settled_s: float = 0.0


_NOTHING: Final = Noted("", [], 0, False, b"", 0.0)


class Watched(Control):
    """A ledger that knows whether its server is the one that it was."""

    def __init__(
        self, hot: RedisLink, control: RedisLink, keys: Keys, *, lease_s: float, server_clock: bool
    ) -> None:
        super().__init__(control, keys, lease_s=lease_s, server_clock=server_clock)
        self._hot = hot
        self._open: dict[str, Noted] = {}  # of this process, about in the order of their deadlines
        self._recent: deque[Noted] = deque(maxlen=RECENT_MAX)  # settled, and perhaps not replicated
        self._trusted = hot.run_id
        self._lineage = ""  # run id and replication id as last checked
        self._checkpoints = Checkpoints()
        self._posted_seen = 0
        self._has_budgets = False  # there were definitions once, so a server without is not ours
        self._contact_s = time.monotonic()
        self._doubt_since_s: float | None = None
        self._why_frozen = ""
        self.lost_nano = 0  # what failovers have taken from the books and nobody could put back

    @property
    def frozen(self) -> str:
        """Why the cloud's money cannot be held now; "": it can. No Redis, no await."""
        if self._hot.run_id not in ("", self._trusted) and not self._why_frozen:
            return "the books are being checked: another server answers"
        return self._why_frozen

    def _check_frozen(self) -> None:
        if frozen := self.frozen:
            raise LedgerUnavailable(frozen, ambiguous=False)

    async def watch(self) -> None:
        """Looks which server this is and whether it is fit; checks its books when it is another
        one. Call it every second. Raises LedgerUnavailable."""
        info = read_info((await self._control.call("INFO")).decode())
        if time.monotonic() - self._contact_s > PUT_BACK_S:
            # our lease has run out long ago: what we held was swept, and is perhaps forgotten
            self._open.clear()
            self._recent.clear()
        if why := unfit(info):
            self._freeze(why)
            return
        lineage = f"{info.get('run_id', '')}/{info.get('master_replid', '')}"
        if not self._lineage:
            self._lineage, self._trusted = lineage, info.get("run_id", "")
        if lineage != self._lineage or info.get("run_id", "") != self._trusted:
            await self._recheck(lineage, info.get("run_id", ""))
            return
        standing = await self._standing()
        self._checkpoints.note(standing, time.monotonic())
        self._posted_seen = standing.posted_nano
        self._has_budgets = self._has_budgets or bool(standing.epoch)
        self._contact_s = time.monotonic()
        self._why_frozen = ""

    def _freeze(self, why: str) -> None:
        if why != self._why_frozen:
            _log.error("cloud_frozen: %s", why)
        self._why_frozen = why

    async def _standing(self, *, open_too: bool = False) -> Standing:
        return Standing.read(await self._control.run(self._keys.standing, int(open_too)))

    async def _recheck(self, lineage: str, run_id: str) -> None:
        """One round of the check of a server that we do not know."""
        now_s = time.monotonic()
        if self._doubt_since_s is None:
            self._doubt_since_s = now_s
        self._freeze("the books are being checked: another server answers")
        standing = await self._standing()
        if self._has_budgets and not standing.epoch:
            self._freeze("the Redis server does not have our budgets; bring its data back")
            return
        await self._put_back()
        standing = await self._standing(open_too=True)
        wrong = await self._flaws(standing)
        if wrong:
            self._freeze(f"the books do not add up: {wrong}")
            return
        lost_nano = max(0, self._posted_seen - standing.posted_nano)
        if lost_nano and now_s - self._doubt_since_s < PATIENCE_S:
            return  # others may still put theirs back
        if lost_nano:
            self.lost_nano += lost_nano
            _log.error("books_lost: %d nano-CNY were posted and are not in the books", lost_nano)
        self._lineage, self._trusted = lineage, run_id
        self._checkpoints.forget()
        self._checkpoints.note(standing, now_s)
        self._posted_seen, self._doubt_since_s, self._why_frozen = standing.posted_nano, None, ""
        self._contact_s = now_s
        _log.warning("books_checked: %s, %.1f s", run_id[:8], time.monotonic() - now_s)

    async def _flaws(self, standing: Standing) -> str:
        """What does not add up in the books of a server; "" when everything does."""
        if standing.open_nano != standing.held_nano:
            return f"held {standing.held_nano}, but the open holds sum to {standing.open_nano}"
        after, posted_nano = self._checkpoints.before(standing.last_row)
        if after == (0, 0):
            return ""  # we have no older moment to compare with
        kept = await self._control.call(
            "XRANGE", self._keys.rows, f"{after[0]}-{after[1]}", f"{after[0]}-{after[1]}"
        )
        if not kept:
            return ""  # the archive has taken the rows of that moment: it has checked them itself
        start = f"({after[0]}-{after[1]}"
        end = f"{standing.last_row[0]}-{standing.last_row[1]}"
        while True:
            entries = await self._control.call(
                "XRANGE", self._keys.rows, start, end, "COUNT", CHECK_BATCH
            )
            for _, flat in entries:
                posted_nano += int(flat[flat.index(b"p") + 1])
            if len(entries) < CHECK_BATCH:
                break
            start = "(" + entries[-1][0].decode()
        if posted_nano != standing.posted_nano:
            return f"posted {standing.posted_nano}, but the rows sum to {posted_nano}"
        return ""

    async def _put_back(self) -> None:
        """Our open holds, and our settlements that the server may not have heard of. It answers to
        those that it knows as to any repetition: nothing changes."""
        since_s = time.monotonic() - REPLAY_S
        for noted in [*self._open.values()]:
            await self._restore(noted)
        for noted in [*self._recent]:
            if noted.settled_s >= since_s and await self._restore(noted):
                await self._control.run(
                    self._keys.settle,
                    noted.id,
                    min(noted.cost_nano, MONEY_NANO_MAX),
                    noted.row,
                    self._clock(),
                    REMEMBER_MS,
                )

    async def _restore(self, noted: Noted) -> bool:
        """Whether the server had never heard of this hold; it has it then."""
        ttl_ms = max(1_000, int(1000 * (noted.deadline_s - time.time())))
        counters: list[str | int] = []
        for budget in noted.drawn:
            counters += [budget.counter, budget.drop_ms]
        reply = await self._control.run(
            self._keys.restore,
            noted.id,
            noted.amount_nano,
            "S" if noted.sent else "P",
            ttl_ms if self._server_clock else 60_000,
            noted.draft,
            self._keys.owner,
            self._lease_ms,
            self._clock(),
            *counters,
        )
        return bool(reply == 1)
