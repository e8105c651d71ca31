"""Local requests while the books are away: noted on this machine's disk, booked later, once.

Only for `limits.local_without_books: true`, and only for local requests: what they cost is ours. An
attempt leaves a line when it begins and one when it ends. Every end has a number, and the books
remember the last number of each spool that they took: so an entry is booked exactly once, however
often that is tried and whoever dies in between. A spool whose gateway is dead (its lock is free) is
booked by any other one on the machine; what had begun there and not ended is booked in full and
marked `unreconciled`, as an expired hold is.

A line is the CRC-32 of what follows, a blank, and JSON. One that was half written when its process
was killed does not match and ends the spool.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

from gateway.ledger.ledger import HoldRequest, Ledger
from gateway.ledger.rows import Row

_log = logging.getLogger(__name__)

ENTRIES_MAX: Final = 10_000  # in one spool: some hours of one server, some megabytes of disk
SPOOLED: Final = "spooled"  # flag of such a row


class SpoolFull(Exception):
    """No further local request without books: the spool has reached its bound."""


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """begin: scopes, amount and the draft of its row. end: the row, or none when it was void."""

    id: str
    scopes: tuple[str, ...] = ()
    amount_nano: int = 0
    row: Row | None = None
    ended: bool = False


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Line).decode


class Spool:
    """This process's spool. `close` leaves what is not booked to others."""

    def __init__(self, folder: Path, *, strict: bool) -> None:
        self._folder = folder
        self._strict = strict
        self._name = ""
        self._file = -1
        self._dirty = False
        self._begun: dict[str, _Line] = {}
        self._ended: list[tuple[_Line, Row | None]] = []
        self._booked = 0  # of _ended
        self._lines = 0

    @classmethod
    def open(cls, folder: Path, *, strict: bool = False) -> Spool:
        """strict: each line is on disk before its request goes on; else within a second. Raises
        OSError when the folder cannot be written to."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / f"probe-{secrets.token_hex(4)}"
        probe.touch(mode=0o600)
        probe.unlink()
        return cls(folder, strict=strict)

    @property
    def waiting(self) -> int:
        """Entries that are not booked yet, begun ones included."""
        return len(self._begun) + len(self._ended) - self._booked

    # ------------------------------------------------------------ while the books are away

    def begin(self, hold: HoldRequest) -> None:
        """Notes that a local attempt starts. Raises SpoolFull, OSError."""
        if self.waiting >= ENTRIES_MAX:
            raise SpoolFull
        line = _Line(id=hold.id, scopes=hold.scopes, amount_nano=hold.amount_nano, row=hold.draft)
        self._write(line)
        self._begun[hold.id] = line

    def end(self, hold_id: str, row: Row | None) -> int:
        """Notes what the attempt cost; None: nothing, and it leaves no row. Returns what will be
        booked. Raises OSError; then it is booked in full later."""
        begun = self._begun[hold_id]
        if row is not None:
            posted = min(max(row.posted_nano, 0), begun.amount_nano)
            flags = (*row.flags, SPOOLED)
            row = msgspec.structs.replace(row, posted_nano=posted, flags=flags)
        self._write(_Line(id=hold_id, row=row, ended=True))
        del self._begun[hold_id]
        self._ended.append((begun, row))
        return row.posted_nano if row is not None else 0

    def _write(self, line: _Line) -> None:
        if self._file < 0:
            self._name = secrets.token_hex(16)
            path = self._folder / f"{self._name}.spool"
            self._file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_WRONLY, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        data, end = pack_line(_encode(line)), os.fstat(self._file).st_size
        if os.write(self._file, data) < len(data):  # the disk is full; half a line would hide
            os.ftruncate(self._file, end)  # every later one from whoever reads them
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._dirty = True
        if self._strict:
            self.flush()

    def flush(self) -> None:
        """Puts what was written on disk; call it every second."""
        if self._dirty:
            os.fdatasync(self._file)
            self._dirty = False

    # ------------------------------------------------------------ when they are back

    async def book(self, ledger: Ledger) -> int:
        """Books what has ended here, and everything of dead neighbours. Returns how many entries
        were booked. Raises LedgerUnavailable; call it again later."""
        booked = 0
        while self._booked < len(self._ended):
            begun, row = self._ended[self._booked]
            await ledger.book(self._name, self._booked + 1, begun.scopes, row)
            self._booked += 1
            booked += 1
        if self._file >= 0 and not self._begun:
            self._drop()
        for path in self._folder.glob("*.spool"):
            if path.stem != self._name:
                booked += await self._adopt(path, ledger)
        return booked

    def _drop(self) -> None:
        (self._folder / f"{self._name}.spool").unlink(missing_ok=True)
        os.close(self._file)
        self._file, self._ended, self._booked, self._dirty = -1, [], 0, False

    async def _adopt(self, path: Path, ledger: Ledger) -> int:
        try:
            file = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return 0  # a neighbour was quicker
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0  # its gateway lives
            ended, begun = read_spool(_whole(file))
            for number, (line, row) in enumerate(ended, 1):
                await ledger.book(path.stem, number, line.scopes, row)
            for number, line in enumerate(begun, len(ended) + 1):
                await ledger.book(path.stem, number, line.scopes, _in_full(line), expired=True)
            _remove(path)
            _log.warning("spool_adopted: %d entries", len(ended) + len(begun))
            return len(ended) + len(begun)
        finally:
            os.close(file)

    def close(self) -> None:
        """Lets go of the file; what is in it and not booked is for whoever finds it."""
        if self._file < 0:
            return
        try:
            self.flush()
        except OSError as error:  # the kernel has it, and may still bring it on disk
            _log.error("spool_failed: %s", error)
        os.close(self._file)
        self._file = -1


def _whole(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def pack_line(data: bytes) -> bytes:
    return b"%08x %b\n" % (crc32(data), data)


def read_spool(data: bytes) -> tuple[list[tuple[_Line, Row | None]], list[_Line]]:
    """What has ended, in order, and what had only begun. Reading stops at a line that is not whole:
    nothing was written behind it."""
    begun: dict[str, _Line] = {}
    ended: list[tuple[_Line, Row | None]] = []
    for raw in data.split(b"\n"):
        check, _, text = raw.partition(b" ")
        if check != b"%08x" % crc32(text):
            break
        line = _decode(text)
        if line.ended:
            ended.append((begun.pop(line.id), line.row))
        else:
            begun[line.id] = line
    return ended, list(begun.values())


def _in_full(line: _Line) -> Row | None:
    if line.row is None:
        return None
    flags = (*line.row.flags, SPOOLED)
    return msgspec.structs.replace(line.row, posted_nano=line.amount_nano, flags=flags)
