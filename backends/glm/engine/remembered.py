"""Adapters that were loaded by a call, written down for the same worker's next start.

A worker that is restarted (by its supervisor, or one after the other by `yuzui workers restart`)
shall serve what it served. What it had loaded stands in `.loaded-WORKER.json` in the adapters'
folder: names and paths inside of it, each worker its own file, replaced as a whole. A path that is
read back is checked as a caller's is, so the file opens no way that a call does not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from backends.glm.checkpoint.files import LoadError
from backends.glm.engine.adapters import Adapters
from backends.glm.errors import WorkerError

_DECODER = msgspec.json.Decoder(dict[str, str])
# Adapters have names of at most 64 characters, and paths below a folder.
FILE_BYTES_MAX = 1_000_000


class Remembered:
    """The file of one worker. Used by one task or thread at a time."""

    def __init__(self, folder: Path, worker: str) -> None:
        """`worker`: a name that the next start has, too."""
        self.file = folder / f".loaded-{re.sub(r'[^A-Za-z0-9._-]', '_', worker)}.json"
        self._paths: dict[str, str] = {}

    def read(self) -> dict[str, str]:
        """Paths by name, as written last; nothing where there is no file, or none of ours."""
        try:
            if self.file.stat().st_size > FILE_BYTES_MAX:
                return {}
            self._paths = _DECODER.decode(self.file.read_bytes())
        except (OSError, ValueError, msgspec.DecodeError):
            return {}
        return dict(self._paths)

    def add(self, name: str, path: str) -> None:
        """Load it at the next start. Raises: OSError."""
        self._paths[name] = path
        self._write()

    def drop(self, name: str) -> None:
        """Do not. Raises: OSError."""
        if self._paths.pop(name, None) is not None:
            self._write()

    def _write(self) -> None:
        """All of it or nothing: whoever is killed in the middle leaves the file as it was."""
        new = self.file.with_suffix(".new")
        with new.open("wb") as stream:
            stream.write(msgspec.json.encode(self._paths))
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(self.file)


def load_remembered(
    adapters: Adapters, remembered: Remembered, told: Callable[[str, str], None]
) -> None:
    """Loads what was loaded before. `told`: hears name and reason of one that cannot be; the worker
    serves without it, which is better than not at all."""
    for name, path in remembered.read().items():
        if name in adapters.loaded:
            continue  # the command line has it, perhaps from somewhere else
        try:
            adapters.add(name, adapters.read(adapters.check(name, path)))
        except (LoadError, WorkerError) as error:
            told(name, str(error))
