"""A recorded trace through the whole gateway, and what the books say of it: `make replay`.

Real processes (Valkey, a worker, the emulator of Ark, the gateway, the archiver), real HTTP,
streamed answers; requests come when those of the trace came, `--scale` times faster. At the end the
books have to add up: nothing held, the till equal to the rows, a row for every answer, also after
the rows have moved to the archive. Then the report and the page of `yuzui tco` are made from these
rows.

What is not real: the worker's words (its slots and times are those of an engine, see
trace_worker.py) and Ark, which is emulated. The trace has sizes and times, and no text.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from gateway.admin.client import AdminClient
from gateway.config import Config
from gateway.keys import from_secret, issue
from gateway.machine.stack import answers
from gateway.redis.embedded import EmbeddedServer
from gateway.tco.png import find_fonts
from tests.ports import free_port

TRACE = Path(__file__).parents[3] / "shared" / "traces" / "azure-llm-conv-2023.csv"
SECRET = "a secret for replays, 32 bytes and more"
ADMIN_TOKEN = "an admin token for replays"
TTFT_S = 2.0  # how long a caller waits for a first token before the request overflows
TIMEOUT_S = 120.0
WORDS = "river levee flood plain canal water gate stone north south early late high low".split()
TENANTS = ("shop", "desk", "lab")


@dataclass(frozen=True)
class Asked:
    """One request of a trace: seconds after the first, and its tokens."""

    at_s: float
    prompt: int
    output: int


def read_trace(path: Path, *, rows: int, offset: int = 0) -> list[Asked]:
    """Rows of a trace with the columns TIMESTAMP, ContextTokens, GeneratedTokens."""
    found: list[Asked] = []
    first = None
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if number < offset:
                continue
            # seven decimals; Python reads six
            moment = datetime.fromisoformat(row["TIMESTAMP"][:26])
            first = first or moment
            found.append(Asked(
                (moment - first).total_seconds(),
                max(1, int(row["ContextTokens"])),
                max(1, int(row["GeneratedTokens"])),
            ))  # fmt: skip
            if len(found) == rows:
                break
    return found


# ------------------------------------------------------------------ the processes


@contextmanager
def _process(
    name: str, folder: Path, command: list[str], env: dict[str, str], url: str
) -> Iterator[None]:
    log = folder / f"{name}.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], env={**os.environ, **env}, stdout=out, stderr=out
        )
    try:
        deadline = time.monotonic() + 60
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not come up:\n{log.read_text()[-2000:]}")
            time.sleep(0.02)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _settings(folder: Path, redis_url: str, args: argparse.Namespace) -> dict[str, str]:
    """Writes yuzui.yaml; the environment that leads every process to it."""
    file = folder / "yuzui.yaml"
    file.write_text(
        f"port: {free_port()}\nadmin_port: {free_port()}\nadmin_token: {ADMIN_TOKEN}\n"
        f"data_dir: data\nredis_url: {redis_url}\narchive: {{keep_hot_days: 0}}\n"
        f"limits: {{ttft_interactive_s: {TTFT_S / args.scale}}}\n"
    )
    return {"YUZUI_CONFIG": str(file), "YUZUI_AUTH_SECRET": SECRET}


def _emulator(folder: Path, scale: int) -> list[str]:
    """Ark's pace, divided; its limits count by the minute and are opened as far as time is
    squeezed."""
    file = folder / "emulator.yaml"
    file.write_text(json.dumps({
        "latency": {"first_ms_min": 200 / scale, "first_ms_max": 800 / scale,
                    "token_ms": 20 / scale},
        "limits": {"*": {"rpm": 1_000_000, "tpm": 1_000_000_000}},
        "burst": {"enabled": False}, "answer_tokens": 4096, "chunk_tokens": 64,
    }))  # fmt: skip
    return ["backends.ark.emulator", "--config", str(file)]


# ------------------------------------------------------------------ the traffic


@dataclass
class Sent:
    """How it went, seen from the clients. late_s: behind the trace's own time, the worst."""

    answered: int = 0
    refused: int = 0
    broken: int = 0
    late_s: float = 0.0
    wall_s: float = 0.0


async def _drive(url: str, trace: list[Asked], scale: int) -> Sent:
    sent = Sent()
    tokens = {
        tenant: issue(
            from_secret("default", SECRET.encode()), tenant=tenant, subject=tenant, ttl_s=3600,
            issuer="yuzui", audience="yuzui",
        )
        for tenant in TENANTS
    }  # fmt: skip
    began = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http,
        asyncio.TaskGroup() as group,
    ):
        for number, asked in enumerate(trace):
            due = began + asked.at_s / scale
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            sent.late_s = max(sent.late_s, time.monotonic() - due)
            tenant = TENANTS[number % len(TENANTS)]
            group.create_task(_ask(http, url, asked, number, tokens[tenant], sent))
    sent.wall_s = time.monotonic() - began
    return sent


async def _ask(
    http: aiohttp.ClientSession, url: str, asked: Asked, number: int, token: str, sent: Sent
) -> None:
    rng = random.Random(number)  # every prompt is another: nothing is found in a cache
    body: dict[str, Any] = {
        "model": "glm-4.6v",
        "max_tokens": asked.output,
        "stream": True,
        "messages": [{"role": "user", "content": " ".join(rng.choices(WORDS, k=asked.prompt))}],
    }
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with http.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
            if response.status != 200:
                sent.refused += 1
                return
            whole = await response.read()
            if whole.endswith(b"data: [DONE]\n\n"):
                sent.answered += 1
            else:
                sent.broken += 1
    except (aiohttp.ClientError, TimeoutError):
        sent.broken += 1


# ------------------------------------------------------------------ the books


def _cli(env: dict[str, str], folder: Path, *argv: str) -> str:
    """One command of `yuzui`, as an operator runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", *argv], env={**os.environ, **env},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"yuzui {' '.join(argv)}: {done.stderr or done.stdout}")
    return done.stdout


def _quiet(admin: AdminClient) -> int:
    """Waits until nothing is held; what the till has posted."""
    for _ in range(300):
        till = admin.call("GET", "/admin/till")
        if not till["held_nano"]:
            return int(till["posted_nano"])
        time.sleep(0.1)
    raise RuntimeError("money is still held long after the last answer")


def _books(env: dict[str, str], out: Path, scale: int, sent: Sent) -> dict[str, Any]:
    """Archives every row, lets the commands report, and checks that everything adds up."""
    admin = AdminClient(Config.load(environ=env))
    posted = _quiet(admin)
    hot = json.loads(_cli(env, out, "report", "--json"))["total"]
    time.sleep(6)  # a row waits 5 s before it is archived
    _cli(env, out, "archive", "run", "--once")
    status = json.loads(_cli(env, out, "archive", "status", "--json"))
    total = json.loads(_cli(env, out, "report", "--json"))["total"]
    for by in ("backend", "tenant", "reason"):
        print(f"\nyuzui report --by {by}\n\n{_cli(env, out, 'report', '--by', by)}", end="")
    shared = ("--time-scale", str(scale), "--wait-s", str(TTFT_S))
    for lang in ("en", "zh"):
        files = ("--html", str(out / f"tco.{lang}.html"))
        if lang == "en" and any(find_fonts()):
            files += ("--png", str(out / "tco.en.png"))
        text = _cli(env, out, "tco", "--lang", lang, *shared, *files)
        if lang == "en":
            print(f"\nyuzui tco\n\n{text}")
    study = json.loads(_cli(env, out, "tco", "--json", *shared))["study"]
    best = max(study["scenarios"], key=lambda one: one["saving_nano"])
    return {
        "requests": total["requests"],
        "drift_nano": posted - total["cost_nano"],
        "moved_nano": hot["cost_nano"] - total["cost_nano"],
        "lost_rows": sent.answered - total["requests"],
        "rows_archived": status["rows_archived"],
        "rows_hot": status["rows_waiting"],
        "adds_up": status["adds_up"],
        "cost_cny": posted / 10**9,
        "saved_cny": total["saved_nano"] / 10**9,
        "month_cloud_cny": round(study["cloud_nano"] / 10**9),
        "best_servers": best["servers"],
        "best_month_cny": round(best["total_nano"] / 10**9),
        "payback_months": best["payback_months"],
    }


async def _run(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    trace = read_trace(args.trace, rows=args.rows, offset=args.offset)
    books = await EmbeddedServer.start(folder / "data")
    try:
        env = _settings(folder, books.url, args)
        config = Config.load(environ=env)
        ark, worker = free_port(), free_port()
        env |= {
            "YUZUI_WORKERS": f"http://127.0.0.1:{worker}",
            "YUZUI_ARK_BASE_URL": f"http://127.0.0.1:{ark}/api/v3",
            "ARK_API_KEY": "emulated",
        }
        speeds = ["--slots", str(args.slots), "--decode", str(args.decode)]
        with ExitStack() as stack:
            for name, command, url in (
                ("worker", ["tests.bench.trace_worker", "--port", str(worker),
                            "--scale", str(args.scale), *speeds],
                 f"http://127.0.0.1:{worker}/health"),
                ("ark", [*_emulator(folder, args.scale), "--port", str(ark)],
                 f"http://127.0.0.1:{ark}/emulator/stats"),
                ("gateway", ["gateway.cli", "serve"], f"http://127.0.0.1:{config.port}/readyz"),
            ):  # fmt: skip
                stack.enter_context(_process(name, folder, command, env, url))
            await asyncio.sleep(1.0)  # the gateway follows the worker's load
            span_s = trace[-1].at_s
            print(
                f"{len(trace)} requests of {span_s / 60:.1f} minutes, {args.scale} times faster "
                f"({span_s / args.scale:.0f} s) ...", file=sys.stderr, flush=True,
            )  # fmt: skip
            sent = await _drive(f"http://127.0.0.1:{config.port}", trace, args.scale)
            found = await asyncio.to_thread(_books, env, args.out, args.scale, sent)
    finally:
        await books.stop()
    return {"sent": len(trace), **vars(sent), "scale": args.scale, "slots": args.slots, **found}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--trace", type=Path, default=TRACE, help="CSV: TIMESTAMP, ContextTokens, GeneratedTokens")
    add("--rows", type=int, default=3_000, help="requests to replay (3000)")
    add("--offset", type=int, default=0, help="rows to leave out first (0)")
    add("--scale", type=int, default=10, help="how many times faster than they came (10)")
    add("--slots", type=int, default=16, help="of the one worker (16)")
    add("--decode", type=float, default=35.0, help="tokens a second of a slot (35)")
    add("--out", type=Path, default=Path("build/replay"), help="where the pages go (build/replay)")
    args = parser.parse_args(argv)
    if not args.trace.exists():
        parser.error(
            f"there is no {args.trace}: give --trace, such as AzureLLMInferenceTrace_conv.csv of "
            "https://github.com/Azure/AzurePublicDataset"
        )
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="yz-replay-") as folder:
        found = asyncio.run(_run(args, Path(folder)))
    print(f"pages: {args.out}/tco.en.html, tco.zh.html, tco.en.png")
    print(json.dumps(found))
    good = found["adds_up"] and not (found["drift_nano"] or found["moved_nano"])
    return 0 if good and not found["lost_rows"] and not found["broken"] else 1


if __name__ == "__main__":
    sys.exit(main())
