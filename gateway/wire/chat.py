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

from backends.chat import EFFORTS, FORMATS, REFUSED, ChatRequest, StructuredOutputs
from backends.limits import (
    CHOICES_MAX,
    FORM_BYTES_MAX,
    LOGIT_BIAS_ABS_MAX,
    LOGIT_BIAS_MAX,
    PENALTY_ABS_MAX,
    REPETITION_MAX,
    REPETITION_MIN,
    SEED_MAX,
    SEED_MIN,
    STOP_CHARS_MAX,
    STOP_IDS_MAX,
    STOPS_MAX,
    TEMPERATURE_MAX,
    TOOLS_MAX,
    TOP_K_MAX,
    TOP_LOGPROBS_MAX,
)
from backends.surrogates import HALF_CHARACTER, half_character
from gateway.errors import GatewayError
from gateway.wire.base import Asked

# Beside `backends.limits`. Ark gives no more in one answer; of a wish for more it is a limit, too.
OUTPUT_TOKENS_MAX = 65_536
MESSAGES_MAX = 2_048
TOKEN_ID_MAX = 2**31 - 1
JSON_DEPTH_MAX = 64  # of tools and schemas: they are encoded again, at any depth of our own stack


class _Wire(ChatRequest, frozen=True, omit_defaults=True):
    """The caller's body: a ChatRequest and what only the gateway reads."""

    metadata: dict[str, Any] | msgspec.UnsetType | None = msgspec.UNSET
    modalities: list[str] | None = None


# What is refused may be null or, where it is a switch, off: the decoder sees to it by their types.
_SWITCHES = ("echo", "use_beam_search", "include_stop_str_in_output")
_Body = msgspec.defstruct(
    "_Body",
    [(name, bool | None if name in _SWITCHES else None, None) for name in REFUSED],
    bases=(_Wire,),
    frozen=True,
    omit_defaults=True,
)
# Members of the body that no engine is sent.
_OURS = {"metadata": msgspec.UNSET, "modalities": None, **dict.fromkeys(_SWITCHES)}
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Body)
_MISSING = re.compile(r"missing required field `([^`]+)`")
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
            raise _unreadable(body, error) from None
        _refuse(wire)
        check(wire)
        structured = _schema_read(wire.structured_outputs)
        metadata = {} if wire.metadata is msgspec.UNSET else wire.metadata or {}
        label = None if wire.metadata is msgspec.UNSET else _label(body, metadata)
        wants_usage = bool(wire.stream_options and wire.stream_options.include_usage)
        chat = msgspec.structs.replace(wire, **_OURS, structured_outputs=structured)
        return Asked(chat=chat, label=label, wants_usage=wants_usage, metadata=metadata)

    def answer(self, body: bytes) -> bytes:
        return body


def check(chat: ChatRequest) -> None:
    """Refuses values that no engine accepts, naming the field.

    Raises:
        GatewayError: 400 with `param` set.
    """
    _bounded("the number of messages", len(chat.messages), 1, MESSAGES_MAX, param="messages")
    _bounded("max_tokens", chat.max_tokens, 1, OUTPUT_TOKENS_MAX)
    _bounded("max_completion_tokens", chat.max_completion_tokens, 1, OUTPUT_TOKENS_MAX)
    _bounded("temperature", chat.temperature, 0, TEMPERATURE_MAX)
    _bounded("top_p", chat.top_p, 0, 1)
    _bounded("top_k", chat.top_k, -1, TOP_K_MAX)
    _bounded("min_p", chat.min_p, 0, 1)
    _bounded("repetition_penalty", chat.repetition_penalty, REPETITION_MIN, REPETITION_MAX)
    _bounded("frequency_penalty", chat.frequency_penalty, -PENALTY_ABS_MAX, PENALTY_ABS_MAX)
    _bounded("presence_penalty", chat.presence_penalty, -PENALTY_ABS_MAX, PENALTY_ABS_MAX)
    _bounded("seed", chat.seed, SEED_MIN, SEED_MAX)
    _bounded("n", chat.n, 1, CHOICES_MAX)
    _bounded("top_logprobs", chat.top_logprobs, 0, TOP_LOGPROBS_MAX)
    if chat.top_logprobs and not chat.logprobs:
        raise GatewayError(
            400, "invalid_value", "top_logprobs needs logprobs: true", param="top_logprobs"
        )
    _check_stops(chat)
    _check_forms(chat)
    if chat.tools is not None:
        _bounded("the number of tools", len(chat.tools), 0, TOOLS_MAX, param="tools")
    if chat.max_tokens is not None and chat.max_completion_tokens is not None:
        text = "give either max_tokens or max_completion_tokens, not both"
        raise GatewayError(400, "invalid_value", text, param="max_tokens")


def _refuse(wire: Any) -> None:
    """What the types do not refuse already."""
    for name in _SWITCHES:
        if getattr(wire, name):
            raise _unsupported(name)
    if wire.modalities not in (None, [], ["text"]):
        text = 'modalities must be ["text"]'
        raise GatewayError(400, "unsupported_parameter", text, param="modalities")


def _check_stops(chat: ChatRequest) -> None:
    stops = [chat.stop] if isinstance(chat.stop, str) else (chat.stop or [])
    _bounded("the number of stop strings", len(stops), 0, STOPS_MAX, param="stop")
    for text in stops:
        _bounded("the length of stop", len(text), 1, STOP_CHARS_MAX, param="stop")
    ids = chat.stop_token_ids or []
    _bounded("the number of stop_token_ids", len(ids), 0, STOP_IDS_MAX, param="stop_token_ids")
    for token_id in ids:
        _bounded("stop_token_ids", token_id, 0, TOKEN_ID_MAX)


def _check_forms(chat: ChatRequest) -> None:
    """What an engine compiles, and what shifts its tokens."""
    bias = chat.logit_bias or {}
    _bounded("the number of logit_bias", len(bias), 0, LOGIT_BIAS_MAX, param="logit_bias")
    for token_id, value in bias.items():
        if not (token_id.isascii() and token_id.isdecimal() and len(token_id) <= 9):
            text = "logit_bias maps token ids to numbers"
            raise GatewayError(400, "invalid_value", text, param="logit_bias")
        _bounded("logit_bias", value, -LOGIT_BIAS_ABS_MAX, LOGIT_BIAS_ABS_MAX)
    if chat.reasoning_effort is not None and chat.reasoning_effort not in EFFORTS:
        text = f"reasoning_effort must be one of {', '.join(EFFORTS)}"
        raise GatewayError(400, "invalid_value", text, param="reasoning_effort")
    structured = chat.structured_outputs
    for name in ("tools", "tool_choice", "response_format"):
        _shallow(name, getattr(chat, name))
    if structured is not None:
        _shallow("structured_outputs", structured.json)
    for name, form in (
        ("response_format", chat.response_format),
        ("structured_outputs", structured),
    ):
        if form is not None:
            size = len(msgspec.json.encode(form))
            _bounded(f"the size of {name} in bytes", size, 0, FORM_BYTES_MAX, param=name)
    _check_format(chat.response_format, structured)


def _check_format(wanted: Any, structured: StructuredOutputs | None) -> None:
    """One form at most, and one that everybody here knows: engines differ in what they make of
    others, and some ignore them."""
    if structured is not None:
        if wanted not in (None, {"type": "text"}):
            text = "give either response_format or structured_outputs, not both"
            raise GatewayError(400, "invalid_value", text, param="structured_outputs")
        fields = structured.__struct_fields__
        if sum(getattr(structured, name) is not None for name in fields) != 1:
            text = f"structured_outputs takes exactly one of {', '.join(fields)}"
            raise GatewayError(400, "invalid_value", text, param="structured_outputs")
    if wanted is None:
        return
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind not in FORMATS:
        text = f"response_format.type must be one of {', '.join(FORMATS)}"
        raise GatewayError(400, "invalid_value", text, param="response_format.type")
    inner = wanted.get("json_schema")
    if kind == "json_schema" and not (
        isinstance(inner, dict) and isinstance(inner.get("schema"), dict)
    ):
        param = "response_format.json_schema.schema"
        raise GatewayError(
            400, "invalid_value", f"{param} must be a JSON Schema object", param=param
        )
    if kind == "regex" and not (isinstance(wanted.get("pattern"), str) and wanted["pattern"]):
        param = "response_format.pattern"
        raise GatewayError(
            400, "invalid_value", f"{param} must be a regular expression", param=param
        )


def _schema_read(structured: StructuredOutputs | None) -> StructuredOutputs | None:
    """vLLM also takes the schema as JSON text; here it is an object from now on."""
    if structured is None or structured.json is None:
        return structured
    schema = structured.json
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            schema = None
    if not isinstance(schema, dict):
        param = "structured_outputs.json"
        raise GatewayError(
            400, "invalid_value", f"{param} must be a JSON Schema object", param=param
        )
    _shallow("structured_outputs", schema)
    return msgspec.structs.replace(structured, json=schema)


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


def _bounded(
    name: str, value: float | None, low: float, high: float, *, param: str | None = None
) -> None:
    if value is not None and not low <= value <= high:
        least, most = (f"{end:g}" if isinstance(end, float) else end for end in (low, high))
        text = f"{name} must be from {least} to {most}, got {value}"
        raise GatewayError(400, "invalid_value", text, param=param or name)


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


def _unsupported(name: str) -> GatewayError:
    text = f"{name} is not supported: {REFUSED[name]}"
    return GatewayError(400, "unsupported_parameter", text, param=name)


def _unreadable(body: bytes, error: Exception) -> GatewayError:
    text = f"the body is not valid JSON: {error}"
    if half_character(body):
        text = f"the body {HALF_CHARACTER}"
    return GatewayError(400, "invalid_json", text)


def invalid(error: msgspec.ValidationError) -> GatewayError:
    """A 400 that names the field in `param`."""
    text = str(error)
    found = _PATH.search(text)
    param = found.group(1) if found else None
    if missing := _MISSING.search(text):
        param = f"{param}.{missing.group(1)}" if param else missing.group(1)
    if param in REFUSED:
        return _unsupported(param)
    reason = _PATH.sub("", text)
    message = f"{param}: {reason}" if param else reason
    return GatewayError(400, "invalid_value", message, param=param or None)
