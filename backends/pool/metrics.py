"""Load and speed of engines that are not ours, from what they publish.

vLLM and SGLang count in Prometheus' text format. The names are those of their documentation (vLLM
v0.32 and the v0 engine before it; SGLang's metrics collector); where a name has changed, the newer
one is looked for first:

    running   vllm:num_requests_running     sglang:num_running_reqs
    waiting   vllm:num_requests_waiting     sglang:num_queue_reqs + num_grammar_queue_reqs
    KV use    vllm:kv_cache_usage_perc      sglang:token_usage
              vllm:gpu_cache_usage_perc
    pace      vllm:inter_token_latency_seconds, request_time_per_output_token_seconds,
              time_per_output_token_seconds;  sglang: the first and the last of these

SGLang without --enable-metrics still says how many run at /v1/loads (before: /get_load).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from backends.pool.reports import COUNT_MAX, PACE_MAX, PACE_MIN

# vLLM with many adapters publishes some ten thousand lines.
LINES_MAX = 100_000

_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^\n]*\})?\s+(\S+)(?:\s+-?\d+)?\s*")
_RUNNING = {
    "vllm": ("vllm:num_requests_running",),
    "sglang": ("sglang:num_running_reqs",),
}
_WAITING = {
    "vllm": (("vllm:num_requests_waiting",),),
    "sglang": (("sglang:num_queue_reqs",), ("sglang:num_grammar_queue_reqs",)),
}
_KV_USE = {
    "vllm": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "sglang": ("sglang:token_usage",),
}
_PACE = {
    engine: tuple(
        f"{engine}:{name}"
        for name in (
            "inter_token_latency_seconds",
            "request_time_per_output_token_seconds",
            "time_per_output_token_seconds",
        )
    )
    for engine in ("vllm", "sglang")
}


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sum and count of a histogram at one moment: two of them give a mean over the time between."""

    seconds: float = 0.0
    count: float = 0.0


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine published. pace: seconds between two tokens of one request, as totals."""

    engine: str
    running: int = 0
    waiting: int = 0
    kv_used: float = 0.0
    pace: Totals = Totals()


def read_metrics(text: str) -> Published | None:
    """vLLM's or SGLang's metrics; None when it is neither's. Never fails.

    Several series of one name (ranks, models, API servers) are added up, of shares the largest
    counts.
    """
    found = dict.fromkeys(("vllm", "sglang"), False)
    sums: dict[str, float] = {}
    most: dict[str, float] = {}
    for name, value in _samples(text):
        engine = name.partition(":")[0]
        if engine not in found:
            continue
        found[engine] = True
        sums[name] = sums.get(name, 0.0) + value
        most[name] = max(most.get(name, 0.0), value)
    engine = next((name for name, seen in found.items() if seen), "")
    if not engine:
        return None
    kv_used = _first(most, _KV_USE[engine])
    return Published(
        engine=engine,
        running=_count(_first(sums, _RUNNING[engine])),
        waiting=_count(sum(_first(sums, names) for names in _WAITING[engine])),
        kv_used=min(1.0, max(0.0, kv_used)),
        pace=_pace(sums, _PACE[engine]),
    )


def read_loads(data: bytes) -> Published | None:
    """SGLang's /v1/loads or /get_load: one object for each rank, however they are wrapped."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    running = waiting = 0
    seen = False
    for rank in _objects(value):
        if isinstance(rank.get("num_running_reqs", rank.get("num_reqs")), int):
            seen = True
            queued = rank.get("num_waiting_reqs")
            waiting += _count(queued)
            if "num_running_reqs" in rank:
                running += _count(rank["num_running_reqs"])
            else:  # the older one counts both together
                running += max(0, _count(rank["num_reqs"]) - _count(queued))
    return Published(engine="sglang", running=running, waiting=waiting) if seen else None


def read_slots(data: bytes) -> int | None:
    """`max_running_requests` of SGLang's /server_info, wherever it stands in it."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    found = [
        slots
        for part in _objects(value)
        if isinstance(slots := part.get("max_running_requests"), int) and 0 < slots <= COUNT_MAX
    ]
    return min(found, default=None)


def tokens_per_s(before: Totals, now: Totals) -> float | None:
    """Pace of one request between two looks; None when nothing was generated, when the engine was
    started anew, and when no engine can be so fast or so slow."""
    count, seconds = now.count - before.count, now.seconds - before.seconds
    if count <= 0 or seconds <= 0:
        return None
    return pace if PACE_MIN <= (pace := count / seconds) <= PACE_MAX else None


def _samples(text: str) -> Iterator[tuple[str, float]]:
    for line in text.split("\n", LINES_MAX)[:LINES_MAX]:
        match = None if line.startswith("#") else _LINE.fullmatch(line)
        if match is None:
            continue
        try:
            value = float(match[2])
        except ValueError:
            continue
        if math.isfinite(value):
            yield match[1], value


def _first(values: Mapping[str, float], names: tuple[str, ...]) -> float:
    return next((values[name] for name in names if name in values), 0.0)


def _pace(sums: Mapping[str, float], names: tuple[str, ...]) -> Totals:
    for name in names:
        if sums.get(f"{name}_count"):
            return Totals(seconds=sums.get(f"{name}_sum", 0.0), count=sums[f"{name}_count"])
    return Totals()


def _count(value: object) -> int:
    """A number of requests; what cannot be one counts as none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0
    return int(value) if 0 <= value <= COUNT_MAX else 0


def _objects(value: Any, depth: int = 4) -> Iterator[dict[str, Any]]:
    """Every JSON object in it, some levels deep."""
    if isinstance(value, dict):
        yield value
    if depth and isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _objects(inner, depth - 1)
