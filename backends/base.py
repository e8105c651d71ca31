"""What a backend is: something that opens one call and yields its events.

Failure            the call did not end well; says whose fault, whether it may have been billed
                   and whether it is safe to try elsewhere
Call               one attempt, ready to be sent
Reply              an open answer: status already good, body not yet read
Backend.open()     Call -> Reply, or raises Failure
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Protocol

import msgspec

from backends.chat import ChatRequest
from policies.types import CloudPermit, Usage


class Fault(StrEnum):
    """Whose fault a failure is."""

    CALLER = "caller"
    UPSTREAM = "upstream"
    GATEWAY = "gateway"


class Kind(StrEnum):
    """What went wrong, independent of the engine's dialect."""

    CONNECT = "connect"  # nothing was sent
    BUSY = "busy"  # the engine refused before working
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    QUOTA = "quota"  # the account has no money or allowance left
    AUTH = "auth"
    NOT_FOUND = "not_found"  # model or endpoint unknown upstream
    BAD_REQUEST = "bad_request"
    CONTEXT = "context"  # too long for this engine
    CONTENT_FILTER = "content_filter"
    SERVER_ERROR = "server_error"
    TIMEOUT_FIRST = "timeout_first"  # no answer within the time to the first byte
    TIMEOUT_IDLE = "timeout_idle"  # silent in mid-stream
    TIMEOUT_TOTAL = "timeout_total"
    BROKEN = "broken"  # connection lost or nonsense received


class Billed(StrEnum):
    """Whether the provider may have charged for the failed call."""

    NO = "no"
    MAYBE = "maybe"


class Failure(Exception):
    """A call that did not end well.

    `message` is safe to show to the caller: no key, no internal address, and nobody's prompt but
    perhaps a piece of his own. It is for him alone and is never logged.
    `param` names the field at fault, where the engine named one that callers have.
    `elsewhere` says whether another target may be asked the same.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        fault: Fault = Fault.UPSTREAM,
        billed: Billed = Billed.NO,
        elsewhere: bool = True,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        alert: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.fault = fault
        self.billed = billed
        self.elsewhere = elsewhere
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.alert = alert


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one call in seconds; all four are always set."""

    connect_s: float
    first_s: float  # request sent -> first byte of the answer
    idle_s: float  # between two reads of a stream
    total_s: float


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt, ready to be sent. `chat.model` is the upstream's own name already.

    cache_salt: requests with different salts never share a cached prefix (engines of one's own)
    priority:   who goes first inside of our own worker: the lesser number
    """

    request_id: str
    chat: ChatRequest
    output_tokens_max: int
    timeouts: Timeouts
    stream: bool
    permit: CloudPermit | None = None
    cache_salt: str | None = None
    priority: int | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One server-sent event of a stream, as received and as understood.

    raw: the event's bytes with its blank line, ready to be relayed.
    """

    raw: bytes
    has_delta: bool = False  # carries text, reasoning or a tool call
    finish_reason: str | None = None
    finished: tuple[int, ...] = ()  # indices of the choices that end with this event
    usage: Usage | None = None
    choices_empty: bool = False  # a usage-only chunk
    done: bool = False  # data: [DONE]


class Reply(Protocol):
    """An open answer. Exactly one of `body()` and `events()` is used; `close()` always.

    body:    the whole answer as bytes and its usage (None: the engine reported none).
             Raises Failure.
    events:  batches of events in order, one batch per read of the socket. A stream that ends
             without `[DONE]` and without a finish reason raises Failure(Kind.BROKEN); an in-band
             error raises the Failure it names.
    close:   gives the connection back, or cuts it when the answer was not read to its end, which
             tells the engine to stop.
    """

    async def body(self) -> tuple[bytes, Usage | None]: ...

    def events(self) -> AsyncIterator[list[Event]]: ...

    async def close(self) -> None: ...


class Backend(Protocol):
    """Carries one call to one engine."""

    async def open(self, call: Call) -> Reply:
        """Sends the call; returns when the status is good. Raises Failure."""
        ...
