"""The OpenAI chat dialect, under /v1 and, for the vendor's own SDK, under /api/v3.

Reading is an allow-list (backends.chat) plus the ranges below. A field that is not known is
ignored, as the OpenAI servers' own dialects differ in them; one that is known and wrong is refused
by name.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from backends.chat import ChatRequest
from gateway.errors import GatewayError
from gateway.wire.base import Asked

# Ranges are OpenAI's and Ark's documented ones, the narrower of the two.
OUTPUT_TOKENS_MAX = 65_536
MESSAGES_MAX = 2_048
TOOLS_MAX = 128
STOPS_MAX = 4
CHOICES_MAX = 8
JSON_DEPTH_MAX = 64  # of tools and schemas: they are encoded again, at any depth of our own stack
SEED_MIN, SEED_MAX = -(2**63), 2**63 - 1


class _Wire(ChatRequest, frozen=True, omit_defaults=True):
    """The caller's body: a ChatRequest and what only the gateway reads."""

    metadata: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET


_decoder = msgspec.json.Decoder(_Wire)
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")


class ChatDialect:
    """Request and answer of OpenAI chat; answers are passed on as they are."""

    name = "chat"

    def read(self, body: bytes) -> Asked:
        try:
            wire = _decoder.decode(body)
        except msgspec.ValidationError as error:
            raise invalid(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise GatewayError(
                400, "invalid_json", f"the body is not valid JSON: {error}"
            ) from None
        check(wire)
        label = None if wire.metadata is msgspec.UNSET else _label(body, wire.metadata or {})
        wants_usage = bool(wire.stream_options and wire.stream_options.include_usage)
        chat = msgspec.structs.replace(wire, metadata=msgspec.UNSET)
        return Asked(chat=chat, label=label, wants_usage=wants_usage)

    def answer(self, body: bytes) -> bytes:
        return body


def check(chat: ChatRequest) -> None:
    """Refuses values that no engine accepts, naming the field.

    Raises:
        GatewayError: 400 with `param` set.
    """
    _bounded("messages", len(chat.messages), 1, MESSAGES_MAX)
    _bounded("max_tokens", chat.max_tokens, 1, OUTPUT_TOKENS_MAX)
    _bounded("max_completion_tokens", chat.max_completion_tokens, 1, OUTPUT_TOKENS_MAX)
    _bounded("temperature", chat.temperature, 0, 2)
    _bounded("top_p", chat.top_p, 0, 1)
    _bounded("top_k", chat.top_k, -1, 1_000_000)
    _bounded("min_p", chat.min_p, 0, 1)
    _bounded("repetition_penalty", chat.repetition_penalty, 0.01, 10)
    _bounded("frequency_penalty", chat.frequency_penalty, -2, 2)
    _bounded("presence_penalty", chat.presence_penalty, -2, 2)
    _bounded("seed", chat.seed, SEED_MIN, SEED_MAX)
    _bounded("n", chat.n, 1, CHOICES_MAX)
    _bounded("top_logprobs", chat.top_logprobs, 0, 20)
    if isinstance(chat.stop, list):
        _bounded("stop", len(chat.stop), 0, STOPS_MAX)
    if chat.tools is not None:
        _bounded("tools", len(chat.tools), 0, TOOLS_MAX)
    for name in ("tools", "tool_choice", "response_format"):
        _shallow(name, getattr(chat, name))
    if chat.max_tokens is not None and chat.max_completion_tokens is not None:
        text = "give either max_tokens or max_completion_tokens, not both"
        raise GatewayError(400, "invalid_value", text, param="max_tokens")


def _label(body: bytes, metadata: dict[str, Any]) -> object:
    """metadata.sensitivity. Where a key is repeated and its values differ, all of them, which is no
    label that anybody knows: the last one alone must not make a document less sensitive."""
    if body.count(b'"sensitivity"') <= ("sensitivity" in metadata):
        return metadata.get("sensitivity")
    try:
        pairs = json.loads(body, object_pairs_hook=tuple)  # an object is a tuple, an array a list
    except (ValueError, RecursionError):  # stricter than msgspec, in what we do not read
        return []
    found = [
        value
        for name, inner in pairs
        if name == "metadata" and isinstance(inner, tuple)
        for key, value in inner
        if key == "sensitivity"
    ]
    return found if any(value != found[0] for value in found) else next(iter(found), None)


def _bounded(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        text = f"{name} must be from {low} to {high}, got {value}"
        raise GatewayError(400, "invalid_value", text, param=name)


def _shallow(name: str, value: Any) -> None:
    level = [value]
    for _ in range(JSON_DEPTH_MAX):
        inside = (
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list)
        )
        level = [inner for values in inside for inner in values]
        if not level:
            return
    text = f"{name} is nested more than {JSON_DEPTH_MAX} levels deep"
    raise GatewayError(400, "invalid_value", text, param=name)


def invalid(error: msgspec.ValidationError) -> GatewayError:
    """A 400 that names the field in `param`."""
    text = str(error)
    found = _PATH.search(text)
    param = found.group(1) if found else None
    reason = _PATH.sub("", text)
    message = f"{param}: {reason}" if param else reason
    return GatewayError(400, "invalid_value", message, param=param or None)
