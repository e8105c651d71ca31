"""A request means the same to the gateway and to our own worker: both take it, or neither does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.glm.errors import WorkerError
from backends.glm.request.protocol import parse_chat
from backends.limits import (
    FORM_BYTES_MAX,
    LOGIT_BIAS_MAX,
    SEED_MAX,
    SEED_MIN,
    STOP_CHARS_MAX,
    STOP_IDS_MAX,
    STOPS_MAX,
    TOOLS_MAX,
    TOP_K_MAX,
)
from gateway.errors import GatewayError
from gateway.wire.chat import ChatDialect


def tools(count: int) -> dict[str, Any]:
    named = [{"type": "function", "function": {"name": f"f{n}"}} for n in range(count)]
    return {"tools": named}


def schema(size: int) -> dict[str, Any]:
    inner = {"schema": {"description": "x" * (size - 18)}}
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


# what both take, at the edge; what neither takes, just beyond it
PAIRS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 2}, {"temperature": 2.1}),
    ({"temperature": 0}, {"temperature": -0.1}),
    ({"top_p": 1}, {"top_p": 1.1}),
    ({"min_p": 0}, {"min_p": -0.1}),
    ({"top_k": TOP_K_MAX}, {"top_k": TOP_K_MAX + 1}),
    ({"top_k": -1}, {"top_k": -2}),
    ({"repetition_penalty": 10}, {"repetition_penalty": 10.1}),
    ({"repetition_penalty": 0.01}, {"repetition_penalty": 0}),
    ({"frequency_penalty": -2}, {"frequency_penalty": -2.1}),
    ({"presence_penalty": 2}, {"presence_penalty": 2.1}),
    ({"seed": SEED_MAX}, {"seed": SEED_MAX + 1}),
    ({"seed": SEED_MIN}, {"seed": SEED_MIN - 1}),
    ({"logprobs": True, "top_logprobs": 20}, {"logprobs": True, "top_logprobs": 21}),
    ({"stop": ["x"] * STOPS_MAX}, {"stop": ["x"] * (STOPS_MAX + 1)}),
    ({"stop": "x" * STOP_CHARS_MAX}, {"stop": "x" * (STOP_CHARS_MAX + 1)}),
    ({"stop_token_ids": [0] * STOP_IDS_MAX}, {"stop_token_ids": [0] * (STOP_IDS_MAX + 1)}),
    ({"logit_bias": {str(n): 100 for n in range(LOGIT_BIAS_MAX)}},
     {"logit_bias": {str(n): 100 for n in range(LOGIT_BIAS_MAX + 1)}}),
    ({"logit_bias": {"1": -100}}, {"logit_bias": {"1": -100.5}}),
    (tools(TOOLS_MAX), tools(TOOLS_MAX + 1)),
    (schema(FORM_BYTES_MAX - 200), schema(FORM_BYTES_MAX + 1)),
    ({"max_tokens": 1}, {"max_tokens": 0}),
    ({"max_completion_tokens": 9}, {"max_completion_tokens": 9, "max_tokens": 9}),
    ({"reasoning_effort": "minimal"}, {"reasoning_effort": "banana"}),
    ({"response_format": {"type": "regex", "pattern": "a"}}, {"response_format": {"type": "a"}}),
    ({"structured_outputs": {"json": "{}"}}, {"structured_outputs": {"json": "["}}),
    ({"structured_outputs": {"regex": "a"}}, {"structured_outputs": {"regex": "a", "json": {}}}),
    ({}, {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}),
]  # fmt: skip


def body(fields: dict[str, Any]) -> bytes:
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    ).encode()


@pytest.mark.parametrize(("taken", "refused"), PAIRS)
def test_both_take_it_or_neither(taken: dict[str, Any], refused: dict[str, Any]) -> None:
    gateway = ChatDialect()
    gateway.read(body(taken))
    parse_chat(body(taken))
    with pytest.raises(GatewayError) as at_gateway:
        gateway.read(body(refused))
    with pytest.raises(WorkerError) as at_worker:
        parse_chat(body(refused))
    # they name the same field, the worker perhaps which of its elements
    named = str(at_gateway.value.param)
    assert str(at_worker.value.param).startswith(named.split(".")[0])
