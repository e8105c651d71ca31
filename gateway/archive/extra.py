"""Loads what needs pyarrow and DuckDB, or says how to install it."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

HOW = "install the extra: pip install 'yuzui[archive]' (pyarrow, duckdb, fsspec, resvg-py)"


class ExtraMissing(Exception):
    """A package of the extra is not installed. The text says which and how to install it."""


def installed() -> bool:
    """Whether an archive could be worked with here; imports nothing."""
    return all(importlib.util.find_spec(name) for name in ("pyarrow", "duckdb", "fsspec"))


def load(module: str) -> ModuleType:
    """A module that needs the extra. Raises ExtraMissing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("gateway", "policies", "backends"):
            raise
        raise ExtraMissing(f"this needs {error.name}, which is not installed; {HOW}") from None
