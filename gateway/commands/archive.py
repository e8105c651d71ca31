"""`yuzui archive`: ledger rows in Parquet."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from gateway import logs
from gateway.admin.client import AdminError
from gateway.archive.books import BooksError
from gateway.archive.extra import ExtraMissing, load
from gateway.commands.archive_out import add_export, add_query, export, query
from gateway.commands.options import add_config, exit_code, load_config
from gateway.config import Config
from gateway.data_dir import DataDir
from gateway.ledger.ledger import LedgerFault, LedgerUnavailable
from gateway.ledger.marks import ClaimLost, Hot, Marks
from policies.budget import cny

if TYPE_CHECKING:
    from gateway.archive import archiver, files

DAY_S = 86_400.0
CLAIM_TRIES, CLAIM_WAIT_S = 20, 0.25
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
    merge = acts.add_parser("compact", help="make large files of small ones (`run` does, too)")
    erase = acts.add_parser("forget", help="erase a tenant's rows; the books still add up")
    erase.add_argument("--tenant", required=True, metavar="NAME")
    erase.add_argument("--subject", metavar="NAME", help="only this caller of the tenant")
    erase.add_argument("--yes", action="store_true", help="do not ask; it cannot be undone")
    out = acts.add_parser("export", help="rows, hot and archived, as CSV, JSON lines or Parquet")
    add_export(out)
    ask = acts.add_parser("query", help="a question in SQL (DuckDB) to all rows, the view `rows`")
    add_query(ask)
    for each in (run, status, merge, erase, out, ask):
        add_config(each)
    args = parser.parse_args(argv)
    config = load_config(parser, args)
    try:
        if args.act in _READING:
            return _READING[args.act](config, args)
        return int(asyncio.run(_WORKING[args.act](config, args)))
    except (
        CommandError, BooksError, ExtraMissing, AdminError, ClaimLost, LedgerUnavailable,
        LedgerFault, ValueError, OSError,
    ) as error:  # fmt: skip
        print(f"yuzui archive: {error}", file=sys.stderr)
        return exit_code(error)


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


async def _compact(config: Config, _: argparse.Namespace) -> int:
    done = await _as_archiver(config, lambda worker: worker.compact())
    print(f"{done.merged} files merged into {done.written}; {done.deleted} old ones deleted")
    return 0


async def _forget(config: Config, args: argparse.Namespace) -> int:
    whom = f"tenant {args.tenant}" + (f", subject {args.subject}" if args.subject else "")
    if not args.tenant or args.subject == "":
        raise ValueError("whose rows? --tenant and --subject take a name")
    redis_url(config)  # nobody is asked about books that are not there
    if not args.yes and not _sure(whom):
        print("nothing was erased")
        return 1
    who = getpass.getuser()
    done = await _as_archiver(
        config,
        lambda worker: worker.forget(tenant=args.tenant, subject=args.subject, who=who),
    )
    print(
        f"{done.rows} rows of {whom} are erased in {done.files} files; {cny(done.posted_nano)} CNY "
        "stay in the books without a name.\nRequests that were under way are booked when they end: "
        "withdraw the tokens, then run this again.\nBudgets, logs and copies of Redis and of the "
        "archive are not touched."
    )
    return 0


def _sure(whom: str) -> bool:
    try:
        return input(f"Erase every row of {whom}? It cannot be undone. [yes/no] ") == "yes"
    except EOFError:
        raise CommandError("nobody is there to be asked: give --yes") from None


async def _as_archiver(config: Config, act: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    """Does one thing as the archiver; a running one is in its way for moments only."""
    module: Any = load("gateway.archive.archiver")
    hot = await Hot.connect(redis_url(config))
    try:
        await _claimed(hot)
        return await _once(act(module.Archiver(hot, open_files(config))), module.ArchiveError)
    finally:
        await _leave(hot)


async def _claimed(hot: Hot) -> None:
    """Waits its turn. Raises ClaimLost when it does not come."""
    for _ in range(CLAIM_TRIES):
        with contextlib.suppress(ClaimLost):
            await hot.claim()
            return
        await asyncio.sleep(CLAIM_WAIT_S)
    await hot.claim()


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


_READING = {"export": export, "query": query}
_WORKING: dict[str, Callable[[Config, argparse.Namespace], Coroutine[Any, Any, int]]] = {
    "run": _run,
    "status": _status,
    "compact": _compact,
    "forget": _forget,
}
