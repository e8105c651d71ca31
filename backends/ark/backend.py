"""Volcano Engine Ark as a backend: one call over the documented REST API, relayed as bytes.

open     permit first, then Call -> POST <base>/chat/completions -> ArkReply, or the Failure that
         Ark's error code means
body     the whole answer as bytes, with the usage read from its raw JSON
events   one batch of events per read of the socket; the bytes of each event are Ark's own

The vendor's client is not used here: it costs 2 ms of CPU a call, drops the usage fields that it
does not know, repeats requests that may have been billed, and takes a stream that breaks off for
one that has ended.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from hashlib import blake2b

from backends.ark import dialect, errors
from backends.ark.models import ArkModel, model_of
from backends.base import Call, Event, Failure, Kind
from backends.chunks import read_body, read_event
from backends.egress import Egress, EgressDenied, Wire
from backends.sse import data_of
from backends.streams import batches, broken
from policies.types import STRICTEST, CloudPermit, Usage

# A whole answer: 65,536 tokens with reasoning are under 2 MB; nothing sensible is longer.
BODY_BYTES_MAX = 32 * 1024 * 1024
# An error body is looked at for its code; more of it is not worth waiting for.
ERROR_BYTES_MAX = 64 * 1024


class ArkBackend:
    """One account at Ark. Keeps nothing between calls but its address and its key."""

    def __init__(
        self,
        egress: Egress,
        base_url: str,
        api_key: str,
        *,
        families: Mapping[str, str] | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """base_url: with the path, e.g. https://ark.cn-beijing.volces.com/api/v3; the egress must
        allow it. families: model or endpoint id -> a key of `models.FAMILIES`, for ids that do not
        tell. Raises ValueError for an empty key, KeyError for a family that does not exist.
        """
        if not api_key:
            raise ValueError("the API key for Ark is empty")
        self._egress = egress
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._authorization = f"Bearer {api_key}"
        self._cache_key = blake2b(api_key.encode(), digest_size=32).digest()
        self._models = {name: model_of(name, family) for name, family in (families or {}).items()}
        self._wall_clock = wall_clock

    def __repr__(self) -> str:
        return f"ArkBackend({self._url!r})"  # never the key

    async def open(self, call: Call) -> ArkReply:
        """Sends the call; returns when the status is good.

        Raises PermissionError when the call carries no permit for this very request: before
        anything is built, so that data which must stay cannot even be put into a body. Raises
        Failure for everything else.
        """
        permit = call.permit
        if not isinstance(permit, CloudPermit) or permit.request_id != call.request_id:
            raise PermissionError("no permit to send this request to the cloud")
        if permit.level >= STRICTEST:  # nobody makes such a permit; if somebody does, it is void
            raise PermissionError("data of the strictest label never leaves")
        model = self._models.get(call.chat.model) or model_of(call.chat.model)
        body = dialect.encode(call, model)
        try:
            wire = await self._egress.open(
                "POST",
                self._url,
                headers=self._headers(call, model),
                body=body,
                timeouts=call.timeouts,
            )
        except EgressDenied:  # its name leads where nobody may go
            raise Failure(Kind.CONNECT, "Ark may not be connected to") from None
        try:
            await self._expect_answer(wire, stream=call.stream)
        except BaseException:
            await wire.close()
            raise
        return ArkReply(wire, self._wall_clock)

    def _headers(self, call: Call, model: ArkModel) -> dict[str, str]:
        headers = {
            "authorization": self._authorization,
            "content-type": "application/json",
            "accept": "text/event-stream" if call.stream else "application/json",
            "accept-encoding": "identity",
            "x-client-request-id": call.request_id,
        }
        if model.cache_prefix_tokens is not None and call.chat.user:
            # Leads the requests of one user to the same implicit cache. Keyed, so that it tells
            # nobody who the user is.
            user = blake2b(call.chat.user.encode(), key=self._cache_key, digest_size=16)
            headers["x-prompt-cache-id"] = user.hexdigest()
        return headers

    async def _expect_answer(self, wire: Wire, *, stream: bool) -> None:
        """Returns if the head of the answer is what was asked for, else raises its Failure."""
        kind = wire.headers.get("content-type", "").partition(";")[0].strip().lower()
        if wire.status == 200 and (kind == "text/event-stream") == stream:
            return
        try:
            body = await wire.read(ERROR_BYTES_MAX)
        except Failure:
            body = b""  # the status says enough
        if wire.status == 200:
            read_body(body)  # raises what an error body with a good status names
            raise broken("the cloud answered in another form than it was asked for")
        raise errors.failure_of(wire.status, wire.headers, body, now_s=self._wall_clock())


class ArkReply:
    """An open answer of Ark. See `backends.base.Reply`."""

    def __init__(self, wire: Wire, wall_clock: Callable[[], float]) -> None:
        self._wire = wire
        self._wall_clock = wall_clock

    async def body(self) -> tuple[bytes, Usage | None]:
        """The whole answer and its usage. Raises Failure."""
        body = await self._wire.read(BODY_BYTES_MAX)
        try:
            usage, _ = read_body(body)
        except Failure as failure:
            raise errors.in_band(failure, body, now_s=self._wall_clock()) from None
        return body, usage

    def events(self) -> AsyncIterator[list[Event]]:
        """Batches of events in order. Raises Failure, after the events that came before it."""
        return batches(self._wire, self._read, whose="the cloud")

    async def close(self) -> None:
        """Keeps the connection when the answer was read to its end, else cuts it."""
        await self._wire.close()

    def _read(self, raw: bytes) -> Event:
        try:
            return read_event(raw)
        except Failure as failure:
            data = data_of(raw) or b""
            raise errors.in_band(failure, data, now_s=self._wall_clock()) from None
