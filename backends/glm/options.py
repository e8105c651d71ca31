"""The worker's command line. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.glm.engine.adapters import parse_named
from backends.glm.engine.capacity import Asked
from backends.glm.nano import CHECKPOINT
from backends.glm.nano import NAME as NANO
from backends.glm.request.limits import CHOICES_MAX, IMAGES_MAX, Limits

QUEUE_DEFAULT = 64  # a caller without another place would rather wait than be refused
NAME_DEFAULT = "glm-4.6v"

_EPILOG = """\
examples:
  python -m backends.glm
      serve the built-in glm-4.6v-nano: a real GLM-4.6V, very small, for trying things out
  python -m backends.glm --model ./GLM-4.6V-Flash --port 8100
      serve a checkpoint; a GPU is used if there is one
  python -m backends.glm --model ./GLM-4.6V-Flash --device cuda:1 --dtype bfloat16 --name gpu1
      a second worker on the second GPU, under its own name
  python -m backends.glm --model ./GLM-4.6V-Flash --quantize int8
      the same in about 13 GB instead of 23; what does not fit is refused before loading
  python -m backends.glm --model ./checkpoint --port 0 --port-file port.txt
      let the system choose a port; it is printed as {"listening": ...} and written to the file

then:
  curl -s http://127.0.0.1:8100/health
  curl -s http://127.0.0.1:8100/v1/chat/completions -H 'content-type: application/json' \\
       -d '{"model": "glm-4.6v", "messages": [{"role": "user", "content": "Hello"}]}'

SIGTERM and SIGINT drain: what runs is finished (30 s at most), then the worker exits with 0.
Exit code 1: the checkpoint cannot be served; the last line on stderr says why.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """A parsed command line. `names`: model names answered to, the listed one first."""

    model: Path
    host: str
    port: int
    port_file: Path | None
    device: str
    dtype: str
    quantize: str
    threads: int
    queue: int
    capacity: Asked
    worker: str
    names: tuple[str, ...]
    max_model_len: int | None
    limits: Limits
    adapters: tuple[tuple[str, Path], ...]
    adapter_dir: Path | None


def parse_options(argv: Sequence[str]) -> Options:
    """Parse the arguments after the program's name.

    Raises: SystemExit, as argparse does, with 0 for --help and 2 for a mistake.
    """
    given = _parser().parse_args(argv)
    worker = given.name or f"glm-{os.getpid()}"
    built_in = [NANO] if given.model == CHECKPOINT else []
    served = given.served_name or [*built_in, NAME_DEFAULT]
    # A worker is also reachable under its own name and its folder's, so that either may be asked.
    names = dict.fromkeys([*served, worker, given.model.resolve().name])
    return Options(
        model=given.model,
        host=given.host,
        port=given.port,
        port_file=given.port_file,
        device=given.device,
        dtype=given.dtype,
        quantize=given.quantize,
        threads=given.threads,
        queue=given.queue,
        capacity=Asked(
            slots=given.slots,
            kv_tokens=given.kv_tokens,
            step_tokens=given.step_tokens,
            kept_tokens=given.kept_tokens,
        ),
        worker=worker,
        names=tuple(names),
        max_model_len=given.max_model_len,
        adapters=tuple(given.adapter),
        adapter_dir=given.adapter_dir,
        limits=Limits(choices_max=given.max_choices, images_max=given.max_images),
    )


def _parser() -> argparse.ArgumentParser:
    called = sys.argv[0]  # `yuzui worker` sets it; with -m it is the path of a file
    parser = argparse.ArgumentParser(
        prog=called if called.startswith("yuzui ") else "python -m backends.glm",
        description="Serve a GLM-4.6V-like checkpoint over HTTP in the OpenAI chat dialect.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--model",
        type=Path,
        default=CHECKPOINT,
        metavar="PATH",
        help=f"folder of the checkpoint (default: the built-in {NANO})",
    )
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=_at_least(0), default=8100, help="0: any free port (default: %(default)s)")
    add("--port-file", type=Path, metavar="F", help="write the port to this file once listening")
    _add_device(add)
    _add_batch(add)
    add("--name", metavar="ID", help="this worker's name in load reports (default: glm-PID)")
    add(
        "--served-name",
        action="append",
        metavar="MODEL",
        help="model name to answer to; repeat for aliases, the first one is listed "
        f"(default: {NAME_DEFAULT}, or {NANO} for the built-in model)",
    )
    add(
        "--max-model-len",
        type=_at_least(2),
        metavar="N",
        help="lower the context (prompt + answer tokens) below the checkpoint's own limit",
    )
    add(
        "--max-choices",
        type=_at_least(1),
        default=CHOICES_MAX,
        metavar="N",
        help="answers to one request (`n`), each in a slot of its own; a request for more is "
        "refused with 400 (default: %(default)s)",
    )
    add(
        "--max-images",
        type=_at_least(0),
        default=IMAGES_MAX,
        metavar="N",
        help="pictures in one request; one with more is refused with 400 (default: %(default)s)",
    )
    _add_adapters(add)
    return parser


def _add_adapters(add: Callable[..., object]) -> None:
    add(
        "--adapter",
        action="append",
        default=[],
        type=parse_named,
        metavar="NAME=PATH",
        help="serve a LoRA adapter in peft's format as the model BASE:NAME; repeat for more",
    )
    add(
        "--adapter-dir",
        type=Path,
        metavar="FOLDER",
        help="allow POST /v1/load_lora_adapter and /v1/unload_lora_adapter for adapters inside "
        "this folder (default: adapters cannot be loaded while the worker runs)",
    )


def _add_device(add: Callable[..., object]) -> None:
    """Where the model runs, and in which numbers."""
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: GPU if there is one)")
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="auto: the checkpoint's own on a GPU; on a CPU float32, or bfloat16 if the checkpoint "
        "is and the CPU multiplies in it",
    )
    add(
        "--quantize",
        default="none",
        choices=("none", "int8"),
        help="int8: matrices in one byte a weight, half of bfloat16; answers differ a little "
        "(default: %(default)s)",
    )
    add(
        "--threads",
        type=_at_least(0),
        default=0,
        help="CPU threads; 0: one for a small model, else all (default)",
    )


def _add_batch(add: Callable[..., object]) -> None:
    """How many requests at once, and how much of the device they may have."""
    add(
        "--queue",
        type=_at_least(0),
        default=QUEUE_DEFAULT,
        metavar="N",
        help="requests that may wait; further ones get 503 worker_busy (default: %(default)s)",
    )
    add(
        "--slots",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="requests that run at once; 0: chosen for the device (default)",
    )
    add(
        "--kv-tokens",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="size of the cache, in tokens of all requests that run (prompts and output limits "
        "together); 0: a share of the free memory (default)",
    )
    add(
        "--kept-tokens",
        type=_at_least(0),
        metavar="N",
        help="tokens of prompts that are remembered beside that, so that a prompt with the same "
        "beginning is not read again; 0: remember nothing (default: an eighth of --kv-tokens)",
    )
    add(
        "--step-tokens",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="prompt tokens read between two tokens of running answers: more shortens the wait for "
        "a first token, less keeps streams smooth; 0: chosen for the device (default)",
    )


class _at_least:
    def __init__(self, low: int) -> None:
        self._low = low

    def __call__(self, text: str) -> int:
        value = int(text)
        if value < self._low:
            raise argparse.ArgumentTypeError(f"must be at least {self._low}")
        return value
