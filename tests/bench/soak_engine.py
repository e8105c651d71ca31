"""What a worker keeps of the requests it has served: `make soak-engine`.

2,000 requests with random arrivals, pictures, lengths, stop strings and streams go to a real worker
process, and every fourth caller leaves at a random moment. Each answer is compared with the known
one of its request, which plain `generate()` gave beforehand, so a word of somebody else's is found.
Every few hundred requests the worker is left in peace: then no slot, no cache entry, no descriptor
may be in use, and its memory, once it has rested and given back what it had freed, must be what it
was after the warm-up, within 2 %. With `--restless` it never rests long enough to give
anything back: its memory is then what it keeps under load, which has found its size after some
5,000 requests, so half of 12,000 are the warm-up.

Prints a table and, as its last line, one JSON object; the exit code is 1 if anything was kept.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from backends.glm.nano.draw import draw_scene
from gateway.commands.tables import table
from tests.bench import checkpoints
from tests.bench.pictures import data_url
from tests.bench.sides import Generate, Streamed

FOLDER = Path("build/bench")
SLOTS, KV_TOKENS = 8, 4096
KNOWN = 64  # different requests, each sent many times
ROUNDS = 8  # times at which the worker is left in peace; the first ones are the warm-up
WARM_ROUNDS = 2
REQUESTS = 2_000
RESTLESS_REQUESTS, RESTLESS_WARM_ROUNDS = 12_000, ROUNDS // 2
ABORTED, SAMPLED, STREAMED, STOPPED = 0.25, 0.1, 0.5, 0.15  # shares of the requests
LEAVES_AFTER_S = (0.001, 0.5)  # from before the request is read to after most answers are whole
RSS_GROWTH_MAX = 0.02
PEACE_S = 60.0
REST_S = 2.0  # a worker gives memory back after a second without a request
SIZES = ((64, 64), (224, 224), (640, 480), (300, 400))
WORDS = (
    "what colour shape where how many circle square star left right red blue green the is".split()
)
PATH = "/v1/chat/completions"


@dataclass(frozen=True, kw_only=True)
class Known:
    """A request and its whole greedy answer."""

    body: dict[str, Any]
    text: str


@dataclass(kw_only=True)
class Found:
    """What a soak has seen. One entry of `kept` and of `rss_mb` a round."""

    warm_rounds: int = WARM_ROUNDS
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    kept: list[dict[str, int]] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)

    @property
    def rss_growth(self) -> float:
        """Of the largest round after the warm-up over the end of the warm-up."""
        warm = self.rss_mb[self.warm_rounds - 1]
        return max(self.rss_mb[self.warm_rounds :]) / warm - 1

    @property
    def leaked(self) -> dict[str, int]:
        """The most that any round after the first left in use, beyond what the first did."""
        return {
            key: max(kept[key] for kept in self.kept) - self.kept[0][key] for key in self.kept[0]
        }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--requests", type=int, help=f"(default: {REQUESTS}, restless {RESTLESS_REQUESTS})")
    add("--restless", action="store_true", help="never a second without a request")
    add("--seed", type=int, default=1, help="(default: %(default)s)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="(default: cores)")
    add("--worker-args", default="", metavar="TEXT", help='e.g. "--quantize int8"')
    add("--reference", choices=("generate", "alone"), default="generate",
        help="who gives the known answers: generate(), or the worker asked one by one "
        "(default: %(default)s)")  # fmt: skip
    given = parser.parse_args()
    found = soak(
        requests=given.requests or (RESTLESS_REQUESTS if given.restless else REQUESTS),
        restless=given.restless,
        seed=given.seed,
        threads=given.threads,
        reference=given.reference,
        worker_args=given.worker_args.split(),
    )
    rows = [[name, str(count)] for name, count in sorted(found.counts.items())]
    rows += [[f"{name} leaked", str(count)] for name, count in found.leaked.items()]
    rows += [["memory after each round, MB", " ".join(f"{mb:.0f}" for mb in found.rss_mb)]]
    print(table(["what", "how much"], rows))
    for text in found.wrong[:5]:
        print(text)
    good = not found.wrong and not any(found.leaked.values())
    good = good and found.rss_growth <= RSS_GROWTH_MAX
    figures = {
        **found.counts,
        "wrong": len(found.wrong),
        **{f"{name}_leaked": count for name, count in found.leaked.items()},
        "rss_growth": round(found.rss_growth, 4),
    }
    print(json.dumps(figures))
    return 0 if good else 1


def soak(
    *,
    requests: int,
    seed: int,
    threads: int,
    reference: str,
    restless: bool = False,
    worker_args: Sequence[str] = (),
) -> Found:
    """Start a worker, soak it, stop it. Raises: RuntimeError when it fails in another way."""
    path = checkpoints.nano(FOLDER)
    bodies = [_body(random.Random(f"{seed} {index}"), index) for index in range(KNOWN)]
    with tempfile.TemporaryDirectory() as folder:
        extra = ["--slots", str(SLOTS), "--kv-tokens", str(KV_TOKENS), *worker_args]
        log = Path(folder) / "worker.log"
        worker = Streamed.start_ours(path, dtype="float32", threads=threads, log=log, extra=extra)
        try:
            if reference == "generate":
                texts = _generated(path, bodies, threads, Path(folder) / "generate.log")
            else:
                texts = asyncio.run(_alone(worker, bodies))
            known = [
                _stopped(Known(body=b, text=t), seed) for b, t in zip(bodies, texts, strict=True)
            ]
            found = asyncio.run(_Soak(worker, known, seed, restless=restless).run(requests))
        finally:
            worker.stop()
        said = log.read_text()
        if worker.process.returncode != 0:
            raise RuntimeError(f"the worker ended with {worker.process.returncode}\n{said[-2000:]}")
        for bad in ("unexpected_error", "engine_failure", "Traceback"):
            if bad in said:
                raise RuntimeError(
                    f"{bad} in the worker's log\n{said[said.index(bad) - 500 :][:2000]}"
                )
    return found


def _body(rng: random.Random, index: int) -> dict[str, Any]:
    parts: list[Any] = []
    for number in range(rng.choice((0, 0, 1, 1, 1, 2))):
        picture, _ = draw_scene(f"soak {index} {number}", size=rng.choice(SIZES))
        parts.append({"type": "image_url", "image_url": {"url": data_url(picture)}})
    text = f"{index} " + " ".join(rng.choices(WORDS, k=rng.randint(1, 60)))
    parts.append({"type": "text", "text": text})
    tokens = rng.choice((1, 2, 5, 16, 32, 48))
    messages = [{"role": "user", "content": parts}]
    return {"messages": messages, "max_tokens": tokens, "temperature": 0}


def _generated(path: Path, bodies: list[dict[str, Any]], threads: int, log: Path) -> list[str]:
    side = Generate.start(path, dtype="float32", threads=threads, log=log)
    try:
        return [side.ask([body])[0][0].text for body in bodies]
    finally:
        side.stop()


async def _alone(worker: Streamed, bodies: list[dict[str, Any]]) -> list[str]:
    async with aiohttp.ClientSession(worker.url) as http:
        texts = []
        for body in bodies:
            async with http.post(PATH, json={**body, "model": "glm-4.6v"}) as reply:
                texts.append(_text((await reply.json())["choices"][0]["message"]))
        return texts


def _stopped(known: Known, seed: int) -> Known:
    """Some requests end at a piece of their own answer."""
    rng = random.Random(f"stop {seed} {known.text}")
    if rng.random() > STOPPED or len(known.text) < 6:
        return known
    at = rng.randrange(2, len(known.text) - 2)
    stop = known.text[at : at + 2]
    return Known(body={**known.body, "stop": [stop]}, text=known.text[: known.text.index(stop)])


class _Soak:
    def __init__(self, worker: Streamed, known: list[Known], seed: int, *, restless: bool) -> None:
        self._worker = worker
        self._known = known
        self._rng = random.Random(seed)
        self._rest_s = 0.0 if restless else REST_S
        self._found = Found(warm_rounds=RESTLESS_WARM_ROUNDS if restless else WARM_ROUNDS)

    async def run(self, requests: int) -> Found:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self._worker.url, connector=connector) as http:
            for number in range(ROUNDS):
                async with asyncio.TaskGroup() as crowd:
                    for _ in range(requests // ROUNDS):
                        crowd.create_task(self._one(http))
                        # Arrivals in clumps: most come at once, some after a pause.
                        if self._rng.random() < 0.3:
                            await asyncio.sleep(self._rng.expovariate(1 / 0.1))
                self._found.kept.append(await self._peace(http))
                await asyncio.sleep(self._rest_s)
                self._found.rss_mb.append(self._worker.rss_mb())
                print(f"round {number + 1} of {ROUNDS}: {self._found.rss_mb[-1]:.0f} MB, "
                      f"{dict(self._found.counts)}", file=sys.stderr, flush=True)  # fmt: skip
        return self._found

    async def _one(self, http: aiohttp.ClientSession) -> None:
        rng, known = self._rng, self._rng.choice(self._known)
        body = {**known.body, "model": "glm-4.6v", "stream": rng.random() < STREAMED}
        sampled = rng.random() < SAMPLED
        if sampled:  # a neighbour whose dice must not fall into anybody's answer
            body |= {"temperature": 1.0, "seed": rng.randrange(1000)}
        leaves = rng.random() < ABORTED
        try:
            low, high = map(math.log, LEAVES_AFTER_S)
            async with asyncio.timeout(math.exp(rng.uniform(low, high)) if leaves else None):
                text = await self._ask(http, body)
        except TimeoutError:
            self._found.counts["left"] += 1
            return
        self._found.counts["sampled" if sampled else "answered"] += 1
        if not sampled and text != known.text:
            asked = known.body["messages"][0]["content"][-1]["text"][:60]
            self._found.wrong.append(f"{asked!r}: {text!r} instead of {known.text!r}")

    async def _ask(self, http: aiohttp.ClientSession, body: dict[str, Any]) -> str:
        while True:
            async with http.post(PATH, json=body) as reply:
                if reply.status == 503:
                    self._found.counts["asked again"] += 1
                    await asyncio.sleep(self._rng.uniform(0.05, 0.5))
                    continue
                if reply.status != 200:
                    raise RuntimeError(f"{reply.status}: {(await reply.text())[:500]}")
                if not body["stream"]:
                    return _text((await reply.json())["choices"][0]["message"])
                return _streamed(await reply.read())

    async def _peace(self, http: aiohttp.ClientSession) -> dict[str, int]:
        """Wait until nothing runs or waits; what is in use then."""
        load: dict[str, Any] = {}
        for _ in range(int(PEACE_S / 0.05)):
            async with http.get("/load") as reply:
                load = await reply.json()
            if not load["running"] and not load["waiting"] and not load["kv_tokens_used"]:
                break
            await asyncio.sleep(0.05)
        return {
            "slots": load["running"] + load["waiting"],
            "kv_tokens": load["kv_tokens_used"],
            "descriptors": max(0, self._worker.descriptors() - len(self._idle(http))),
        }

    def _idle(self, http: aiohttp.ClientSession) -> list[Any]:
        """Connections that this side keeps open."""
        pool = http.connector._conns if http.connector else {}  # no public count exists
        return [connection for idle in pool.values() for connection in idle]


def _text(message: dict[str, Any]) -> str:
    return (message.get("reasoning_content") or "") + (message.get("content") or "")


def _streamed(raw: bytes) -> str:
    if not raw.endswith(b"data: [DONE]\n\n"):
        raise RuntimeError(f"a stream without an end: {raw[-300:]!r}")
    events = [json.loads(line[6:]) for line in raw.split(b"\n\n") if line.startswith(b"data: {")]
    return "".join(_text(choice["delta"]) for event in events for choice in event["choices"])


if __name__ == "__main__":
    sys.exit(main())
