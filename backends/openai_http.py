"""Any engine that speaks OpenAI's chat dialect over HTTP: our worker, vLLM, SGLang.

open     Call -> POST <base><model_path> -> HttpReply, or the Failure that the status means
body     the whole answer as bytes, with the usage read from it
events   one batch of events per read of the socket; the bytes of each event are the engine's own,
         unless its dialect (backends.engines) differs from the others there

How long the request held a slot: our worker says so (`yuzui.slot_ms` in the answer or in the usage
chunk); for any other engine it is the time from sending to the end of the answer.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping

import msgspec

from backends.base import Call, Event, Failure, Kind
from backends.chunks import read_body, read_event
from backends.egress import Egress, EgressDenied, Wire
from backends.engines.dialect import Dialect
from backends.engines.yuzui import Plain
from backends.refusals import failure_of, read_error, retry_after_of
from backends.sse import data_of
from backends.sse import encode as sse_encode
from backends.streams import batches, broken
from policies.types import Usage

# A whole answer: 131,072 tokens with logprobs are some 20 MB; nothing sensible is longer.
BODY_BYTES_MAX = 32 * 1024 * 1024
# An error body is looked at for its code; more of it is not worth waiting for.
ERROR_BYTES_MAX = 64 * 1024


class OpenAIHttpBackend:
    """One engine. Keeps nothing between calls but its address and how it is spoken to.

    dialect: may be set later, when the engine has been recognised
    """

    def __init__(
        self,
        egress: Egress,
        base_url: str,
        *,
        model_path: str = "/v1/chat/completions",
        dialect: Dialect | None = None,
        headers: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`base_url`: scheme, host, port and perhaps a path; the egress must allow it. `headers`:
        sent with every call, such as a key of the engine's."""
        self.dialect: Dialect = dialect or Plain()
        self._headers = dict(headers or {})
        self._egress = egress
        self._url = base_url.rstrip("/") + model_path
        self._clock = clock

    async def open(self, call: Call) -> HttpReply:
        """Sends the call; returns when the status is good. Raises Failure."""
        began_s = self._clock()
        try:
            wire = await self._egress.open(
                "POST",
                self._url,
                headers={
                    **self._headers,
                    "content-type": "application/json",
                    "accept": "text/event-stream" if call.stream else "application/json",
                    "x-request-id": call.request_id,
                },
                body=self.dialect.encode(call),
                timeouts=call.timeouts,
            )
        except EgressDenied:  # it has left the pool, or its name leads where nobody may go
            raise Failure(Kind.CONNECT, "the engine may not be connected to") from None
        try:
            await _expect_answer(wire, stream=call.stream, ours=self.dialect.ours)
        except BaseException:
            await wire.close()
            raise
        return HttpReply(wire, began_s, self._clock, choices=call.chat.n or 1, dialect=self.dialect)


class HttpReply:
    """An open answer of an OpenAI-compatible engine. See `backends.base.Reply`."""

    def __init__(
        self,
        wire: Wire,
        began_s: float,
        clock: Callable[[], float],
        *,
        choices: int = 1,
        dialect: Dialect | None = None,
    ) -> None:
        """`choices`: answers that were asked for; each takes a slot."""
        # most engines need none of it, and a stream has many events
        self._even = None if dialect is None or isinstance(dialect, Plain) else dialect.even
        self._wire = wire
        self._choices = choices
        self._began_s = began_s
        self._clock = clock

    async def body(self) -> tuple[bytes, Usage | None]:
        """The whole answer and its usage. Raises Failure."""
        body = await self._wire.read(BODY_BYTES_MAX)
        body = body if self._even is None else self._even(body)
        usage, _ = read_body(body)
        return body, self._timed(usage)

    def events(self) -> AsyncIterator[list[Event]]:
        """Batches of events in order. Raises Failure, after the events that came before it."""
        return batches(self._wire, self._read, whose="the engine", choices=self._choices)

    async def close(self) -> None:
        """Keeps the connection when the answer was read to its end, else cuts it."""
        await self._wire.close()

    def _timed(self, usage: Usage | None) -> Usage | None:
        if usage is None or usage.slot_ms:
            return usage
        measured_ms = max(1, round((self._clock() - self._began_s) * 1000)) * self._choices
        return msgspec.structs.replace(usage, slot_ms=measured_ms)

    def _read(self, raw: bytes) -> Event:
        if self._even is not None and (data := data_of(raw)) is not None:
            evened = self._even(data)
            raw = raw if evened is data else sse_encode(evened)
        event = read_event(raw)
        if event.usage is None:
            return event
        return msgspec.structs.replace(event, usage=self._timed(event.usage))


async def _expect_answer(wire: Wire, *, stream: bool, ours: bool) -> None:
    """Returns if the head of the answer is what was asked for, else raises its Failure."""
    kind = wire.headers.get("content-type", "").partition(";")[0].strip().lower()
    if wire.status == 200 and (kind == "text/event-stream") == stream:
        return
    retry_after_s = retry_after_of(wire.headers.get("retry-after"))
    try:
        body = await wire.read(ERROR_BYTES_MAX)
    except Failure:
        body = b""  # the status says enough
    if wire.status == 200:
        read_body(body)  # raises what an error body with a good status names
        raise broken("the engine answered in another form than it was asked for")
    raise failure_of(wire.status, read_error(body), retry_after_s=retry_after_s, ours=ours)
