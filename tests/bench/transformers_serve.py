"""`transformers serve` for a GLM-4.6V on a machine without torchvision: the benchmark's reference.

    python -m tests.bench.transformers_serve CHECKPOINT --port N

The server is transformers' own and unchanged; only the processor it is given reads pictures alone.
"""

from __future__ import annotations

import argparse

from transformers.cli.serve import Serve

from tests.bench.processor import register


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    args = parser.parse_args()
    register()
    Serve(
        force_model=args.checkpoint,
        host="127.0.0.1",
        port=args.port,
        device="cpu",
        dtype=args.dtype,
    )


if __name__ == "__main__":
    main()
