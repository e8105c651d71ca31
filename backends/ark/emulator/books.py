"""What was received and what was charged. Never a text, never a key.

`Received` is one row for each request, also for those that were refused: with it a test proves that
none reached the cloud. `Charged` is one row for each request that cost something: the basis of a
bill. A client that leaves pays for its input and for what was generated until then (FAQ 1359411).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec


class Received(msgspec.Struct, kw_only=True):
    """One request as it arrived; `status`, `code` and tokens are filled in as it goes on."""

    seq: int
    at_s: float  # wall clock
    server_id: str
    client_request_id: str | None
    path: str
    account: str | None = None
    model: str | None = None
    stream: bool = False
    images: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    status: int | None = None
    code: str | None = None
    state: str = "open"  # open | answered | refused | client_left | cut | dropped


class Charged(msgspec.Struct, kw_only=True):
    """One request that is paid for."""

    seq: int
    server_id: str
    client_request_id: str | None
    account: str
    model: str  # the version that served
    endpoint: str | None
    service_tier: str
    stream: bool
    started_s: float
    ended_s: float
    prompt_tokens: int
    cached_tokens: int
    image_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    state: str  # answered | client_left | cut | moderated


_Row = TypeVar("_Row")


class _Log(Generic[_Row]):
    """The latest rows, numbered from 0 in the order in which they came."""

    def __init__(self, rows_max: int) -> None:
        self.rows: deque[_Row] = deque(maxlen=rows_max)
        self.count = 0

    def add(self, row: _Row) -> None:
        self.rows.append(row)
        self.count += 1

    def page(self, start: int, limit: int) -> dict[str, Any]:
        """Rows from number `start` on, at most `limit`, and where the next page starts."""
        dropped = self.count - len(self.rows)
        first = max(start, dropped)
        rows = [row for number, row in enumerate(self.rows, dropped) if number >= first][:limit]
        return {"total": self.count, "dropped": dropped, "next": first + len(rows), "rows": rows}


class Books:
    """Both logs and the counters. on_charge: told of every request that is paid for."""

    def __init__(self, rows_max: int, *, on_charge: Callable[[Charged], None]) -> None:
        self._on_charge = on_charge
        self.received: _Log[Received] = _Log(rows_max)
        self.charged: _Log[Charged] = _Log(rows_max)
        self.by_status: Counter[str] = Counter()
        self.by_code: Counter[str] = Counter()
        self.by_state: Counter[str] = Counter()
        self.by_model: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.running = 0
        self.running_max = 0

    def arrive(self, row: Received) -> None:
        self.received.add(row)
        self.running += 1
        self.running_max = max(self.running_max, self.running)

    def leave(self, row: Received) -> None:
        """The request has ended, one way or another; `row` says how."""
        self.running -= 1
        self.by_state[row.state] += 1
        if row.status is not None:
            self.by_status[str(row.status)] += 1
        if row.code is not None:
            self.by_code[row.code] += 1
        if row.model is not None:
            self.by_model[row.model] += 1

    def charge(self, row: Charged) -> None:
        self.charged.add(row)
        self._on_charge(row)
        for kind in ("prompt", "cached", "image", "completion", "reasoning"):
            self.tokens[kind] += getattr(row, f"{kind}_tokens")

    def stats(self) -> dict[str, Any]:
        return {
            "received": self.received.count,
            "charged": self.charged.count,
            "running": self.running,
            "running_max": self.running_max,
            "by_status": self.by_status,
            "by_code": self.by_code,
            "by_state": self.by_state,
            "by_model": self.by_model,
            "tokens": self.tokens,
        }
