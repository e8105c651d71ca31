"""Is this folder a checkpoint? Asked before torch is imported: a mistyped path fails at once."""

from __future__ import annotations

from pathlib import Path

# One of each group must exist. Only safetensors: a pickled checkpoint runs code when it is opened.
_FILES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("config.json",), "copy the whole checkpoint folder"),
    (("tokenizer.json",), "save the tokenizer with transformers' save_pretrained"),
    (("preprocessor_config.json", "processor_config.json"), "copy it from the original checkpoint"),
    (("model.safetensors", "model.safetensors.index.json"), "convert the weights to safetensors"),
)


class LoadError(Exception):
    """The checkpoint or the device cannot serve; the message says why and what helps."""


def check_files(path: Path) -> None:
    """Raises: LoadError that names the missing file and what helps."""
    if not path.is_dir():
        raise LoadError(f"{path} is not a folder. --model takes the folder of a checkpoint.")
    for names, remedy in _FILES:
        if not any((path / name).is_file() for name in names):
            raise LoadError(f"{path} has no {' or '.join(names)}: {remedy}.")
