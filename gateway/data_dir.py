"""The folder that `yuzui` keeps its state in: keys, tokens, the books, logs, and what runs."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from gateway.config import Config, Secret
from gateway.keys import write_private


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
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise InUse(f"another yuzui is running with the data folder {self.path}") from None
        return file

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
        """Asks the running `yuzui up` to restart workers (none named: all). False: none runs."""
        running = self.running()
        if running is None:
            return False
        write_private(self.path / "restart.json", msgspec.json.encode(list(names)))
        os.kill(running.pid, signal.SIGUSR1)
        return True

    def asked_restart(self) -> list[str]:
        """The names that were asked for; empty: all."""
        file = self.path / "restart.json"
        try:
            names = msgspec.json.decode(file.read_bytes(), type=list[str])
        except (OSError, msgspec.DecodeError):
            names = []
        file.unlink(missing_ok=True)
        return names

    def write_running(self, running: Running) -> None:
        write_private(self.path / "running.json", msgspec.json.encode(running))

    def forget_running(self) -> None:
        (self.path / "running.json").unlink(missing_ok=True)
        (self.path / "workers.json").unlink(missing_ok=True)

    def running(self) -> Running | None:
        """What runs here now, or None."""
        try:
            running = msgspec.json.decode((self.path / "running.json").read_bytes(), type=Running)
            os.kill(running.pid, 0)
        except (OSError, msgspec.DecodeError):
            return None
        return running
