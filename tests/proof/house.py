"""The processes of `make proof-pool`: a Valkey, three supervised workers and a gateway."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from gateway.data_dir import DataDir
from gateway.keys import from_secret, issue
from gateway.machine.stack import _probe
from gateway.machine.workers import LocalWorkers
from gateway.processes import Child
from gateway.tasks import spawn
from tests.gateway.redis_servers import VALKEY, RealServer
from tests.ports import free_port

SECRET = "a secret of the proof, 32 bytes or more"
ADMIN = "an admin token of the proof"
CHUNKS = 10
HANG_S = 8.0
PATIENCE_S = 60.0
LOOK_S = 0.1  # seldom: looking takes time of the same cores


class House:
    """The processes, and what is known of them."""

    def __init__(self, folder: Path, *, nano: bool) -> None:
        self.nano = nano
        self.data = DataDir(folder)
        self.data.make()
        self.books = RealServer(VALKEY)
        self.said: list[str] = []
        self.workers: list[tuple[Child, str]] = []
        self.supervised: LocalWorkers | None = None
        self.port, self.admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.gateway: subprocess.Popen[bytes] | None = None
        self.log = folder / "gateway.log"

    @property
    def token(self) -> str:
        key = from_secret("default", SECRET.encode())
        return issue(key, issuer="yuzui", audience="yuzui", tenant="t", subject="s", ttl_s=3_600)

    def worker_command(self, port: int) -> list[str]:
        if self.nano:
            return [sys.executable, "-m", "backends.glm", "--port", str(port), "--threads", "1"]
        return [
            sys.executable, "-m", "tests.scripted_worker", "--port", str(port),
            "--chunks", str(CHUNKS), "--first-ms", "150", "--pace-ms", "15", "--slots", "16",
        ]  # fmt: skip

    async def admin(self, http: aiohttp.ClientSession, path: str) -> Any:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        async with http.get(url, headers=headers) as response:
            return await response.json()

    async def until_up(self, count: int) -> None:
        """Until the gateway knows so many workers that are well."""
        async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession() as http:
            while True:
                try:
                    if len(_up(await self.admin(http, "/admin/pool"))) >= count:
                        return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(LOOK_S)

    async def out_of_rotation(self, http: aiohttp.ClientSession, worker: str) -> float:
        """Until the gateway knows that it is not; how long that took, in seconds."""
        began_s = time.monotonic()
        async with asyncio.timeout(PATIENCE_S):
            while worker in _up(await self.admin(http, "/admin/pool")):  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(LOOK_S / 5)
        return time.monotonic() - began_s

    def start_gateway(self) -> None:
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("YUZUI_")},
            "YUZUI_PORT": str(self.port),
            "YUZUI_ADMIN_PORT": str(self.admin_port),
            "YUZUI_ADMIN_TOKEN": ADMIN,
            "YUZUI_AUTH_SECRET": SECRET,
            "YUZUI_REDIS_URL": self.books.url,
            "YUZUI_WORKERS": ",".join(url for _, url in self.workers),
            "YUZUI_DATA_DIR": str(self.data.path),
        }
        with self.log.open("wb") as out:
            self.gateway = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "serve"], env=env, stdout=out, stderr=out
            )


@asynccontextmanager
async def running(folder: Path, *, nano: bool = False) -> AsyncIterator[House]:
    house = House(folder, nano=nano)
    watching = None
    try:
        for number in range(1, 4):
            port = free_port()
            child = Child(
                f"worker-{number}", house.worker_command(port), env=dict(os.environ),
                logs=house.data.logs, say=house.said.append,
            )  # fmt: skip
            house.workers.append((child, f"http://127.0.0.1:{port}"))
            await child.start()
        supervised = house.supervised = LocalWorkers(
            house.workers,
            data=house.data,
            hang_s=HANG_S,
            drain_s=30.0,
            probe=_probe,
            say=house.said.append,
        )
        await _until_well(house)
        watching = spawn(supervised.watch(), name="watch")
        house.start_gateway()
        await house.until_up(3)
        yield house
    finally:
        if watching is not None:
            watching.cancel()
        if house.gateway is not None:
            house.gateway.terminate()
            await asyncio.to_thread(house.gateway.wait, 30)
        await asyncio.gather(*(child.stop(10) for child, _ in house.workers))
        house.books.close()


async def _until_well(house: House) -> None:
    async with asyncio.timeout(4 * PATIENCE_S):
        for _, url in house.workers:
            while await _probe(f"{url}/health") != 200:  # noqa: ASYNC110 - another process has no event
                await asyncio.sleep(0.1)


def _up(pool: Any) -> list[str]:
    return [worker["id"] for worker in pool["workers"] if worker["health"] == "up"]
