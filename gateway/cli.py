"""The command line: a table of commands, each a module that is loaded when it is called.

`yuzui worker` may not import what `yuzui serve` needs and the other way round, and a command that
only asks the admin port should answer at once; so nothing is imported before it is known.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

# command -> (module with main(argv) -> int, one line of help)
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("gateway.commands.up", "run everything on this machine: books, workers, gateway"),
    "demo": ("gateway.commands.demo", "the same with an emulated cloud, and a guided tour"),
    "serve": ("gateway.commands.serve", "run one gateway process"),
    "worker": ("gateway.commands.worker", "run one local GLM worker"),
    "announce": ("gateway.commands.announce", "tell the gateways of an engine that runs here"),
    "ark-emulator": ("backends.ark.emulator.__main__", "run the emulator of Volcano Engine Ark"),
    "workers": ("gateway.commands.workers", "the local pool; restart workers without a failure"),
    "token": ("gateway.commands.token", "issue a token for a caller"),
    "budget": ("gateway.commands.budget", "set, list and remove budgets"),
    "report": ("gateway.commands.report", "what was asked, answered, spent and saved"),
    "row": ("gateway.commands.row", "everything the books know of one request"),
    "tco": ("gateway.commands.tco", "buy or rent: what the traffic cost, and would have cost"),
    "archive": ("gateway.commands.archive", "ledger rows in Parquet: move, look, query, export"),
    "prices": (
        "gateway.commands.prices",
        "price cards: check, compare, show, quote",
    ),
    "reconcile": (
        "gateway.commands.reconcile",
        "a day of the books against its bill",
    ),
    "explain": ("gateway.commands.explain", "where a request would go, without sending it"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `yuzui`. Returns the exit code: 0 well, 1 failed, 2 wrong usage."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        try:
            print(_help(), flush=True)
        except BrokenPipeError:
            return _nobody_reads()
        return 0 if args else 2
    name, rest = args[0], args[1:]
    found = COMMANDS.get(name)
    if found is None:
        print(f"yuzui: there is no command {name!r}\n\n{_help()}", file=sys.stderr)
        return 2
    if wrong := next((arg for arg in rest if not _is_text(arg)), None):
        print(f"yuzui {name}: the argument {wrong[:80]!r} is no text in UTF-8", file=sys.stderr)
        return 2
    sys.argv[0] = f"yuzui {name}"  # what argparse shows as the program's name
    try:
        code = int(importlib.import_module(found[0]).main(rest))
        sys.stdout.flush()  # while what goes wrong with it can still be told
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return _nobody_reads()
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise  # of no file that could be named: a mistake of ours
        if error.filename is None:
            _drop_output()
        print(f"yuzui {name}: {error}", file=sys.stderr)
        return 1


def _is_text(argument: str) -> bool:
    """Bytes that are not UTF-8 arrive as lone surrogates, and fail wherever they are written."""
    return "\0" not in argument and not any("\ud800" <= char <= "\udfff" for char in argument)


def _nobody_reads() -> int:
    """`yuzui report | head` has what it wanted. The exit code is a shell's for SIGPIPE."""
    _drop_output()
    return 141


def _drop_output() -> None:
    """What is still to be written goes nowhere, so that ending does not fail as well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: yuzui COMMAND [OPTIONS]\n\n"
        "Yuzui, the local-first LLM gateway: one OpenAI-compatible address before your own\n"
        f"GLM-4.6V workers and Volcano Engine Ark.\n\n{rows}\n\n"
        "yuzui COMMAND --help says more. Settings come from yuzui.yaml and YUZUI_* variables."
    )


if __name__ == "__main__":
    sys.exit(main())
