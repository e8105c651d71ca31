"""The life of one attempt and of its hold, as a table.

    RESERVED   money is held; the request is on its way, and nobody has accepted it yet
    OPEN       the request is with the engine, nothing has reached the client
    DELIVERING bytes of the answer have reached the client: no other attempt can take over
    OVER       the hold is resolved; nothing more may happen

Events are what the wires report, commands what the gateway must do. The table is total: a pair that
is not in it cannot happen, and `step` says so instead of guessing about money.

How a hold ends:

    VOID    nothing can have been billed: the money is free again, no ledger row
    METER   the engine reported its usage: post that
    NOTHING post zero, so that the exchange leaves its row
    BOUND   it may have been billed and nobody told us how much: post the whole hold, to be
            reconciled with the bill (Ark charges a request whose client has left)
"""

from __future__ import annotations

from enum import StrEnum

from policies.types import Value


class Phase(StrEnum):
    RESERVED = "reserved"
    OPEN = "open"
    DELIVERING = "delivering"
    OVER = "over"


class Event(StrEnum):
    OPENED = "opened"  # the engine accepted; headers are here
    DELIVERED = "delivered"  # first bytes written to the client
    FINISHED = "finished"  # whole answer, usage known
    UNMETERED = "unmetered"  # whole answer, but the engine reported no usage
    REFUSED = "refused"  # failed and certainly not billed
    LOST = "lost"  # failed, perhaps billed
    CLIENT_GONE = "client_gone"
    CURTAILED = "curtailed"  # we ended a local stream, because its hold could not grow


class Resolve(StrEnum):
    VOID = "void"
    METER = "meter"
    NOTHING = "nothing"
    BOUND = "bound"


class Then(StrEnum):
    CONTINUE = "continue"
    NEXT = "next"  # the next attempt of the plan
    FAIL = "fail"  # an error answer: nothing has reached the client
    BREAK = "break"  # an in-band error, and never a [DONE]
    END = "end"


class Step(Value, frozen=True, kw_only=True):
    phase: Phase
    resolve: Resolve | None
    then: Then


def _step(phase: Phase, resolve: Resolve | None, then: Then) -> Step:
    return Step(phase=phase, resolve=resolve, then=then)


_OVER = Phase.OVER
_TABLE: dict[tuple[Phase, Event], Step] = {
    (Phase.RESERVED, Event.OPENED): _step(Phase.OPEN, None, Then.CONTINUE),
    (Phase.RESERVED, Event.REFUSED): _step(_OVER, Resolve.VOID, Then.NEXT),
    (Phase.RESERVED, Event.LOST): _step(_OVER, Resolve.BOUND, Then.NEXT),
    (Phase.RESERVED, Event.CLIENT_GONE): _step(_OVER, Resolve.BOUND, Then.END),
    (Phase.OPEN, Event.DELIVERED): _step(Phase.DELIVERING, None, Then.CONTINUE),
    (Phase.OPEN, Event.FINISHED): _step(_OVER, Resolve.METER, Then.END),
    (Phase.OPEN, Event.UNMETERED): _step(_OVER, Resolve.BOUND, Then.END),
    (Phase.OPEN, Event.REFUSED): _step(_OVER, Resolve.VOID, Then.NEXT),
    (Phase.OPEN, Event.LOST): _step(_OVER, Resolve.BOUND, Then.NEXT),
    (Phase.OPEN, Event.CLIENT_GONE): _step(_OVER, Resolve.BOUND, Then.END),
    (Phase.OPEN, Event.CURTAILED): _step(_OVER, Resolve.BOUND, Then.END),
    (Phase.DELIVERING, Event.CURTAILED): _step(_OVER, Resolve.BOUND, Then.END),
    (Phase.DELIVERING, Event.FINISHED): _step(_OVER, Resolve.METER, Then.END),
    (Phase.DELIVERING, Event.UNMETERED): _step(_OVER, Resolve.BOUND, Then.END),
    (Phase.DELIVERING, Event.REFUSED): _step(_OVER, Resolve.BOUND, Then.BREAK),
    (Phase.DELIVERING, Event.LOST): _step(_OVER, Resolve.BOUND, Then.BREAK),
    (Phase.DELIVERING, Event.CLIENT_GONE): _step(_OVER, Resolve.BOUND, Then.END),
}


def step(phase: Phase, event: Event, *, more: bool) -> Step:
    """What follows. more: another attempt may be made (plan, failure and retry budget allow it).

    Without one, NEXT becomes FAIL, and a hold that would be voided is posted as zero instead, so
    that an exchange which reserved money always leaves exactly one final row.

    Raises:
        ValueError: the pair cannot happen; the caller has a bug.
    """
    found = _TABLE.get((phase, event))
    if found is None:
        raise ValueError(f"an attempt in phase {phase} cannot see {event}")
    if found.then is not Then.NEXT or more:
        return found
    resolve = Resolve.NOTHING if found.resolve is Resolve.VOID else found.resolve
    return Step(phase=found.phase, resolve=resolve, then=Then.FAIL)
