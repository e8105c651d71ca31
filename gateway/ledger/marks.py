"""How far the archive is, as Redis knows it: who may move it, and what is hot still.

    claim    one archiver at a time; a claim that is not renewed ends by itself
    plan     which rows the next batch holds, fixed before any is written
    commit   the batch is durable: the cursor moves behind it
    trim     rows leave the stream: archived ones only, and only when old enough

The cursor is the stream id of the last archived row, None before the first. Ids grow and rows are
never changed, so everything up to a cursor is complete.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final

from gateway.ledger.entries import Entry, entry
from gateway.ledger.parts import Keys, script
from gateway.redis.link import Bound, RedisLink
from policies.types import Value

CLAIM, RELEASE, PLAN, COMMIT, TRIM, LOOK = map(
    script,
    (
        "archive_claim",
        "archive_release",
        "archive_plan",
        "archive_commit",
        "archive_trim",
        "archive_look",
    ),
)
LEASE_MS: Final = 30_000  # a batch takes a second or two
CALL_TIMEOUT_S: Final = 10.0
PAGE_ROWS: Final = 1_000  # of one XRANGE, which blocks the server for its length (some ms)
TRIM_ROWS: Final = 1_000


class ClaimLost(Exception):
    """Another archiver works, or ours was away for longer than its lease."""


class Marks(Value, frozen=True, kw_only=True):
    """Where the archive stands.

    books:       the id that these books and their archive share; None: never archived
    cursor:      last archived row;  plan: last row of a batch that is under way
    rows:        how many are archived;  posted_nano: what they posted
    trimmed:     the last row that left the stream
    till_nano:   everything ever posted, at the same moment
    last:        the last row in the stream at that moment, None when it is empty
    """

    books: str | None = None
    cursor: str | None = None
    plan: str | None = None
    rows: int = 0
    posted_nano: int = 0
    trimmed: str | None = None
    till_nano: int = 0
    last: str | None = None


class Hot:
    """The hot store as an archiver and a reader see it. Make it with `connect`.

    Every method raises LedgerUnavailable when Redis cannot be used, and ClaimLost where it says.
    """

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self._link = link
        self._token = secrets.token_hex(16)
        self._rows = keys.rows
        self._archive = keys.archive
        self._audit = keys.audit
        claim, archive = keys.archiver, keys.archive
        self._claim = Bound(CLAIM, (claim,))
        self._release = Bound(RELEASE, (claim,))
        self._plan = Bound(PLAN, (claim, archive))
        self._commit = Bound(COMMIT, (claim, archive))
        self._trim = Bound(TRIM, (claim, archive, keys.rows))
        self._look = Bound(LOOK, (keys.till, archive, keys.rows))

    @classmethod
    async def connect(cls, url: str, *, books: str = "main") -> Hot:
        """Raises LedgerUnavailable, ValueError for a bad URL."""
        scripts = (CLAIM, RELEASE, PLAN, COMMIT, TRIM, LOOK)
        link = await RedisLink.connect(url, scripts=scripts, call_timeout_s=CALL_TIMEOUT_S)
        return cls(link, Keys(books, "archiver"))

    async def close(self) -> None:
        await self._link.close()

    async def look(self) -> Marks:
        reply = await self._link.run(self._look)
        texts = [part.decode() for part in reply]
        known = dict(zip(texts[2::2], texts[3::2], strict=True))
        return Marks(
            books=known.get("id"),
            cursor=known.get("cursor"),
            plan=known.get("plan"),
            rows=int(known.get("rows", 0)),
            posted_nano=int(known.get("posted_nano", 0)),
            trimmed=known.get("trimmed"),
            till_nano=int(texts[0]),
            last=texts[1] or None,
        )

    async def now_ms(self) -> int:
        """The server's clock, which the ids of rows are made of."""
        seconds, micros = await self._link.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def entries(self, after: str | None, upto: str, *, limit: int) -> list[Entry]:
        """The rows booked after one and up to another, in their order, at most `limit`."""
        found: list[Entry] = []
        start = "-" if after is None else f"({after}"
        while len(found) < limit:
            count = min(PAGE_ROWS, limit - len(found))
            page = await self._link.call("XRANGE", self._rows, start, upto, "COUNT", count)
            found.extend(entry(stream_id, flat) for stream_id, flat in page)
            if len(page) < count:
                break
            start = f"({found[-1].id}"
        return found

    # ------------------------------------------------------------ as the one archiver

    async def claim(self) -> None:
        """Takes or renews the claim. Raises ClaimLost when another archiver has it."""
        reply = await self._link.run(self._claim, self._token, LEASE_MS)
        if reply[0] != 1:
            raise ClaimLost(f"another archiver works; its claim lasts {reply[1] / 1000:.0f} s more")

    async def release(self) -> None:
        await self._link.run(self._release, self._token)

    async def name_books(self, name: str) -> str:
        """Gives the books an id unless they have one; the id that they have."""
        await self._link.call("HSETNX", self._archive, "id", name)
        found: bytes = await self._link.call("HGET", self._archive, "id")
        return found.decode()

    async def drop(self, ids: Sequence[str]) -> None:
        """Deletes single rows from the stream; whoever calls it knows that they are archived.
        Raises ClaimLost."""
        if ids:
            await self.claim()
            await self._link.call("XDEL", self._rows, *ids)

    async def note(self, act: str, *, who: str, of: str, posted_nano: int) -> None:
        """Writes into the audit trail of the books: an entry like those of budgets, without a
        definition before and after."""
        await self._link.call(
            "XADD", self._audit, "*", "act", act, "who", who, "id", f"rows|{of}",
            "from", "", "to", "", "p", posted_nano, "h", 0,
        )  # fmt: skip

    async def plan(self, cursor: str | None, last: str) -> str:
        """The last row of the next batch: `last`, or of a batch that was planned before and not
        committed. Raises ClaimLost."""
        reply = await self._link.run(self._plan, self._token, LEASE_MS, cursor or "", last)
        if reply[0] != 1:
            raise ClaimLost("the claim on the archive was lost before a batch was planned")
        found: bytes = reply[1]
        return found.decode()

    async def commit(self, last: str, *, rows: int, posted_nano: int) -> None:
        """Raises ClaimLost when somebody else has the claim or has committed this batch."""
        reply = await self._link.run(
            self._commit, self._token, LEASE_MS, last, rows, str(posted_nano)
        )
        if reply != 1:
            raise ClaimLost("the claim on the archive was lost before a batch was committed")

    async def trim(self, before_ms: int) -> int:
        """Takes archived rows that were booked before a moment out of the stream; how many.
        Raises ClaimLost."""
        gone = 0
        while True:
            reply: list[int] = await self._link.run(
                self._trim, self._token, LEASE_MS, before_ms, TRIM_ROWS
            )
            if reply[0] != 1:
                raise ClaimLost("the claim on the archive was lost before the stream was trimmed")
            gone += reply[1]
            if not reply[2]:
                return gone
