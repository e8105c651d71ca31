"""When a target would answer: predicted time to first token and to the last one.

Predicted from what is queued there now and how fast it works, not from averages of past answers:
those say nothing of the next burst.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from policies.types import BreakerState, CloudState, Facts, Health, Value, WorkerState

# Before anything was measured. A worker measures itself at start-up, so these last for moments.
DECODE_TOKENS_PER_S = 30.0
PREFILL_TOKENS_PER_S = 2_000.0
# Ark answers in 200-800 ms; a first guess until this gateway has its own figures.
CLOUD_TTFT_MS = 500.0
CLOUD_DECODE_TOKENS_PER_S = 60.0


# A report or a probe comes every second. Half a second more is what a busy core may hold it back.
SILENT_S = 1.5
SILENT_OTHERS_S = 3.0  # of an engine that is asked: a probe may take two
# Equal workers measure themselves up to a quarter apart: each has another moment of its machine.
SAME_PACE = 0.75
# A speed that was measured while others had the same cores stays what it was when nothing is sent
# there any more. So it is doubted after a while, by a factor: a worker that is slower by more (a
# CPU beside a GPU) is not asked again and again only to find that it is.
STALE_S = 5.0
STALE_FACTOR = 2.0


class Forecast(Value, frozen=True, kw_only=True):
    """Milliseconds from now. `queued_ms` is the part of `ttft_ms` spent waiting for a slot."""

    ttft_ms: float
    finish_ms: float
    queued_ms: float = 0.0


def occupancy(worker: WorkerState) -> int:
    """Answers that hold or await a slot: as reported, or as we know better by what we sent.

    A report is up to 20 ms old (a second where it is fetched): what we sent there since, and what
    was answered since, is added to it.
    """
    return max(worker.running + worker.waiting + worker.unreported, worker.in_flight)


def has_room(worker: WorkerState, choices: int = 1) -> bool:
    """Whether the worker, left to itself, would take one more request instead of answering busy.
    choices: answers that it asks for, each of which takes a place."""
    places = worker.slots + worker.queue_limit
    return occupancy(worker) + min(choices, places) <= places


def is_free(worker: WorkerState, choices: int = 1) -> bool:
    """Whether one more request would begin at once with all of its answers (`choices`), or with as
    many of them as the worker has slots. Requests that wait inside of a worker with
    slots to spare say that it is its memory that is short, not its slots; one or two of them may
    only just have come. Those whose pictures are being decoded say nothing: another's text passes
    them."""
    if worker.health is not Health.UP or worker.breaker is BreakerState.OPEN:
        return False
    if worker.refused or worker.silent:
        return False
    stuck = worker.waiting - worker.preparing > worker.slots // 8
    return occupancy(worker) + min(choices, worker.slots) <= worker.slots and not stuck


def is_silent(engine: str, unheard_s: float) -> bool:
    """Whether a worker owes a report. unheard_s: since its last one.

    Long before it counts as down (5 s) it is not asked any more, so that a worker that hangs has
    few to keep waiting; one that was only held back has lost nothing.
    """
    return unheard_s > (SILENT_S if engine == "yuzui" else SILENT_OTHERS_S)


def assumed(workers: Sequence[WorkerState]) -> tuple[WorkerState, ...]:
    """Speeds as they are compared: beside the best of the same model.

    One that was not measured yet is taken to be the best: taken for slow, a newcomer would get
    nothing to do beside others with slots to spare, and so would never be measured. Those that are
    nearly the best are: what is left between them is noise, and by noise the worst of three would
    lose every choice of two. One of an idle worker is doubted, or it would lose them for ever.
    """
    decode: dict[str, float] = {}
    prefill: dict[str, float] = {}
    for worker in workers:
        decode[worker.model] = max(decode.get(worker.model, 0.0), worker.decode_tokens_per_s)
        prefill[worker.model] = max(prefill.get(worker.model, 0.0), worker.prefill_tokens_per_s)
    return tuple([_beside(w, decode[w.model], prefill[w.model]) for w in workers])


def _beside(worker: WorkerState, best_decode: float, best_prefill: float) -> WorkerState:
    stale = worker.idle_s > STALE_S
    decode = _pace(worker.decode_tokens_per_s, best_decode, stale=stale)
    prefill = _pace(worker.prefill_tokens_per_s, best_prefill, stale=stale)
    if (decode, prefill) == (worker.decode_tokens_per_s, worker.prefill_tokens_per_s):
        return worker
    return replace(worker, decode_tokens_per_s=decode, prefill_tokens_per_s=prefill)


def _pace(own: float, best: float, *, stale: bool) -> float:
    likely = STALE_FACTOR * own if stale else own
    return best if not own or likely >= SAME_PACE * best else likely


def of_worker(
    worker: WorkerState, facts: Facts, prompt_tokens: int, *, line_ahead: float = 0.0
) -> Forecast:
    """Forecast for a local worker. prompt_tokens: likely size with pictures. line_ahead: this
    worker's share of those that have their turn at the pool before us."""
    decode = worker.decode_tokens_per_s or DECODE_TOKENS_PER_S
    prefill = worker.prefill_tokens_per_s or PREFILL_TOKENS_PER_S
    own_prefill_ms = 1000.0 * prompt_tokens / prefill
    own_decode_ms = 1000.0 * facts.output_tokens_likely / decode

    # so often must a slot fall free before we have ours
    ahead = occupancy(worker) + line_ahead - worker.slots + min(facts.choices, worker.slots)
    turnovers = max(ahead / max(1, worker.slots), _turnovers(worker, facts, prompt_tokens))
    queued_ms = 0.0
    if turnovers > 0:
        output = _mean(worker.in_flight_output_tokens, worker.in_flight, facts.output_tokens_likely)
        prompt = _mean(worker.in_flight_prompt_tokens, worker.in_flight, prompt_tokens)
        service_ms = 1000.0 * (output / decode + prompt / prefill)
        queued_ms = turnovers * service_ms
    ttft_ms = queued_ms + own_prefill_ms + 1000.0 / decode
    return Forecast(ttft_ms=ttft_ms, finish_ms=ttft_ms + own_decode_ms, queued_ms=queued_ms)


def _turnovers(worker: WorkerState, facts: Facts, prompt_tokens: int) -> float:
    """How often all that its cache holds must have gone before ours has room there: a slot may be
    free and memory not. 0.0 when there is room, and when it does not say.

    What runs leaves within one service time, and with it all of what is used: so much room as is
    short, beside what is used, is how much of that time it takes.
    """
    used = round(worker.kv_used * worker.kv_tokens)
    if not used:
        return 0.0
    own = prompt_tokens + facts.output_tokens_max  # it is allotted for the whole of its limit
    own = facts.choices * min(own, worker.traits.context_tokens or own)
    own = min(own, worker.kv_tokens)  # what has no room beside the others runs after them
    return max(0.0, used + worker.waiting_tokens + own - worker.kv_tokens) / used


def of_cloud(cloud: CloudState, facts: Facts) -> Forecast:
    """Forecast for a cloud model: its measured first token and pace (it has no queue we see)."""
    ttft_ms = cloud.ttft_ewma_ms or CLOUD_TTFT_MS
    decode = cloud.decode_tokens_per_s or CLOUD_DECODE_TOKENS_PER_S
    return Forecast(
        ttft_ms=ttft_ms, finish_ms=ttft_ms + 1000.0 * facts.output_tokens_likely / decode
    )


def _mean(total: int, count: int, otherwise: int) -> float:
    return total / count if count else float(otherwise)
