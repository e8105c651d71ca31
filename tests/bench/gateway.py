"""What the gateway adds: `make bench-gateway`.

One gateway process on one core, with authentication, a budget, the ledger and its log on; the
upstream (a server with fixed answers), Valkey and the load generator share the other core. Every
figure "added" is the difference to calling the same upstream directly, measured in turn in the same
run. Beside it stands a bare aiohttp proxy (bare_proxy.py) on the same core: the speed of machines
differs, the ratio to it much less. Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from gateway.admin.client import AdminClient
from gateway.commands.tables import table
from gateway.config import Config
from gateway.keys import from_secret, issue
from gateway.redis.embedded import EmbeddedServer
from tests.bench.load import Result, drive, request
from tests.ports import free_port

SECRET = "a secret for benchmarks, 32 bytes and more"
GATEWAY_CORE, OTHER_CORE = 0, 1
CHUNKS = 100
PACE_MS = 10
STREAM_S = CHUNKS * PACE_MS / 1000
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ROUNDS = 3  # direct and through the gateway take turns; the middle of the rounds counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the requests")
    args = parser.parse_args()
    os.sched_setaffinity(0, {OTHER_CORE} if (os.cpu_count() or 1) > 1 else {0})
    with tempfile.TemporaryDirectory() as folder:
        uvloop.run(_measure(Path(folder), scale=10 if args.quick else 1))
    return 0


async def _measure(folder: Path, *, scale: int) -> None:
    books = await EmbeddedServer.start(folder / "data")
    try:
        with (
            _upstream(folder, pace_ms=0) as fast,
            _upstream(folder, pace_ms=PACE_MS) as paced,
        ):
            figures = await _all(folder, books.url, fast, paced, scale)
    finally:
        await books.stop()
    print(json.dumps(figures))


async def _all(folder: Path, redis_url: str, fast: str, paced: str, scale: int) -> dict[str, Any]:
    token = issue(
        from_secret("default", SECRET.encode()),
        tenant="bench", subject="bench", ttl_s=3600, issuer="yuzui", audience="yuzui",
    )  # fmt: skip
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    with _gateway(folder, redis_url, fast) as gateway:
        figures["ready_s"] = round(gateway.ready_s, 3)
        await asyncio.sleep(2.0)
        figures["rss_idle_mb"] = round(gateway.rss_mb(), 1)
        for name, body, connections, count in (
            ("700 B, 1 connection", _text_body(700), 1, 4_000),
            ("700 B, 32 connections", _text_body(700), 32, 20_000),
            ("1 MB picture, 1 connection", _picture_body(), 1, 200),
            ("1 MB picture, 32 connections", _picture_body(), 32, 400),
        ):
            pair = await _pair(gateway, fast, body, token, connections, max(count // scale, 40))
            rows.append(pair.row(name))
            print(f"measured: {name}", file=sys.stderr)
            if name.startswith("700"):
                figures[f"rps_{connections}"] = round(pair.ours.per_s)
                figures[f"added_p50_ms_{connections}"] = pair.added_ms(0.5)
                figures[f"added_p99_ms_{connections}"] = pair.added_ms(0.99)
                figures["cpu_us_request"] = round(pair.cpu_us)
            else:
                figures[f"picture_rps_{connections}"] = round(pair.ours.per_s)
                figures[f"picture_added_p50_ms_{connections}"] = pair.added_ms(0.5)
        stream = _text_body(700, stream=True)
        pair = await _pair(gateway, fast, stream, token, 64, max(1_024 // scale, 64))
        rows.append(pair.row("64 streams of 100 chunks, at once"))
        figures["chunks_per_s"] = round(pair.ours.per_s * CHUNKS)
        figures["cpu_us_chunk_unpaced"] = round(pair.cpu_us / CHUNKS, 1)
    with _bare_proxy(folder, fast) as bare:
        body, count = _text_body(700), 20_000 // scale
        pair = await _pair(bare, fast, body, "", 32, count)
        rows.append(pair.row("a bare aiohttp proxy, 700 B, 32 connections"))
        figures["bare_proxy_rps_32"] = round(pair.ours.per_s)
        figures["bare_proxy_cpu_us_request"] = round(pair.cpu_us)
    with _gateway(folder, redis_url, paced) as gateway:
        count = max(512 // scale, 64)
        # Streams of equal length that begin together stay together, in bursts of 64 chunks; those
        # of independent callers do not. Both are measured, each under its own name.
        pair = await _pair(gateway, paced, stream, token, 64, count, spread_s=STREAM_S)
        rows.append(pair.row("64 streams of 100 chunks, 10 ms apart"))
        figures["stream_added_ttft_p50_ms"] = pair.added_first_ms(0.5)
        figures["cpu_us_chunk"] = round(pair.cpu_us / CHUNKS, 1)
        pair = await _pair(gateway, paced, stream, token, 64, count)
        rows.append(pair.row("the same, begun in one moment"))
        figures["stream_burst_added_ttft_p50_ms"] = pair.added_first_ms(0.5)
    head = [
        "load",
        "direct/s",
        "gateway/s",
        "added p50 ms",
        "added p99 ms",
        "added TTFT p50 ms",
        "CPU us",
    ]
    print(table(head, rows))
    return figures


class _Pair:
    """The middle round of both sides. cpu_us: the gateway's CPU time for one request."""

    def __init__(self, direct: list[Result], ours: list[Result], cpu_us: list[float]) -> None:
        self.direct = sorted(direct, key=lambda r: r.whole_ms(0.5))[len(direct) // 2]
        self.ours = sorted(ours, key=lambda r: r.whole_ms(0.5))[len(ours) // 2]
        self.cpu_us = sorted(cpu_us)[len(cpu_us) // 2]

    def added_ms(self, share: float) -> float:
        return round(self.ours.whole_ms(share) - self.direct.whole_ms(share), 3)

    def added_first_ms(self, share: float) -> float:
        return round(self.ours.first_ms(share) - self.direct.first_ms(share), 3)

    def row(self, name: str) -> list[str]:
        return [
            name,
            f"{self.direct.per_s:.0f}",
            f"{self.ours.per_s:.0f}",
            f"{self.added_ms(0.5):.3f}",
            f"{self.added_ms(0.99):.3f}",
            f"{self.added_first_ms(0.5):.3f}",
            f"{self.cpu_us:.0f}",
        ]


async def _pair(
    gateway: _Gateway,
    upstream: str,
    body: bytes,
    token: str,
    connections: int,
    count: int,
    *,
    spread_s: float = 0.0,
) -> _Pair:
    load = partial(drive, connections=connections, requests=count, spread_s=spread_s)
    path = "/v1/chat/completions"
    direct_sent, ours_sent = (
        request(upstream + path, body),
        request(gateway.url + path, body, token),
    )
    await drive(gateway.url, ours_sent, connections=connections, requests=max(count // 10, 32))
    direct, ours, cpu_us = [], [], []
    for _ in range(ROUNDS):
        direct.append(await load(upstream, direct_sent))
        before = gateway.cpu_s()
        ours.append(await load(gateway.url, ours_sent))
        cpu_us.append(1e6 * (gateway.cpu_s() - before) / count)
    return _Pair(direct, ours, cpu_us)


class _Gateway:
    """One running gateway process."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, ready_s: float) -> None:
        self.url = url
        self.ready_s = ready_s
        self._proc = Path(f"/proc/{process.pid}")

    def cpu_s(self) -> float:
        fields = (self._proc / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S

    def rss_mb(self) -> float:
        status = (self._proc / "status").read_text()
        kib = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(kib.split()[1]) / 1024


@contextmanager
def _gateway(folder: Path, redis_url: str, upstream: str) -> Iterator[_Gateway]:
    port, admin_port = free_port(), free_port()
    settings = {
        "YUZUI_PORT": str(port),
        "YUZUI_ADMIN_PORT": str(admin_port),
        "YUZUI_DATA_DIR": str(folder / "gateway"),
        "YUZUI_REDIS_URL": redis_url,
        "YUZUI_WORKERS": upstream,
        "YUZUI_AUTH_SECRET": SECRET,
    }
    env = {**os.environ, **settings}
    with (folder / "gateway.log").open("ab") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "serve"], env=env, stdout=log, stderr=log
        )
        os.sched_setaffinity(process.pid, {GATEWAY_CORE})
        try:
            _wait_ready(f"http://127.0.0.1:{port}", process, folder / "gateway.log")
            ready_s = time.perf_counter() - began
            admin = AdminClient(Config.load(environ=settings))
            budget = {"scope": "tenant:bench", "limit_nano": 10**15, "period": "month"}
            admin.call("PUT", "/admin/budgets", body=budget)
            yield _Gateway(process, f"http://127.0.0.1:{port}", ready_s)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@contextmanager
def _bare_proxy(folder: Path, upstream: str) -> Iterator[_Gateway]:
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.bare_proxy", str(port), upstream]
    with (folder / "bare.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        os.sched_setaffinity(process.pid, {GATEWAY_CORE})
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_ready(url, process, folder / "bare.log")
            yield _Gateway(process, url, 0.0)
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def _upstream(folder: Path, *, pace_ms: float) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "backends.scripted", "--port", str(port)]
    command += ["--chunks", str(CHUNKS), "--pace-ms", str(pace_ms), "--slots", "256"]
    with (folder / "upstream.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_ready(f"http://127.0.0.1:{port}", process, folder / "upstream.log", "/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def _wait_ready(
    url: str, process: subprocess.Popen[bytes], log: Path, path: str = "/readyz"
) -> None:
    from gateway.machine.stack import answers

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if answers(url + path):
            return
        time.sleep(0.01)
    raise RuntimeError(f"not ready: {url}\n{log.read_text()[-2000:]}")


def _text_body(size: int, *, stream: bool = False) -> bytes:
    body: dict[str, Any] = {
        "model": "glm-4.6v",
        "max_tokens": 128,
        "messages": [{"role": "user", "content": ""}],
    }
    if stream:
        body["stream"] = True
    room = size - len(json.dumps(body))
    body["messages"][0]["content"] = ("What does this invoice say? " * 100)[:room]
    return json.dumps(body).encode()


def _picture_body() -> bytes:
    """A picture of a megabyte of base64: noise does not compress."""
    import io

    from PIL import Image

    noise = random.Random(1).randbytes(500 * 500 * 3)
    out = io.BytesIO()
    Image.frombytes("RGB", (500, 500), noise).save(out, "PNG")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    body = {
        "model": "glm-4.6v",
        "max_tokens": 128,
        "messages": [{"role": "user", "content": parts}],
    }
    return json.dumps(body).encode()


if __name__ == "__main__":
    sys.exit(main())
