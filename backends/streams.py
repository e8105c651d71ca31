"""An open stream of completion chunks, read to its end: the same for every engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from backends.base import Billed, Event, Failure, Kind
from backends.egress import Wire
from backends.sse import SseError, SseParser


async def batches(
    wire: Wire, read: Callable[[bytes], Event], *, whose: str, choices: int = 1
) -> AsyncIterator[list[Event]]:
    """Batches of events in order, one batch for each read of the socket.

    read:  one raw event -> Event, or raises the Failure that it means
    whose: who sends, for messages: "the engine", "the cloud"
    choices: how many answers were asked for

    Raises Failure, after the events that came before it. A stream without a finish reason for each
    of its choices is broken even if it says [DONE]: an answer may be half.
    """
    parser = SseParser()
    finished: set[int] = set()
    async for data in wire.chunks():
        batch: list[Event] = []
        failure: Failure | None = None
        try:
            for raw in parser.feed(data):
                event = read(raw)
                finished.update(event.finished)
                if event.done and len(finished) < choices:
                    raise broken(f"{whose}'s stream ended without a finish reason")
                batch.append(event)
                if event.done:
                    break
        except SseError:
            failure = broken(f"{whose} sent an event that is too long")
        except Failure as error:
            failure = error
        if batch:
            yield batch
            if batch[-1].done:
                await wire.end()
                return
        if failure is not None:
            raise failure
    if len(finished) < choices or parser.pending:
        raise broken(f"{whose}'s stream ended before its answer did")


def broken(message: str) -> Failure:
    """The answer cannot be used, and may have been billed."""
    return Failure(Kind.BROKEN, message, billed=Billed.MAYBE)
