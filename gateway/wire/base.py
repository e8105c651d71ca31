"""What a client dialect is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from backends.chat import ChatRequest


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request as read from the wire.

    label:       value of metadata.sensitivity, None when absent
    wants_usage: the client asked for a usage chunk at the end of its stream
    metadata:    what stood beside it there, for labels of budgets
    """

    chat: ChatRequest
    label: object | None = None
    wants_usage: bool = False
    metadata: Mapping[str, object] = msgspec.field(default_factory=dict)


class Dialect(Protocol):
    """Turns bytes into a request, and an engine's plain answer into the client's bytes."""

    name: str

    def read(self, body: bytes) -> Asked:
        """Raises GatewayError (400) that names the field."""
        ...

    def answer(self, body: bytes) -> bytes:
        """The plain answer of an engine (chat.completion JSON) in this dialect."""
        ...
