"""`python -m backends.glm`: the GLM worker."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from backends.glm.options import parse_options
from backends.glm.priority import give_way


def main(argv: Sequence[str]) -> int:
    """Run a worker with these arguments (without the program's name); its exit code.

    Raises: SystemExit for --help and for mistakes in the arguments.
    """
    options = parse_options(argv)
    give_way()  # until the model is there
    # After parsing, so that --help and a mistyped option answer without loading the server.
    from backends.glm.worker import run

    return run(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
