"""Moves rows from Redis to the archive, each exactly once, whatever dies on the way.

A batch goes through steps, and a crash between any two of them is carried on by whoever is the
archiver next:

    look      where the cursor is, and whether a batch was planned and not finished
    plan      Redis fixes the last row of the batch
    read      the rows (cursor, plan] are the same at every reading: the stream only grows
    write     one file for each day and side, under names made of that range: written again, they
              are the same files
    commit    Redis moves the cursor and adds up what is archived; only now do the files count
    trim      rows that are archived and old enough leave the stream

Should Redis itself forget a plan or a commit (a power failure takes the last second of its log),
the names of the files say what was planned: a range that begins at the cursor is planned again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from gateway.archive.columns import to_line
from gateway.archive.files import ArchiveError, Files, Marker
from gateway.archive.layout import FIRST, File, day_of, file_of, parse_id
from gateway.archive.tidy import Compacted, Forgotten, compact, forget
from gateway.ledger.entries import Entry
from gateway.ledger.marks import PAGE_ROWS, ClaimLost, Hot, Marks
from gateway.redis.link import LedgerFault, LedgerUnavailable
from policies.types import Value

_log = logging.getLogger(__name__)

BATCH_ROWS: Final = 50_000  # some 20 MB in memory, a second of work
# A row this young waits: what a power failure can take from Redis was then not archived yet.
SETTLE_S: Final = 5.0
FOR_EVER_S: Final = 1e10
TIDY_EVERY_S: Final = 6 * 3_600.0

# What happens at each step; tests end the process there.
Step = Callable[[str], None]


def _nothing(_: str) -> None:
    return


class Moved(Value, frozen=True, kw_only=True):
    """What one run did."""

    rows: int = 0
    batches: int = 0
    trimmed: int = 0


class Archiver:
    """The one archiver of some books, as long as its claim lasts."""

    def __init__(self, hot: Hot, files: Files, *, step: Step = _nothing) -> None:
        self._hot = hot
        self._files = files
        self._step = step

    async def run(
        self, *, keep_s: float, settle_s: float = SETTLE_S, batch_rows: int = BATCH_ROWS
    ) -> Moved:
        """Archives every row older than `settle_s` and trims those older than `keep_s`.

        Raises ClaimLost, LedgerUnavailable, ArchiveError; what was committed stays done.
        """
        await self._hot.claim()
        self._step("claimed")
        await self.check()
        marks = await self._hot.look()
        begun = uncommitted(self._files.list(), marks.cursor)
        upto_ms = await self._hot.now_ms() - int(1000 * settle_s)
        rows = batches = 0
        while (moved := await self._batch(str(max(0, upto_ms)), batch_rows, begun)) is not None:
            rows += moved
            batches += 1
            self._step("committed")
        trimmed = await self._hot.trim(max(0, await self._hot.now_ms() - int(1000 * keep_s)))
        self._step("trimmed")
        return Moved(rows=rows, batches=batches, trimmed=trimmed)

    async def rest(self) -> None:
        """Ends the claim until the next run, so that `forget` and `compact` need not wait."""
        await self._hot.release()

    async def compact(self) -> Compacted:
        """Makes large files of small ones. Raises as `run`."""
        await self._hot.claim()
        marks = await self.check()
        return compact(self._files, marks.cursor, now_ms=await self._hot.now_ms())

    async def forget(self, *, tenant: str, subject: str | None, who: str) -> Forgotten:
        """Erases a tenant, or one subject of it, from the books: whatever was booked until now is
        archived, made anonymous there, and leaves Redis. Requests that are still under way are
        booked later. Raises as `run`."""
        of = f"tenant:{tenant}"
        if subject is not None:  # a person's name does not belong into a trail that stays
            of += f" subject sha256:{hashlib.sha256(subject.encode()).hexdigest()[:16]}"
        await self._hot.note("forget", who=who, of=of, posted_nano=0)
        self._step("noted")
        await self.run(keep_s=FOR_EVER_S, settle_s=-1.0)
        marks = await self._hot.look()
        done = forget(self._files, marks.cursor, tenant=tenant, subject=subject)
        self._step("erased")
        if marks.cursor is not None:
            await self._drop(marks.cursor, tenant, subject)
        self._step("dropped")
        await self._hot.note("forgotten", who=who, of=of, posted_nano=done.posted_nano)
        return done

    async def _drop(self, cursor: str, tenant: str, subject: str | None) -> None:
        """Takes the rows of one tenant out of the stream, of those that are archived."""
        after: str | None = None
        while page := await self._hot.entries(after, cursor, limit=PAGE_ROWS):
            after = page[-1].id
            rows = [(one.id, one.row) for one in page if one.row.tenant == tenant]
            theirs = [name for name, row in rows if subject in (None, row.subject)]
            await self._hot.drop(theirs)

    async def check(self) -> Marks:
        """That books and archive belong together; gives both a common name the first time."""
        marks = await self._hot.look()
        marker = self._files.marker()
        if marker is None:
            if marks.rows:
                raise ArchiveError(
                    f"{self._files.shown} is empty, but {marks.rows} rows of these books are "
                    "archived somewhere: set archive.url to that place"
                )
            name = await self._hot.name_books(secrets.token_hex(8))
            self._step("named")
            created = datetime.now(UTC).isoformat(timespec="seconds")
            self._files.mark(Marker(books=name, created=created))
            return await self._hot.look()
        if marker.books != marks.books:
            raise ArchiveError(
                f"{self._files.shown} holds the rows of other books ({marker.books}, begun "
                f"{marker.created}), not of these ({marks.books or 'never archived'}): set "
                "archive.url to another place"
            )
        return marks

    async def _batch(self, upto: str, batch_rows: int, begun: list[File]) -> int | None:
        """One batch; how many rows it had, or None when there are none left. begun: files that
        stood there before this run and do not count yet."""
        marks = await self._hot.look()
        entries: list[Entry] | None = None
        here = [file for file in begun if file.after == parse_id(marks.cursor or FIRST)]
        wanted = marks.plan or (max(here, key=lambda f: f.upto).upto_id if here else None)
        if wanted is None:
            entries = await self._hot.entries(marks.cursor, upto, limit=batch_rows)
            if not entries:
                return None
            wanted = entries[-1].id
        self._step("read")
        last = await self._hot.plan(marks.cursor, wanted)
        self._step("planned")
        if entries is None or last != wanted:
            entries = await self._hot.entries(marks.cursor, last, limit=2**62)
        parts = divide(entries, after=marks.cursor, upto=last)
        for file, part in parts.items():
            self._files.write(file, [to_line(one) for one in part])
            self._step("written")
        self._files.delete(file for file in here if file not in parts)
        await self._hot.commit(
            last, rows=len(entries), posted_nano=sum(one.row.posted_nano for one in entries)
        )
        return len(entries)


def uncommitted(files: Sequence[File], cursor: str | None) -> list[File]:
    """Files of batches that Redis does not know to be archived."""
    upto = parse_id(cursor or FIRST)
    return [file for file in files if file.upto > upto]


def divide(entries: Sequence[Entry], *, after: str | None, upto: str) -> dict[File, list[Entry]]:
    """The entries of a batch by the file that they belong into, in their order."""
    parts: dict[File, list[Entry]] = {}
    for one in entries:
        file = file_of(day_of(one.row.at_ms), one.row.site.value, after, upto)
        parts.setdefault(file, []).append(one)
    return parts


async def keep_running(
    worker: Archiver, stop: asyncio.Event, *, every_s: float, keep_s: float
) -> None:
    """Runs until told to stop. What goes wrong is logged and tried again next time: the rows wait
    in Redis meanwhile."""
    loop = asyncio.get_running_loop()
    tidied_s = loop.time()
    while not stop.is_set():
        try:
            moved = await worker.run(keep_s=keep_s)
            if loop.time() - tidied_s > TIDY_EVERY_S:
                tidied_s = loop.time()
                await worker.compact()
            await worker.rest()
            if moved.rows or moved.trimmed:
                _log.info("archived: %d rows, %d trimmed", moved.rows, moved.trimmed)
        except (ClaimLost, LedgerUnavailable, LedgerFault, ArchiveError) as error:
            _log.warning("not_archived: %s", error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), every_s)
