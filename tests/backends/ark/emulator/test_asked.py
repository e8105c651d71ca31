"""No body, however wrong, is more than a refusal: one place of a valid body is replaced."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from backends.ark.emulator.answer import compose
from backends.ark.emulator.asked import Asked, read, target_of
from backends.ark.emulator.faults import NO_FAULT, Refused
from policies.tokens import text_tokens_max
from tests.backends.ark.kit import GLM_5_3, SEED_1_5, SEED_1_6, SEED_2_1, data_url, fast

SETTINGS = fast()
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["a", "b"]},
        "many": {"type": "array", "items": {"type": "integer"}},
        "some": {"type": ["string", "null"]},
    },
}
FUNCTION = {"name": "look", "parameters": SCHEMA}
PICTURE = {
    "url": data_url(20, 20),
    "detail": "low",
    "image_pixel_limit": {"min_pixels": 200, "max_pixels": 4000},
}
PICTURED = [
    {"role": "system", "content": "json please"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": PICTURE}],
    },
]
LOOP = [
    {"role": "user", "content": "json please"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "look"}}],
    },
    {"role": "tool", "tool_call_id": "1", "content": "a door"},
]
BODIES: list[dict[str, Any]] = [
    {
        "model": SEED_2_1,
        "messages": LOOP,
        "stream": True,
        "stream_options": {"include_usage": True, "chunk_include_usage": True},
        "max_completion_tokens": 50,
        "thinking": {"type": "enabled"},
        "reasoning_effort": "low",
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
        "service_tier": "default",
    },
    {
        "model": SEED_1_6,
        "messages": PICTURED,
        "max_tokens": 50,
        "temperature": 1,
        "top_p": 0.5,
        "n": 1,
        "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}},
    },
    {
        "model": SEED_1_5,
        "messages": LOOP[:1],
        "stop": ["a", "b"],
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"7": 1},
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "response_format": {"type": "json_object"},
    },
    {"model": GLM_5_3, "messages": PICTURED, "reasoning_effort": "max"},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, the value itself left out."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


PLACES = [(index, path) for index, body in enumerate(BODIES) for path in places(body)]
_json = st.one_of(
    st.sampled_from(
        [None, True, 0, -1, 10**20, 1.5, "", "x", [], {}, [1], [[]], [{}], {"type": 1}]
    ),
    st.recursive(
        st.one_of(st.none(), st.integers(), st.text(max_size=3)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)
        ),
        max_leaves=4,
    ),
)


def ask(body: dict[str, Any]) -> Asked | None:
    """None: refused."""
    try:
        asked = read(body, target_of(body.get("model"), SETTINGS), SETTINGS)
    except Refused:
        return None
    compose(asked, SETTINGS, NO_FAULT)
    return asked


def test_the_bodies_are_valid() -> None:
    assert all(ask(body) for body in BODIES)


@settings(max_examples=600, deadline=None)
@given(place=st.sampled_from(PLACES), value=_json)
def test_whatever_is_asked(place: tuple[int, tuple[Any, ...]], value: Any) -> None:
    body = copy.deepcopy(BODIES[place[0]])
    *way, last = place[1]
    inner: Any = body
    for key in way:
        inner = inner[key]
    inner[last] = value
    asked = ask(body)
    assert asked is None or asked.prompt_tokens >= 4


@given(
    texts=st.lists(st.text(max_size=60), min_size=1, max_size=4),
    name=st.text("abc_", min_size=1, max_size=5),
    arguments=st.text(max_size=20),
)
def test_no_prompt_is_counted_above_what_is_held_for_it(
    texts: list[str], name: str, arguments: str
) -> None:
    used = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    messages = [
        *({"role": "user", "content": text} for text in texts),
        {"role": "assistant", "content": None, "tool_calls": [used, used]},
    ]
    asked = ask({"model": SEED_2_1, "messages": messages})
    assert asked is not None
    sizes = sum(len(text.encode()) for text in (*texts, name, name, arguments, arguments))
    assert asked.prompt_tokens <= text_tokens_max(sizes, messages=len(messages))
