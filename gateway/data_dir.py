"""The folder that `yuzui` keeps its state in: keys, tokens, the books, logs, and what runs."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec

from gateway.config import Config, Secret
from gateway.keys import write_private

LOCK_WAIT_S = 0.5  # one that only looks whether something runs here holds the lock for a moment


class Running(msgspec.Struct, kw_only=True):
    """What a running `yuzui up` wrote about itself, for the other commands. redis_url: of the
    embedded server, which has no password; None where the settings name another."""

    pid: int
    url: str
    admin_url: str
    redis_url: str | None = None


class InUse(Exception):
    """Another `yuzui up` works in this folder."""


class FolderUnusable(OSError):
    """The data folder cannot be made, read or written. The text says what to do."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror, str(path))

    def __str__(self) -> str:
        return (
            f"the data folder {self.filename} cannot be used ({self.strerror}): set data_dir "
            "(YUZUI_DATA_DIR) to a folder of your own"
        )


class DataDir:
    """Paths under one data folder. The folder is for its owner only."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @property
    def token_file(self) -> Path:
        return self.path / "token"

    @property
    def jwks_file(self) -> Path:
        return self.path / "jwks.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def make(self) -> None:
        """Raises FolderUnusable."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise FolderUnusable(self.path, error) from error

    def lock(self) -> IO[bytes]:
        """Holds the folder for this process. Raises InUse. Released when the file is closed."""
        file = (self.path / "lock").open("ab")
        end_s = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return file
            except BlockingIOError:
                if time.monotonic() < end_s:
                    time.sleep(0.01)
                    continue
                file.close()
                raise InUse(f"another yuzui is running with the data folder {self.path}") from None

    def admin_token(self) -> str:
        """The admin port's token, made on first use. Raises FolderUnusable."""
        file = self.path / "admin-token"
        try:
            if not file.exists():
                self.make()
                write_private(file, secrets.token_urlsafe(32).encode())
            return file.read_text().strip()
        except FolderUnusable:
            raise
        except OSError as error:
            raise FolderUnusable(self.path, error) from error

    def write_token(self, token: str) -> None:
        """Keeps the demo token where `make up` promises it."""
        write_private(self.token_file, token.encode() + b"\n")

    def with_admin_token(self, config: Config) -> Config:
        """The settings with an admin token, if they name none."""
        if config.admin_token is not None:
            return config
        return msgspec.structs.replace(config, admin_token=Secret(self.admin_token()))

    def write_workers(self, status: bytes) -> None:
        """What the supervised workers do; replaced as a whole, so that nobody reads half of it."""
        draft = self.path / "workers.json.tmp"
        draft.write_bytes(status)
        draft.replace(self.path / "workers.json")

    def workers(self) -> bytes:
        """What `write_workers` wrote last; an empty list when none are supervised here."""
        try:
            return (self.path / "workers.json").read_bytes()
        except OSError:
            return b"[]"

    def ask_restart(self, names: Sequence[str]) -> bool:
        """Asks the running `yuzui up` to restart workers (none named: all). False: none runs. Each
        request is a file of its own, so that two at the same moment are both heard."""
        running = self.running()
        if running is None:
            return False
        draft = self.path / f"restart-{secrets.token_hex(8)}.tmp"
        write_private(draft, msgspec.json.encode(list(names)))
        draft.replace(draft.with_suffix(".json"))
        os.kill(running.pid, signal.SIGUSR1)
        return True

    def asked_restart(self) -> list[str] | None:
        """The names that were asked for since the last call; empty: all; None: nobody asked (one
        signal may stand for several requests, and the next one then finds nothing)."""
        requests = []
        for file in self.path.glob("restart-*.json"):
            with suppress(OSError, msgspec.DecodeError):
                requests.append(msgspec.json.decode(file.read_bytes(), type=list[str]))
            file.unlink(missing_ok=True)
        if not requests:
            return None
        return sorted({name for names in requests for name in names}) if all(requests) else []

    def write_running(self, running: Running) -> None:
        write_private(self.path / "running.json", msgspec.json.encode(running))

    def forget_running(self) -> None:
        """For who holds the lock: what it, or one that was killed, wrote about itself."""
        for name in ("running.json", "workers.json", "restart-*"):
            for file in self.path.glob(name):
                file.unlink(missing_ok=True)

    def running(self) -> Running | None:
        """What runs here now, or None. Its lock is asked: a process number outlives who had it,
        and may be a stranger's by now."""
        try:
            with (self.path / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None  # nobody holds it
        except BlockingIOError:
            pass
        except OSError:
            return None
        try:
            return msgspec.json.decode((self.path / "running.json").read_bytes(), type=Running)
        except (OSError, msgspec.DecodeError):
            return None
