"""Commands run in this process, against an admin port that answers from a list."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.admin.client import AdminError


class Admin:
    """Stands in for AdminClient. `answer` is what the admin port would encode as JSON; `more`:
    what it answers on other paths, which are not noted in `asked`."""

    def __init__(
        self,
        answer: object = None,
        error: str | None = None,
        more: Mapping[str, object] | None = None,
    ) -> None:
        self._answer = answer
        self._more = more or {}
        self._error = error
        self.asked: list[tuple[str, str, Any]] = []
        self.actor = ""

    def __call__(self, config: object) -> Admin:
        return self

    def call(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: object = None
    ) -> Any:
        if self._error is not None:
            raise AdminError(self._error)
        if path in self._more:
            return msgspec.json.decode(msgspec.json.encode(self._more[path]))
        self.asked.append((method, path, query if body is None else body))
        return msgspec.json.decode(msgspec.json.encode(self._answer))


def alone(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """No settings but the shipped ones, and an empty folder to work in."""
    for name in list(os.environ):
        if name.startswith(("YUZUI_", "ARK_")):
            patch.delenv(name)
    patch.chdir(folder)
