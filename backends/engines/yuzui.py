"""Our own worker, and any server that keeps to OpenAI's dialect: the common form is theirs."""

from __future__ import annotations

from typing import Any

from backends.base import Call
from backends.engines.dialect import encoded, sent, with_members


class Plain:
    """An OpenAI-compatible server of which nothing more is known: it is sent the common form, that
    is OpenAI's with whatever the caller added to it."""

    name = "openai"
    ours = False

    def encode(self, call: Call) -> bytes:
        return encoded(sent(call))

    def even(self, data: bytes) -> bytes:
        return data


class Yuzui(Plain):
    """Our own worker: it is also told whose caches a request may meet, and who goes first."""

    name = "yuzui"
    ours = True

    def encode(self, call: Call) -> bytes:
        members: dict[str, Any] = {}
        if call.cache_salt is not None:
            members["cache_salt"] = call.cache_salt
        if call.priority is not None:
            members["priority"] = call.priority
        return with_members(encoded(sent(call)), members)
