"""An archiver that is killed at a step: `python -m tests.gateway.archive.victim URL FOLDER STEP N`.

It kills itself with SIGKILL the N-th time it comes to STEP, so nothing of it runs afterwards. When
it never comes there it works to its end and says so.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from gateway.archive.archiver import Archiver
from gateway.archive.files import Files
from gateway.ledger.marks import Hot


async def run(url: str, folder: str, where: str, number: int) -> None:
    left = number

    def step(name: str) -> None:
        nonlocal left
        if name == where:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    hot = await Hot.connect(url)
    archiver = Archiver(hot, Files.open(folder), step=step)
    await archiver.run(keep_s=-1.0, settle_s=-1.0, batch_rows=7)
    await hot.release()
    await hot.close()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
    print("worked to its end")
