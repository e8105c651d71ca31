"""Everything on one machine: the books' server, workers, gateways, started and stopped in order.

Started bottom up, stopped top down: the gateways drain first, while their workers still answer and
the books are still open.
"""

from __future__ import annotations

import asyncio
import errno
import http.client
import math
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO
from urllib.parse import urlsplit

import msgspec

from gateway.archive.extra import installed
from gateway.config import Config
from gateway.data_dir import DataDir, Running
from gateway.keys import issue, make_private_key, public_jwk
from gateway.machine.workers import (
    READY_PATIENCE_S,
    WORKER_STOP_S,
    LocalWorkers,
    count_gpus,
    planned,
)
from gateway.processes import Child, ChildState, tail
from gateway.redis.embedded import EmbeddedServer
from gateway.tasks import spawn

START_PATIENCE_S = 120.0  # for what loads no checkpoint
STILL_EVERY_S = 30.0
POLL_S = 0.1
LOST_EVERY_S = 0.5
FAILURES_MAX = 2  # a part that fails twice at its start will not get better
TOKEN_TTL_S = 30 * 86_400
DEMO_TENANT = "demo"
ARCHIVER_STOP_S = 10.0  # a batch is written within a second or two


class StartFailed(Exception):
    """A part did not come up. The text says which, and where its log is."""


class Stack:
    """What `yuzui up` runs. environ: settings for the children come from here and from `config`."""

    def __init__(
        self,
        config: Config,
        *,
        environ: Mapping[str, str],
        say: Callable[[str], None],
        emulate_cloud: bool = False,
    ) -> None:
        self.data = DataDir(config.data_dir)
        self.config = self.data.with_admin_token(config)
        self._environ = {**environ, "PYTHONUNBUFFERED": "1"}
        self._say = say
        self._lock: IO[bytes] | None = None
        self._ports: list[socket.socket] = []  # of our children, kept for them
        self._books: EmbeddedServer | None = None
        self._emulate_cloud = emulate_cloud
        self._emulator: Child | None = None
        self.emulator_url = ""
        self.workers: list[Child] = []
        self._supervised: LocalWorkers | None = None
        self._watching: asyncio.Task[None] | None = None
        self._rolls: set[asyncio.Task[bool]] = set()
        self.gateways: list[Child] = []
        self._archiver: Child | None = None
        self.token: str | None = None

    async def start(self) -> None:
        """Returns when requests can be answered. Raises StartFailed, InUse, embedded's errors."""
        self.data.make()
        self._lock = self.data.lock()
        self.data.forget_running()  # of one that was killed
        self._own_key()
        await self._start_books()
        if self._emulate_cloud:
            await self._start_emulator()
        await self._start_workers()
        await self._start_gateways()
        await self._start_archiver()
        running = Running(
            pid=os.getpid(),
            url=self.url,
            admin_url=self.admin_url,
            redis_url=self._books.url if self._books is not None else None,
        )
        self.data.write_running(running)

    @property
    def url(self) -> str:
        """Where clients reach it from this machine."""
        return f"http://{_reachable(self.config.host)}:{self.config.port}"

    @property
    def admin_url(self) -> str:
        return f"http://{_reachable(self.config.admin_host)}:{self.config.admin_port}"

    async def lost(self) -> str:
        """Returns, with the reason, when nothing can be answered any more and nobody will change
        that: the books or every gateway were given up. Else it waits."""
        while True:
            await asyncio.sleep(LOST_EVERY_S)
            if self._books is not None and self._books.given_up:
                return "the embedded Valkey does not start any more, so there are no books"
            if all(child.state is ChildState.GIVEN_UP for child in self.gateways):
                return "no gateway starts any more, so nobody listens"

    async def stop(self) -> None:
        """Drains and stops what was started, top down; the books are saved."""
        patience_s = self.config.limits.drain_s + 5.0
        if self._archiver is not None:
            await self._archiver.stop(ARCHIVER_STOP_S)
        for task in (self._watching, *self._rolls):
            if task is not None:
                task.cancel()  # a worker that drains is not one that hangs
        await asyncio.gather(*(child.stop(patience_s) for child in self.gateways))
        await asyncio.gather(*(child.stop(WORKER_STOP_S) for child in self.workers))
        if self._emulator is not None:
            await self._emulator.stop(patience_s)
        if self._books is not None:
            await self._books.stop()
        for kept in self._ports:
            kept.close()
        if self._lock is not None:  # else it is another's folder
            self.data.forget_running()
            self._lock.close()

    def hasten(self) -> None:
        """Somebody does not want to wait for `stop`: what runs is cut off, the books are saved."""
        for child in (*self.gateways, *self.workers, self._emulator, self._archiver):
            if child is not None:
                child.hasten()

    def restart_workers(self) -> None:
        """Somebody asks for it (SIGUSR1): one after the other, in the background."""
        names = self.data.asked_restart()
        if self._supervised is None:
            self._say("no workers are run here, so none are restarted")
        elif names is not None:
            task = spawn(self._supervised.roll(names), name="restart the workers")
            self._rolls.add(task)
            task.add_done_callback(self._rolls.discard)

    # ------------------------------------------------------------ the parts

    def _own_key(self) -> None:
        """Without a configured key: a private one for this installation, and a demo token."""
        if self.config.auth.configured:
            return
        key = make_private_key(self.data.path)
        keys = {"keys": [public_jwk(key.verify_key())]}
        self.data.jwks_file.write_bytes(msgspec.json.encode(keys))
        auth = msgspec.structs.replace(self.config.auth, jwks_file=self.data.jwks_file)
        self.config = msgspec.structs.replace(self.config, auth=auth)
        self._environ["YUZUI_JWKS_FILE"] = str(self.data.jwks_file)
        self.token = issue(
            key,
            tenant=DEMO_TENANT,
            subject=DEMO_TENANT,
            ttl_s=TOKEN_TTL_S,
            issuer=auth.issuer,
            audience=auth.audience,
        )
        self.data.write_token(self.token)

    async def _start_books(self) -> None:
        if self.config.redis_url is None:
            self._books = await EmbeddedServer.start(
                self.data.path, strict=self.config.strict, say=self._say
            )
            self.config = msgspec.structs.replace(self.config, redis_url=self._books.url)
        self._environ["YUZUI_REDIS_URL"] = self.config.redis_url or ""

    async def _start_emulator(self) -> None:
        port = self._keep_port()
        command = [sys.executable, "-m", "backends.ark.emulator", "--port", str(port)]
        self._emulator = self._child("ark-emulator", command)
        self.emulator_url = f"http://127.0.0.1:{port}"
        await self._emulator.start()
        await self._wait(self._emulator, f"{self.emulator_url}/emulator/stats")
        ark = msgspec.structs.replace(self.config.ark, base_url=f"{self.emulator_url}/api/v3")
        self.config = msgspec.structs.replace(self.config, ark=ark)
        key = ark.api_key.reveal() if ark.api_key is not None else ""
        self._environ |= {"YUZUI_ARK_BASE_URL": ark.base_url, "ARK_API_KEY": key}

    async def _start_workers(self) -> None:
        commands = planned(
            self.config.starts_workers,
            gpus=count_gpus(self._environ),
            cores=len(os.sched_getaffinity(0)),
            cores_per_worker=self.config.pool.cores_per_worker,
        )
        urls = []
        for wanted in commands:
            port = self._keep_port()
            command = [sys.executable, "-m", "backends.glm", "--port", str(port)]
            command += ["--name", wanted.name, *wanted.options]
            command += ["--drain-s", str(math.ceil(self.config.limits.local.total_s))]
            if self.config.model is not None:
                command += ["--model", str(self.config.model.absolute())]
            command += shlex.split(self.config.pool.worker_options)
            name = wanted.name.replace("w", "worker-")
            self.workers.append(self._child(name, command, probed=True))
            urls.append(f"http://127.0.0.1:{port}")
        await asyncio.gather(*(child.start() for child in self.workers))
        both = zip(self.workers, urls, strict=True)
        await asyncio.gather(
            *(self._wait(child, f"{url}/health", READY_PATIENCE_S) for child, url in both)
        )
        workers = (*self.config.workers, *urls)
        self.config = msgspec.structs.replace(self.config, workers=workers)
        self._environ["YUZUI_WORKERS"] = ",".join(workers)
        if self.workers:
            self._supervised = LocalWorkers(
                list(zip(self.workers, urls, strict=True)),
                data=self.data,
                hang_s=self.config.pool.hang_s,
                drain_s=self.config.limits.local.total_s,
                probe=_probe,
                say=self._say,
            )
            self._supervised.write_status()
            self._watching = spawn(self._supervised.watch(), name="watch the workers")

    async def _start_gateways(self) -> None:
        ports = {"port": self.config.port, "admin_port": self.config.admin_port}
        for name, port in ports.items():
            if port == 0:
                ports[name] = self._keep_port()
        self.config = msgspec.structs.replace(self.config, **ports)
        self._environ |= {
            "YUZUI_PORT": str(self.config.port),
            "YUZUI_ADMIN_PORT": str(self.config.admin_port),
            "YUZUI_DATA_DIR": str(self.data.path),
        }
        command = [sys.executable, "-m", "gateway.cli", "serve"]
        for number in range(1, self.config.gateways + 1):
            self.gateways.append(self._child(f"gateway-{number}", command))
        for host, port in (
            (self.config.host, self.config.port),
            (self.config.admin_host, self.config.admin_port),
        ):
            _check_free(host, port)
        await asyncio.gather(*(child.start() for child in self.gateways))
        await self._wait(self.gateways[0], f"{self.url}/readyz")

    async def _start_archiver(self) -> None:
        """A process of its own: what it needs weighs more than a gateway, and writing files
        would make requests wait."""
        if self.config.archive.enabled and installed():
            command = [sys.executable, "-m", "gateway.cli", "archive", "run"]
            self._archiver = self._child("archiver", command)
            await self._archiver.start()

    def _child(self, name: str, command: list[str], *, probed: bool = False) -> Child:
        env, logs = self._environ, self.data.logs
        return Child(name, command, env=env, logs=logs, say=self._say, probed=probed)

    def _keep_port(self) -> int:
        """A port for a child, for as long as all this runs. It comes from the range of outgoing
        connections; without a socket of ours that is bound to it (and does not listen, so that a
        child may) one of those could take it while the child is started again."""
        kept = socket.socket()
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        self._ports.append(kept)
        return int(kept.getsockname()[1])

    async def _wait(self, child: Child, url: str, patience_s: float = START_PATIENCE_S) -> None:
        """Returns when the URL answers 200. Raises StartFailed."""
        begun_s = said_s = time.monotonic()
        while (now_s := time.monotonic()) - begun_s < patience_s:
            if await asyncio.to_thread(answers, url):
                child.well()
                return
            if child.failures >= FAILURES_MAX:
                break
            if now_s - said_s >= STILL_EVERY_S:
                said_s = now_s
                self._say(f"{child.name} is still loading, {now_s - begun_s:.0f} s by now ...")
            await asyncio.sleep(POLL_S)
        text = f"{child.name} did not come up{f' ({child.why})' if child.why else ''}"
        text += f"; the end of {child.log_file}:"
        raise StartFailed(f"{text}\n{tail(child.log_file)}")


async def _probe(url: str) -> int | None:
    return await asyncio.to_thread(status_of, url)


def answers(url: str) -> bool:
    """Whether the URL answers 200. Only ever asked of our own children on loopback."""
    return status_of(url) == 200


def status_of(url: str) -> int | None:
    """The status that it answers with; None: it does not answer within two seconds."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=2.0)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


# The port is taken, or below 1024 and not for this user; anything else is wrong with the host.
_OF_THE_PORT = (errno.EADDRINUSE, errno.EACCES)


def _check_free(host: str, port: int) -> None:
    """Raises StartFailed when the port is taken: better now than in a child's log."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:  # UnicodeError: `a..b` is no name
            why = error.strerror if isinstance(error, OSError) else "no such name"
            text = f"port {port} of {host} cannot be used: {why}"
            remedy = "set YUZUI_PORT and YUZUI_ADMIN_PORT to free ones"
            if not isinstance(error, OSError) or error.errno not in _OF_THE_PORT:
                remedy = "set YUZUI_HOST and YUZUI_ADMIN_HOST to addresses of this machine"
            raise StartFailed(f"{text}; {remedy}") from None


def _reachable(host: str) -> str:
    """A host to connect to, for one to listen on."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
