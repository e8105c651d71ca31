"""The worker's command line. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.glm.checkpoint.capacity import Asked
from backends.glm.engine.adapters import parse_named
from backends.glm.nano import CHECKPOINT
from backends.glm.nano import NAME as NANO
from backends.glm.request.limits import IMAGES_PIXELS_MAX, Limits
from backends.limits import CHOICES_MAX, IMAGES_MAX

QUEUE_DEFAULT = 64  # a caller without another place would rather wait than be refused
NAME_DEFAULT = "glm-4.6v"
PORT_MAX = 65_535
# Far beyond what any machine serves; a number above is a slip of the finger, and what is reserved
# by it would be found out only when there is no memory left.
COUNT_MAX, SLOTS_MAX, THREADS_MAX = 1_000_000, 100_000, 1_024
TOKENS_MAX = 1_000_000_000
STALL_S_MAX = 86_400  # a day
# What a supervisor usually grants before it kills; most answers are shorter.
DRAIN_S_DEFAULT, DRAIN_S_MAX = 30, 86_400
TEXT_MAX = 128  # characters of a name; the gateway takes no longer ones

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

SIGTERM and SIGINT drain: what runs is finished (--drain-s at most), then the worker exits with 0;
a second one ends it at once.
Exit code 1: the checkpoint cannot be served, the port is in use, or the engine has failed while it
served (a supervisor should start another worker); 2: an argument is wrong. The last line on stderr
says why.
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
    stall_s: int
    drain_s: int
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
    parser = _parser()
    given = parser.parse_args(argv)
    adapters = [name for name, _ in given.adapter]
    if doubled := sorted({name for name in adapters if adapters.count(name) > 1}):
        parser.error(f"argument --adapter: the name {doubled[0]!r} is given twice")
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
        stall_s=given.stall_s,
        drain_s=given.drain_s,
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
        limits=Limits(
            choices_max=given.max_choices,
            images_max=given.max_images,
            image_pixels_max=given.max_image_pixels,
        ),
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
        type=_path,
        default=CHECKPOINT,
        metavar="PATH",
        help=f"folder of the checkpoint (default: the built-in {NANO})",
    )
    add("--host", type=_text, default="127.0.0.1", help="listened on (default: %(default)s)")
    port = _Whole(0, PORT_MAX)
    add("--port", type=port, default=8100, help="0: any free port (default: %(default)s)")
    add("--port-file", type=_new_file, metavar="F", help="write the port there once listening")
    _add_device(add)
    _add_batch(add)
    add(
        "--name",
        type=_text,
        metavar="ID",
        help="this worker's name in load reports (default: glm-PID)",
    )
    add(
        "--served-name",
        type=_text,
        action="append",
        metavar="MODEL",
        help="model name to answer to; repeat for aliases, the first one is listed "
        f"(default: {NAME_DEFAULT}, or {NANO} for the built-in model)",
    )
    add(
        "--max-model-len",
        type=_Whole(2, TOKENS_MAX),
        metavar="N",
        help="lower the context (prompt + answer tokens) below the checkpoint's own limit",
    )
    _add_limits(add)
    _add_adapters(add)
    return parser


def _add_limits(add: Callable[..., object]) -> None:
    """What one request may ask for."""
    add(
        "--max-choices",
        type=_Whole(1, COUNT_MAX),
        default=CHOICES_MAX,
        metavar="N",
        help="answers to one request (`n`), each in a slot of its own; a request for more is "
        "refused with 400 (default: %(default)s)",
    )
    add(
        "--max-images",
        type=_Whole(0, COUNT_MAX),
        default=IMAGES_MAX,
        metavar="N",
        help="pictures in one request; one with more is refused with 400 (default: %(default)s)",
    )
    add(
        "--max-image-pixels",
        type=_Whole(0, TOKENS_MAX),
        default=IMAGES_PIXELS_MAX,
        metavar="N",
        help="height x width of all pictures of one request together; more is refused with 400 "
        "(default: %(default)s)",
    )


def _add_adapters(add: Callable[..., object]) -> None:
    add(
        "--adapter",
        action="append",
        default=[],
        type=_named,
        metavar="NAME=PATH",
        help="serve a LoRA adapter in peft's format as the model BASE:NAME; repeat for more",
    )
    add(
        "--adapter-dir",
        type=_folder,
        metavar="FOLDER",
        help="allow POST /v1/load_lora_adapter and /v1/unload_lora_adapter for adapters inside "
        "this folder (default: adapters cannot be loaded while the worker runs)",
    )


def _add_device(add: Callable[..., object]) -> None:
    """Where the model runs, and in which numbers."""
    where = "auto, cpu, cuda, cuda:N (default: GPU if there is one)"
    add("--device", type=_device, default="auto", help=where)
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
        type=_Whole(0, THREADS_MAX),
        default=0,
        help="CPU threads; 0: one for a small model, else all (default)",
    )


def _add_batch(add: Callable[..., object]) -> None:
    """How many requests at once, and how much of the device they may have."""
    add(
        "--queue",
        type=_Whole(0, COUNT_MAX),
        default=QUEUE_DEFAULT,
        metavar="N",
        help="requests that may wait; further ones get 503 worker_busy (default: %(default)s)",
    )
    add(
        "--drain-s",
        type=_Whole(0, DRAIN_S_MAX),
        default=DRAIN_S_DEFAULT,
        metavar="S",
        help="how long answers that run may still take when it is told to end; whoever stops it "
        "should wait a little longer (default: %(default)s)",
    )
    add(
        "--stall-s",
        type=_Whole(0, STALL_S_MAX),
        default=0,
        metavar="S",
        help="seconds without any progress while requests run after which the engine is taken to "
        "hang: callers get 503 worker_failed and the worker ends with exit code 1; 0: ten times "
        "what the longest step or picture should take, at least 60 (default)",
    )
    add(
        "--slots",
        type=_Whole(0, SLOTS_MAX),
        default=0,
        metavar="N",
        help="requests that run at once; 0: chosen for the device (default)",
    )
    add(
        "--kv-tokens",
        type=_Whole(0, TOKENS_MAX),
        default=0,
        metavar="N",
        help="size of the cache, in tokens of all requests that run (prompts and output limits "
        "together); 0: a share of the free memory (default)",
    )
    add(
        "--kept-tokens",
        type=_Whole(0, TOKENS_MAX),
        metavar="N",
        help="tokens of prompts that are remembered beside that, so that a prompt with the same "
        "beginning is not read again; 0: remember nothing (default: an eighth of --kv-tokens)",
    )
    add(
        "--step-tokens",
        type=_Whole(0, TOKENS_MAX),
        default=0,
        metavar="N",
        help="prompt tokens read between two tokens of running answers: more shortens the wait for "
        "a first token, less keeps streams smooth; 0: chosen for the device (default)",
    )


class _Whole:
    """A whole number of a range, in plain digits."""

    def __init__(self, low: int, high: int) -> None:
        self._low, self._high = low, high

    def __call__(self, text: str) -> int:
        if re.fullmatch(r"[0-9]{1,12}", text) and self._low <= int(text) <= self._high:
            return int(text)
        wanted = f"a whole number from {self._low} to {self._high}"
        raise argparse.ArgumentTypeError(f"{text[:TEXT_MAX]!r} is not {wanted}")


def _text(text: str) -> str:
    """A name or an address: something is there, and all of it can be printed."""
    if text and len(text) <= TEXT_MAX and text.isprintable() and not text.isspace():
        return text
    wanted = f"1 to {TEXT_MAX} characters that can be printed"
    raise argparse.ArgumentTypeError(f"{text[:TEXT_MAX]!r} is not {wanted}")


def _device(text: str) -> str:
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is unknown; use auto, cpu, cuda or cuda:N")


def _named(text: str) -> tuple[str, Path]:
    try:
        return parse_named(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _path(text: str) -> Path:
    if not text:  # which would be the folder that one stands in
        raise argparse.ArgumentTypeError("no path is given")
    return Path(text)


def _folder(text: str) -> Path:
    if not _path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    return Path(text)


def _new_file(text: str) -> Path:
    path = _path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in a folder that exists")
    return path
