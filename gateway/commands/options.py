"""What the commands have in common: the settings file, and talking to the admin port."""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway.config import Config, ConfigError


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings (default: yuzui.yaml here, if any)"
    )


def exit_code(error: Exception) -> int:
    """2 for a wrong argument, which is a bare ValueError with its name; else 1: it failed."""
    return 2 if type(error) is ValueError else 1


def load_config(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    overrides: dict[str, object] | None = None,
) -> Config:
    """The settings; ends the program with exit code 2 and the reason when they are wrong."""
    try:
        return Config.load(args.config, overrides=overrides)
    except ConfigError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
