"""LoRA adapters by name: which are loaded, and from where they may come. Nothing here knows torch.

An adapter is served as a model of its own, `BASE:NAME`, beside the base and in one batch with it.
Adapters given at start are the operator's; a call to the running worker names a folder inside
`--adapter-dir` and nothing else, and without that option there is no such call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from backends.glm.checkpoint.files import LoadError
from backends.glm.errors import WorkerError, bad_request

ADAPTERS_MAX = 64  # each has its weights in the device's memory: some 50 MB for a 9B at rank 16
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Adapter(Protocol):
    """A loaded adapter. `key`: differs from that of every other, also of one loaded earlier under
    the same name; `rank`: the largest of its matrices'."""

    @property
    def key(self) -> str: ...
    @property
    def rank(self) -> int: ...


class Adapters:
    """What is loaded. Lives on the event loop; `read` may take long and runs wherever it is put."""

    def __init__(self, read: Callable[[Path], Adapter], folder: Path | None) -> None:
        """`read`: a folder in peft's format, LoadError if it cannot serve; `folder`: where adapters
        may be loaded from while the worker runs, None: nowhere."""
        self.read = read
        self._folder = None if folder is None else folder.resolve()
        self._loaded: dict[str, Adapter] = {}

    @property
    def loaded(self) -> Mapping[str, Adapter]:
        """By name, in the order in which they were loaded."""
        return self._loaded

    def add(self, name: str, adapter: Adapter) -> None:
        """Serve it from now on."""
        self._loaded[name] = adapter

    def remove(self, name: str) -> None:
        """Serve it no longer; requests that run with it are finished. Raises: WorkerError 404."""
        if name not in self._loaded:
            raise WorkerError(
                f"No adapter {name[:80]!r} is loaded here.",
                status=404,
                kind="invalid_request_error",
                code="adapter_not_found",
                param="lora_name",
            )
        del self._loaded[name]

    def check(self, name: str, path: str) -> Path:
        """The folder that a call to the running worker means.

        Raises: WorkerError 400 for a name that cannot be one or is taken, and for a path outside of
        the adapters' folder; 403 without such a folder.
        """
        if self._folder is None:
            raise WorkerError(
                "Adapters cannot be loaded into this worker while it runs; start it with "
                "--adapter-dir FOLDER, or with --adapter NAME=PATH.",
                status=403,
                kind="invalid_request_error",
                code="adapters_not_allowed",
            )
        if not NAME.fullmatch(name):
            raise bad_request(
                "`lora_name` is 1 to 64 letters, digits, dots, dashes and underscores.",
                param="lora_name",
            )
        if name in self._loaded:
            raise bad_request(
                f"An adapter {name!r} is loaded already; unload it first.", param="lora_name"
            )
        if len(self._loaded) >= ADAPTERS_MAX:
            raise bad_request(f"{ADAPTERS_MAX} adapters are loaded; unload one.", param="lora_name")
        # Resolved before it is compared: neither `..` nor a link leads out.
        found = self._folder / path if "\0" not in path else self._folder
        found = found.resolve()
        if found == self._folder or not found.is_relative_to(self._folder):
            raise bad_request(
                "`lora_path` must be a folder inside the worker's --adapter-dir.",
                param="lora_path",
            )
        return found

    def served(self, names: Sequence[str]) -> tuple[str, ...]:
        """All model names, the base's own first."""
        return (*names, *(f"{base}:{name}" for base in names for name in self._loaded))

    def find(self, model: str, names: Sequence[str]) -> Adapter | None:
        """The adapter that a model name asks for, None for the base.

        Raises: WorkerError 404 for one that is not loaded (any more).
        """
        if model in names:
            return None
        base, _, name = model.rpartition(":")
        if base not in names or name not in self._loaded:
            raise WorkerError(
                f"The model `{model[:80]}` does not exist here (any more).",
                status=404,
                kind="invalid_request_error",
                code="model_not_found",
                param="model",
            )
        return self._loaded[name]


def parse_named(text: str) -> tuple[str, Path]:
    """NAME=PATH of the command line. Raises: ValueError."""
    name, equals, path = text.partition("=")
    if not equals or not path or not NAME.fullmatch(name):
        wanted = "NAME of 1 to 64 letters, digits, dots, dashes and underscores"
        raise ValueError(f"{text[:80]!r} is not NAME=PATH, {wanted}")
    return name, Path(path)


def load_named(adapters: Adapters, given: Sequence[tuple[str, Path]]) -> None:
    """Load what the command line names. Raises: LoadError that names the adapter."""
    for name, path in given:
        try:
            adapters.add(name, adapters.read(path))
        except LoadError as error:
            raise LoadError(f"--adapter {name}={path}: {error}") from error
