"""Whose turn it is when a local slot falls free, and how long a request waits for its turn.

Within a class the tenants share turns by start-time fair queueing (Goyal, Vin, Cheng 1996): every
request gets a tag when it comes, and the least tag is next. A tenant's tags lie apart by what its
requests cost, so one that sends a thousand at once waits behind itself and not before others.

Between the classes, interactive goes before batch, and every BATCH_EVERY-th turn is batch's, so
that a steady stream of interactive requests slows batch down and does not stop it (Netflix'
concurrency limits give live and batch nine to one).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policies import latency
from policies.types import Attempt, Facts, Health, Site, SloClass, Value, WorkerState
from policies.weigh import Rules

BATCH_EVERY = 10
# What a prompt token costs beside an output token: a worker reads some fifty times faster than it
# writes, and what it reads takes memory as well.
PROMPT_WEIGHT = 0.05
# A forecast is a forecast: who leaves pays for it elsewhere, so it must be wrong by this much.
HOPELESS_FACTOR = 2.0


class Turns(Value, frozen=True, kw_only=True):
    """The tags of one class. virtual: tag of the request served last.

    finish: per tenant, where its next tag begins; those that are behind `virtual` are forgotten
    """

    virtual: float = 0.0
    finish: Mapping[str, float] = {}


def cost(facts: Facts) -> float:
    """What a request takes of the pool, in output tokens."""
    output = facts.choices * facts.output_tokens_likely
    return 1.0 + output + PROMPT_WEIGHT * facts.prompt_tokens_likely


def join(turns: Turns, facts: Facts) -> tuple[Turns, float]:
    """A request begins to wait. Its tag: the least is served first."""
    tag = max(turns.virtual, turns.finish.get(facts.tenant, 0.0))
    finish = {**turns.finish, facts.tenant: tag + cost(facts)}
    return Turns(virtual=turns.virtual, finish=finish), tag


def served(turns: Turns, tag: float) -> Turns:
    """The request with this tag got its slot."""
    virtual = max(turns.virtual, tag)
    return Turns(
        virtual=virtual,
        finish={tenant: at for tenant, at in turns.finish.items() if at > virtual},
    )


def left(turns: Turns, facts: Facts) -> Turns:
    """A request that had joined went away without a slot: its tenant does not pay for it. Its
    later ones keep the tags they have, and who comes next begins where they would have ended."""
    ends = turns.finish.get(facts.tenant, 0.0) - cost(facts)
    finish = {tenant: at for tenant, at in turns.finish.items() if tenant != facts.tenant}
    if ends > turns.virtual:
        finish[facts.tenant] = ends
    return Turns(virtual=turns.virtual, finish=finish)


def first_class(since_batch: int) -> SloClass:
    """Which class is looked at first. since_batch: turns of interactive requests while batch
    waited, since its last one."""
    return SloClass.BATCH if since_batch >= BATCH_EVERY - 1 else SloClass.INTERACTIVE


def patience_ms(
    facts: Facts, attempt: Attempt, elsewhere: Attempt | None, wanted_ms: float, rules: Rules
) -> float:
    """For how long after its arrival a request may wait for a slot: later than that it would not
    make it any more, counting what its own first token takes once it runs.

    elsewhere: the attempt that follows when it leaves the line; None: none does
    wanted_ms: the caller's deadline, or what its class is given
    """
    assert attempt.site is Site.LOCAL
    own_ms = max(0.0, attempt.ttft_ms - attempt.queued_ms)
    if elsewhere is not None:
        # late here may still be sooner than there: then the plan put this place first knowingly
        return max(0.0, max(wanted_ms, elsewhere.ttft_ms) - own_ms)
    if facts.deadline_ms is not None:
        return max(0.0, facts.deadline_ms - own_ms)
    return rules.patience_ms[facts.slo]


def hopeless(facts: Facts, workers: Sequence[WorkerState], *, ahead: int, left_ms: float) -> bool:
    """Whether a request with another place to go would wait in vain: its turn is predicted to come
    far behind its time, as when half of the pool has gone since it came.

    workers: those that fit it.   ahead: how many have their turn before it.   left_ms: its patience
    """
    there = [worker for worker in workers if worker.health is Health.UP]
    if not there:
        return False  # for those that come back there is a patience of its own
    slots = sum(worker.slots for worker in there)
    queued_ms = min(
        latency.of_worker(
            worker, facts, facts.prompt_tokens_likely, line_ahead=ahead * worker.slots / slots
        ).queued_ms
        for worker in there
    )
    return queued_ms > HOPELESS_FACTOR * max(0.0, left_ms)
