"""That no row is lost or doubled on its way to the archive: `make proof-archive`.

Rows are booked all the time while one or two archivers move, trim and merge them; the archivers are
killed with SIGKILL at random moments, and so is Valkey (with appendfsync always), again and again.
The claim of a killed archiver is taken away at once instead of after 30 s, so they really meet.
After every round everything has to add up: till == archived + hot, the files hold what Redis says
is archived, and no row stands twice. Ends with one JSON line; exits with 1 when something is off.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import redis

from gateway.archive import tidy
from gateway.archive.archiver import Archiver
from gateway.archive.files import ArchiveError, Files
from gateway.ledger.marks import ClaimLost, Hot
from gateway.redis.link import LedgerUnavailable
from gateway.tasks import spawn
from tests.gateway.archive.kit import add_up, archive, book, hot_of
from tests.gateway.ledger.kit import books
from tests.gateway.redis_servers import VALKEY, RealServer

CLAIM = "yuzui:{main}:archiver"
AWAY = (LedgerUnavailable, redis.RedisError, TimeoutError)


async def prove(*, seconds: float, seed: int, kills_min: int = 0) -> dict[str, Any]:
    """Runs for about so long, and on until so many have been killed. Raises AssertionError when
    something does not add up."""
    rng = random.Random(seed)
    server = RealServer(VALKEY, "--appendonly", "yes", "--appendfsync", "always")
    folder = Path(tempfile.mkdtemp(prefix="yz-archive-"))
    stop = asyncio.Event()
    counted = {"kills": 0, "redis_kills": 0, "rounds": 0}
    booking = spawn(_book_on(server.url, stop), name="book")
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end or counted["kills"] < kills_min:
            await _round(server, folder, rng, counted)
            await add_up(server.url, folder)
        stop.set()
        await booking
        await archive(server.url, folder, batch_rows=1_000)
        await add_up(server.url, folder)
        async with hot_of(server.url) as hot:
            marks = await hot.look()
    finally:
        stop.set()
        await booking
        server.close()
        shutil.rmtree(folder, ignore_errors=True)
    drift = marks.till_nano - marks.posted_nano
    return {**counted, "rows": marks.rows, "drift_nano": drift, "seed": seed}


async def _round(
    server: RealServer, folder: Path, rng: random.Random, counted: dict[str, int]
) -> None:
    command = [sys.executable, "-m", "tests.proof.archive", "--work", server.url, str(folder)]
    archivers = [
        await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        for _ in range(rng.choice((1, 1, 2)))
    ]
    for one in archivers:
        assert one.stdout is not None
        assert await one.stdout.readline() == b"up\n"
    await asyncio.sleep(rng.uniform(0.02, 0.8))
    if rng.random() < 0.2:
        server.kill()
        await asyncio.to_thread(server.start)
        counted["redis_kills"] += 1
        await asyncio.sleep(0.3)
    for one in archivers:
        assert one.returncode is None, "an archiver ended by itself"
        one.kill()
        await one.wait()
        counted["kills"] += 1
    with redis.Redis.from_url(server.url) as raw:
        raw.delete(CLAIM)
    counted["rounds"] += 1


async def _book_on(url: str, stop: asyncio.Event) -> None:
    number = 0
    async with books(url) as ledger:
        while not stop.is_set():
            number += 1
            try:
                await book(ledger, number)
            except AWAY:  # whether it was booked or not: the till says
                await asyncio.sleep(0.05)


async def _work(url: str, folder: str) -> None:
    """An archiver in a hurry: keeps nothing hot, waits for nothing, merges at once."""
    tidy.SAFE_MS = -(10**6)  # type: ignore[misc] - nobody reads meanwhile
    hot = await Hot.connect(url)
    archiver = Archiver(hot, Files.open(folder))
    print("up", flush=True)
    while True:
        with contextlib.suppress(ClaimLost, LedgerUnavailable, ArchiveError):
            await archiver.run(keep_s=-1.0, settle_s=-1.0, batch_rows=random.choice((1, 9, 99)))
            if random.random() < 0.3:
                await archiver.compact()
            await archiver.rest()
        await asyncio.sleep(0.01)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.proof.archive", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="(300)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--work", nargs=2, metavar=("URL", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        asyncio.run(_work(*args.work))
    found = asyncio.run(prove(seconds=args.seconds, seed=args.seed))
    print(json.dumps(found))
    return 1 if found["drift_nano"] else 0


if __name__ == "__main__":
    sys.exit(main())
