"""`yuzui archive`: ledger rows in Parquet."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import logs
from gateway.archive.extra import ExtraMissing, load
from gateway.archive.marks import ClaimLost, Hot, Marks
from gateway.commands.options import add_config, load_config
from gateway.config import Config
from gateway.data_dir import DataDir
from gateway.ledger import LedgerFault, LedgerUnavailable
from gateway.record import cny

if TYPE_CHECKING:
    from gateway.archive import archiver, files

DAY_S = 86_400.0
_EPILOG = """\
Rows of the ledger are kept in Redis for archive.keep_hot_days and in Parquet for good. `yuzui up`
runs an archiver by itself; elsewhere `yuzui archive run` is a process of its own, one for all
gateways (a second one waits). Where they go is archive.url: a folder, or
s3://bucket/prefix?endpoint_override=host with the keys in AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY.
"""


class CommandError(Exception):
    """Something that the operator can put right; the text says how."""


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="yuzui archive",
        description="Moves the ledger's rows to Parquet, exactly once, and works with them there.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    acts = parser.add_subparsers(dest="act", required=True, metavar="ACTION")
    run = acts.add_parser("run", help="move rows, again and again, until it is stopped")
    run.add_argument("--once", action="store_true", help="what is due now, then end")
    status = acts.add_parser("status", help="what is archived, what is hot, and whether it adds up")
    status.add_argument("--json", action="store_true", help="print JSON")
    for each in (run, status):
        add_config(each)
    args = parser.parse_args(argv)
    config = load_config(parser, args)
    doing: dict[str, Any] = {"run": _run, "status": _status}
    try:
        return int(asyncio.run(doing[args.act](config, args)))
    except (CommandError, ExtraMissing, ClaimLost, LedgerUnavailable, LedgerFault) as error:
        print(f"yuzui archive: {error}", file=sys.stderr)
        return 1


def redis_url(config: Config) -> str:
    """Where the books are: as the settings say, else of the `yuzui up` that runs here."""
    running = DataDir(config.data_dir).running()
    found = config.redis_url or (running.redis_url if running is not None else None)
    if found is None:
        raise CommandError(
            "no books are named and none run here: set redis_url (YUZUI_REDIS_URL), or start "
            "`yuzui up` in this folder"
        )
    return found


def open_files(config: Config) -> files.Files:
    """The archive that the settings name. Raises ExtraMissing, CommandError."""
    module: Any = load("gateway.archive.files")
    try:
        found: files.Files = module.Files.open(config.archive_place)
    except module.ArchiveError as error:
        raise CommandError(str(error)) from error
    return found


# ------------------------------------------------------------------ run


async def _run(config: Config, args: argparse.Namespace) -> int:
    module: Any = load("gateway.archive.archiver")
    hot = await Hot.connect(redis_url(config))
    try:
        worker: archiver.Archiver = module.Archiver(hot, open_files(config))
        keep_s = config.archive.keep_hot_days * DAY_S
        if args.once:
            moved = await _once(worker.run(keep_s=keep_s), module.ArchiveError)
            print(f"{moved.rows} rows archived, {moved.trimmed} trimmed from Redis")
            return 0
        logs.setup(config.log.level, text_chars_max=config.log.text_chars_max)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stop.set)
        await module.keep_running(worker, stop, every_s=config.archive.every_s, keep_s=keep_s)
    finally:
        await _leave(hot)
    return 0


async def _once(work: Coroutine[Any, Any, Any], trouble: type[Exception]) -> Any:
    try:
        return await work
    except trouble as error:
        raise CommandError(str(error)) from error


async def _leave(hot: Hot) -> None:
    try:
        await hot.release()
    except LedgerUnavailable:
        pass  # the claim ends by itself
    finally:
        await hot.close()


# ------------------------------------------------------------------ status


class Status(msgspec.Struct, kw_only=True):
    """What is where. Money in nano-CNY. adds_up: till == archived + hot, and the files agree."""

    place: str
    rows_archived: int
    rows_in_files: int | None  # None: the archive cannot be read here
    rows_waiting: int  # in Redis alone
    till_nano: int
    archived_nano: int
    files_nano: int | None
    waiting_nano: int
    files: int | None
    newest_archived: str | None
    newest_trimmed: str | None

    @property
    def adds_up(self) -> bool:
        in_files = self.files_nano in (None, self.archived_nano)
        rows = self.rows_in_files in (None, self.rows_archived)
        return rows and in_files and self.till_nano == self.archived_nano + self.waiting_nano


async def _status(config: Config, args: argparse.Namespace) -> int:
    hot = await Hot.connect(redis_url(config))
    try:
        found = await look(hot, config)
    finally:
        await hot.close()
    if args.json:
        known = {**msgspec.structs.asdict(found), "adds_up": found.adds_up}
        print(msgspec.json.format(msgspec.json.encode(known), indent=2).decode())
    else:
        print(as_text(found))
    return 0 if found.adds_up else 1


async def look(hot: Hot, config: Config) -> Status:
    """Counts everything. Rows that are booked meanwhile are left out on both sides."""
    marks = await hot.look()
    rows_waiting, waiting_nano = await _waiting(hot, marks)
    rows_in_files = files_nano = count = None
    if marks.cursor is not None:
        counted = await asyncio.to_thread(_in_files, config, marks)
        count, rows_in_files, files_nano = counted
    return Status(
        place=config.archive_place.partition("?")[0],
        rows_archived=marks.rows,
        rows_in_files=rows_in_files,
        rows_waiting=rows_waiting,
        till_nano=marks.till_nano,
        archived_nano=marks.posted_nano,
        files_nano=files_nano,
        waiting_nano=waiting_nano,
        files=count,
        newest_archived=marks.cursor,
        newest_trimmed=marks.trimmed,
    )


async def _waiting(hot: Hot, marks: Marks) -> tuple[int, int]:
    """Rows that are only hot, and what they posted."""
    if marks.last is None:
        return 0, 0
    rows, nano, after = 0, 0, marks.cursor
    while page := await hot.entries(after, marks.last, limit=10_000):
        rows += len(page)
        nano += sum(one.row.posted_nano for one in page)
        after = page[-1].id
    return rows, nano


def _in_files(config: Config, marks: Marks) -> tuple[int, int, int]:
    """Files that count, and the rows and money in them."""
    query: Any = load("gateway.archive.query")
    with query.Query(open_files(config), marks.cursor) as archive:
        rows, nano = archive.sums()
        return archive.files, rows, nano


def as_text(found: Status) -> str:
    gone = "nothing" if found.newest_trimmed is None else f"up to {found.newest_trimmed}"
    lines = [
        f"place      {found.place}",
        f"archived   {found.rows_archived} rows, {cny(found.archived_nano)} CNY posted",
        f"files      {_or(found.files)} with {_or(found.rows_in_files)} rows",
        f"waiting    {found.rows_waiting} rows, {cny(found.waiting_nano)} CNY posted",
        f"trimmed    {gone}",
        f"till       {cny(found.till_nano)} CNY",
        f"adds up    {'yes' if found.adds_up else 'NO: keep both places as they are, report it'}",
    ]
    return "\n".join(lines)


def _or(value: int | None) -> str:
    return "-" if value is None else str(value)
