"""What a checkpoint's weights are, read from the headers of its safetensors files.

A header is some hundred kilobytes before gigabytes of numbers, so this costs milliseconds and
nothing is loaded. Imports nothing heavy.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from backends.glm.checkpoint.files import LoadError

HEADER_BYTES_MAX = 100 * 1024 * 1024  # the format's own limit
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One tensor of a checkpoint; `dtype` as the file spells it: "F32", "BF16", ..."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)


def quantises(name: str, rank: int) -> bool:
    """Whether int8 weight-only covers this tensor: every matrix that is multiplied by.

    Embeddings are looked up, not multiplied by; convolutions and norms are small.
    """
    return rank == 2 and name.endswith(".weight") and "embed" not in name


def read_tensors(folder: Path) -> list[Tensor]:
    """All tensors of a checkpoint folder.

    Raises: LoadError that names the file that is missing, cut off or not safetensors.
    """
    return [tensor for file in weight_files(folder) for tensor in read_header(file)]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: those the index names, or the only one."""
    index = folder / INDEX
    if not index.is_file():
        return [folder / SINGLE]
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"{index} is not an index of safetensors files.") from error
    files = [folder / str(name) for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise LoadError(
            f"{folder} lacks {missing[0]}, which its index names"
            f" ({len(missing)} of {len(files)} files are missing): copy the whole folder."
        )
    return files


def read_header(file: Path) -> list[Tensor]:
    """The tensors of one safetensors file. Raises: LoadError."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= HEADER_BYTES_MAX:
                raise ValueError("impossible header length")
            header = json.loads(stream.read(length))
        return [
            Tensor(name=name, dtype=str(entry["dtype"]), shape=tuple(map(int, entry["shape"])))
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except OSError as error:
        raise LoadError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadError(f"{file} is not a safetensors file, or it was cut off.") from error
