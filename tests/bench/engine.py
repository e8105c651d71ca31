"""How fast the worker is: `make bench-engine`.

The same requests, each with its own 224x224 picture, about 105 prompt tokens and exactly 64 output
tokens, in bursts of 1, 8 and 32, go to three sides in one run: our worker over HTTP, `transformers
serve` over HTTP on the same checkpoint, and plain `generate()` on a left-padded batch without HTTP.
All three processes are up and warm; while one is measured the other two are stopped (SIGSTOP), so
the sides take turns within minutes and not half an hour apart: the speed of a shared machine
drifts, the ratio to it much less.

Number type: one for all sides, each told it. --dtype auto takes the checkpoint's own, float32 for
nano and bfloat16 for mid (random weights, saved as GLM's own checkpoints are); on a CPU without
bfloat16 arithmetic (neither avx512_bf16 nor amx_bf16 in /proc/cpuinfo) mid runs in float32 as well.

Threads: --threads is how many cores each side may use (OMP_NUM_THREADS of its process). How many
of them it uses is its own choice, as in use: the references all, our worker fewer where that is
faster.

Answers: in float32 the greedy answers of our worker must be those of the references, white space
at the beginning aside, which GLM's format has as layout before an answer and our worker drops
(*_equal). One that is another is checked token by token: plain generate() is led along it, and no
token may be behind the likeliest one by more than 0.001, what another order of sums can make
(*_equal_or_tied). If one is, the exit code is 1. In bfloat16 nothing is said about mid's answers:
with 8 bits of mantissa the two likeliest tokens of a model with random weights are often equal,
and each side's order of sums picks another one of them.

Prints a table and, as its last line, one JSON object; its ratios are tokens a second over
`transformers serve` at the same burst, `single_ratio` over `generate()` for one request.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backends.glm.nano.draw import draw_scene
from gateway.commands.tables import table
from tests.bench import checkpoints
from tests.bench.pictures import data_url
from tests.bench.sides import Generate, Side, Streamed, percentile

FOLDER = Path("build/bench")
BURSTS = (1, 8, 32)
SINGLES = 3  # requests in a row that make one measurement of a burst of 1
SIDE_PX = 224
# What is asked, besides the picture: enough words for about 105 prompt tokens. The shipped model
# scales a picture of this size to 16 tokens, the other one has GLM's own 64.
WORDS = {"nano": 44, "mid": 16}
SUBJECTS = ("circle", "square", "triangle", "star", "heart", "diamond")
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
# The likeliest two tokens this close may change places with the size of a batch: sums of float32
# are rounded in another order. generate() alone and on a batch differ by up to 8e-5 (mid) and 7e-6
# (nano) in logits that spread over 1.7 and 4.
TIE = 1e-3
ASKED = ("how many", "what colour", "where", "is there a", "which", "describe the")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured. `dtype`: "auto" or that of all; `worker`: arguments of ours."""

    models: tuple[str, ...]
    sides: tuple[str, ...]
    bursts: tuple[int, ...]
    tokens: int
    rounds: int
    threads: int
    dtype: str
    worker: tuple[str, ...]


@dataclass
class Figures:
    """One side at one burst, over the rounds. `tied`: of the answers that were others than the
    reference's, how many are as good; None: not asked."""

    per_s: list[float] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    tied: int | None = None

    @property
    def tokens_per_s(self) -> float:
        return statistics.median(self.per_s)

    def others(self, reference: Figures) -> list[int]:
        """Which answers are not those of a reference."""
        pairs = zip(self.texts, reference.texts, strict=True)
        return [n for n, (a, b) in enumerate(pairs) if a.lstrip() != b.lstrip()]


Measured = dict[tuple[str, str, int], Figures]


def main() -> int:
    plan = _plan()
    measured: Measured = {}
    dtypes: dict[str, str] = {}
    for model in plan.models:
        _say(f"{model}: making or finding the checkpoint")
        path = getattr(checkpoints, model)(FOLDER)
        dtypes[model] = number_type(plan.dtype, checkpoints.number_type(path), cpu_flags())
        _say(f"{model}: {checkpoints.parameters(path) / 1e6:.0f} M parameters, {dtypes[model]}")
        _measure(replace(plan, dtype=dtypes[model]), model, path, measured)
        if dtypes[model] == "float32" and "--quantize" not in plan.worker:
            _judge(model, path, plan.threads, measured)
    print(_table(measured, dtypes))
    figures = ratios(measured, dtypes)
    print(json.dumps({**figures, **{f"{model}_dtype": name for model, name in dtypes.items()}}))
    wrong = [key for key, share in figures.items() if key.endswith("_or_tied") and share < 1]
    return 1 if wrong else 0


def _plan() -> Plan:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="16 output tokens instead of 64")
    add("--only", choices=("nano", "mid"), help="one of the two checkpoints")
    add("--sides", default="ours,serve,generate", help="which to run (default: %(default)s)")
    add("--bursts", default=",".join(map(str, BURSTS)), help="(default: %(default)s)")
    add("--tokens", type=int, default=64, help="output tokens (default: %(default)s)")
    add("--rounds", type=int, default=1, help="the middle one counts (default: %(default)s)")
    add("--threads", type=int, default=os.cpu_count() or 1,
        help="cores that each side may use (default: all)")  # fmt: skip
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
        help="of all sides (default: the checkpoint's own where this CPU has it)")  # fmt: skip
    add("--worker-args", default="", metavar="TEXT", help='e.g. "--quantize int8"')
    given = parser.parse_args()
    return Plan(
        models=(given.only,) if given.only else ("nano", "mid"),
        sides=tuple(given.sides.split(",")),
        bursts=tuple(int(n) for n in given.bursts.split(",")),
        tokens=16 if given.quick else given.tokens,
        rounds=given.rounds,
        threads=given.threads,
        dtype=given.dtype,
        worker=tuple(shlex.split(given.worker_args)),
    )


def _measure(plan: Plan, model: str, path: Path, measured: Measured) -> None:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides: dict[str, Side] = {}
        for name in plan.sides:
            began = time.monotonic()
            sides[name] = stack.enter_context(_started(name, plan, path, Path(folder)))
            sides[name].ask(bodies_of(model, f"warm up {name}", 2, plan.tokens))
            sides[name].pause()
            _say(f"{model}: {name} is up and warm after {time.monotonic() - began:.0f} s")
        for burst in plan.bursts:
            for turn in range(plan.rounds):
                for name, side in sides.items():
                    figures = measured.setdefault((model, name, burst), Figures())
                    side.resume()
                    _once(side, model, burst, turn, plan.tokens, figures)
                    side.pause()
                    _say(f"{model}: {name}, burst of {burst}: {figures.per_s[-1]:.1f} tokens/s")


def _once(side: Side, model: str, burst: int, turn: int, tokens: int, figures: Figures) -> None:
    """One measurement of one side: a burst, or some single requests in a row."""
    made, spent_s = 0, 0.0
    for single in range(SINGLES if burst == 1 else 1):
        bodies = bodies_of(model, f"{burst} {turn} {single}", burst, tokens)
        answers, seconds = side.ask(bodies)
        made += sum(answer.completion_tokens for answer in answers)
        spent_s += seconds
        figures.asked += bodies
        figures.texts += [answer.text for answer in answers]
        figures.prompt_tokens = max(answer.prompt_tokens for answer in answers)
        if side.streams:
            figures.ttft_s += [answer.ttft_s for answer in answers]
            figures.tpot_s += [answer.tpot_s for answer in answers]
    wanted = (SINGLES if burst == 1 else burst) * tokens
    if made != wanted:
        raise RuntimeError(f"{side.name} made {made} tokens and not {wanted}")
    figures.per_s.append(made / spent_s)


def _judge(model: str, path: Path, threads: int, measured: Measured) -> None:
    """Count ties among the answers of ours that are not the reference's."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        judge: Generate | None = None
        for (name, side, burst), ours in measured.items():
            reference = _reference(measured, model, burst)
            if (name, side) != (model, "ours") or reference is None:
                continue
            ours.tied = 0
            for number in ours.others(reference):
                if judge is None:
                    log = Path(folder) / "judge.log"
                    judge = Generate.start(path, dtype="float32", threads=threads, log=log)
                    stack.callback(judge.stop)
                body = ours.asked[number]
                behind = judge.behind(body, ours.texts[number])
                tied = len(behind) == body["max_tokens"] and max(behind) < TIE
                ours.tied += tied
                _say(f"{model}: burst of {burst}, answer {number} is {_verdict(behind, tied)}")


def _verdict(behind: list[float], tied: bool) -> str:
    if tied:
        return f"another one by a tie of {max(behind):.1e}"
    at = next((n for n, far in enumerate(behind) if far >= TIE), len(behind))
    far = f"{behind[at]:.3g} behind" if at < len(behind) else "not among the likely ones"
    return f"wrong: its token {at} is {far}"


def _reference(measured: Measured, model: str, burst: int) -> Figures | None:
    return measured.get((model, "serve", burst)) or measured.get((model, "generate", burst))


@contextmanager
def _started(name: str, plan: Plan, path: Path, folder: Path) -> Iterator[Side]:
    log = folder / f"{name}.log"
    if name == "generate":
        side: Side = Generate.start(path, dtype=plan.dtype, threads=plan.threads, log=log)
    else:
        start = Streamed.start_ours if name == "ours" else Streamed.start_serve
        side = start(path, dtype=plan.dtype, threads=plan.threads, log=log, extra=plan.worker)
    try:
        yield side
    finally:
        side.stop()


def bodies_of(model: str, seed: str, count: int, tokens: int) -> list[dict[str, Any]]:
    """Chat requests of `tokens` output tokens. They share no picture and no text: nothing can be
    answered from a cache."""
    bodies = []
    for index in range(count):
        rng = random.Random(f"{model} {seed} {index}")
        picture, _ = draw_scene(f"bench {seed} {index}", size=(SIDE_PX, SIDE_PX))
        words: list[str] = []
        while len(words) < WORDS[model]:
            words += [*rng.choice(ASKED).split(), rng.choice(SUBJECTS)]
        parts = [
            {"type": "image_url", "image_url": {"url": data_url(picture)}},
            {"type": "text", "text": " ".join(words[: WORDS[model]]) + "?"},
        ]
        messages = [{"role": "user", "content": parts}]
        bodies.append({"messages": messages, "max_tokens": tokens, "temperature": 0})
    return bodies


def cpu_flags() -> frozenset[str]:
    """What this machine's CPU can do, in Linux's words; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def number_type(wanted: str, own: str, flags: frozenset[str]) -> str:
    """The type to run in. `wanted`: "auto" or one; `own`: the checkpoint's; `flags`: the CPU's."""
    if wanted != "auto":
        return wanted
    return own if own != "bfloat16" or flags & BFLOAT16_FLAGS else "float32"


def _table(measured: Measured, dtypes: Mapping[str, str]) -> str:
    names = {"ours": "our worker", "serve": "transformers serve", "generate": "generate()"}
    rows = [
        [
            f"{model} ({dtypes[model]}), burst of {burst}, {names[side]}",
            f"{figures.tokens_per_s:.1f}",
            *(_ms(figures.ttft_s, share) for share in (0.5, 0.99)),
            _ms(figures.tpot_s, 0.5),
            str(figures.prompt_tokens or "-"),
        ]
        for (model, side, burst), figures in measured.items()
    ]
    head = ["load", "tokens/s", "TTFT p50 ms", "TTFT p99 ms", "TPOT p50 ms", "prompt tokens"]
    return table(head, rows)


def _ms(seconds: Sequence[float], share: float) -> str:
    return f"{1000 * percentile(seconds, share):.1f}" if seconds else "-"


def ratios(measured: Measured, dtypes: Mapping[str, str]) -> dict[str, float]:
    """The figures of the last line: ratios where both sides were measured, and equal answers where
    they can be asked for (`dtypes`: of each model)."""
    found: dict[str, float] = {}
    for (model, side, burst), ours in measured.items():
        if side != "ours":
            continue
        found[f"{model}_tokens_per_s_{burst}"] = round(ours.tokens_per_s, 1)
        if serve := measured.get((model, "serve", burst)):
            found[f"{model}_ratio_{burst}"] = round(ours.tokens_per_s / serve.tokens_per_s, 2)
            ttft = percentile(ours.ttft_s, 0.99) / percentile(serve.ttft_s, 0.99)
            found[f"{model}_ttft_p99_ratio_{burst}"] = round(ttft, 3)
        reference = _reference(measured, model, burst)
        if reference and (model == "nano" or dtypes[model] == "float32"):
            count = len(ours.texts)
            same = count - len(ours.others(reference))
            found[f"{model}_{burst}_equal"] = round(same / count, 3)
            if ours.tied is not None:
                found[f"{model}_{burst}_equal_or_tied"] = round((same + ours.tied) / count, 3)
        if burst == 1 and (plain := measured.get((model, "generate", 1))):
            found[f"{model}_single_ratio"] = round(ours.tokens_per_s / plain.tokens_per_s, 2)
    # The worse of the two checkpoints stands for both.
    for name, worst, ends in (
        ("single_ratio", min, "_single_ratio"),
        ("ttft_p99_ratio_32", max, "_ttft_p99_ratio_32"),
    ):
        if values := [value for key, value in found.items() if key.endswith(ends)]:
            found[name] = worst(values)
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
