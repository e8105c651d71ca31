"""What is answered: made up, deterministic, and saying so.

The text names what was seen, so that a test can tell that a picture arrived whole; it never
repeats what it was asked.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import cycle, islice
from typing import Any

import msgspec

from backends.ark.emulator.asked import Asked, seal
from backends.ark.emulator.faults import Fault
from backends.ark.emulator.settings import Settings
from backends.ark.emulator.tokens import is_chinese, pieces, words_in

DEFAULT_MAX_TOKENS = 4096  # of the visible answer, when no limit is given
SUMMARY_SHARE = 4  # a summary shows one token for so many of the reasoning
_SCHEMA_DEPTH_MAX = 8
_SIMPLE = {"string": "emulated", "integer": 1, "number": 1.0, "boolean": True, "null": None}


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a function in an answer."""

    id: str
    name: str


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer before it is spoken. A piece of text is one token.

    content: pieces of the text, or of the arguments when `tool` is set.
    """

    reasoning: list[str]
    reasoning_tokens: int  # of the original, which a summary shortens
    sealed: str | None  # encrypted_content
    content: list[str]
    tool: ToolUse | None
    finish_reason: str
    moderation: str | None


def compose(asked: Asked, settings: Settings, fault: Fault) -> Answer:
    """The answer to a request, cut to its limits. The same request has the same answer."""
    digest = blake2b(
        b"".join((*asked.prefix_hashes, asked.last_text.encode("utf-8", "surrogatepass"))),
        key=str(settings.seed).encode(),
        digest_size=24,
    ).hexdigest()
    content, tool = _content(asked, digest)
    length = fault.answer_tokens
    if length is None and tool is None and asked.response_format is None:
        length = settings.answer_tokens
    if length is not None:
        content = list(islice(cycle(content), length))
    thought = _reasoning_tokens(asked, settings, fault)
    kept_thought, kept = _cut(asked, thought, len(content))
    shown = kept_thought
    summary = asked.target.known.reasoning_summary
    if summary:
        shown = -(-kept_thought // SUMMARY_SHARE)
    finish = "tool_calls" if tool is not None else "stop"
    if kept_thought < thought or kept < len(content):
        finish = "length"
    if fault.moderation is not None:
        finish = "content_filter"
    return Answer(
        reasoning=list(
            islice(cycle(pieces("Emulated reasoning, there is no thought here. ")), shown)
        ),
        reasoning_tokens=kept_thought,
        sealed=seal(digest[:16], settings.seed) if summary and kept_thought else None,
        content=content[:kept],
        tool=tool,
        finish_reason=finish,
        moderation=fault.moderation,
    )


def _reasoning_tokens(asked: Asked, settings: Settings, fault: Fault) -> int:
    if asked.effort == "minimal":
        return 0
    if fault.reasoning_tokens is not None:
        return fault.reasoning_tokens
    return settings.reasoning_tokens.get(asked.effort, 0)


def _cut(asked: Asked, thought: int, content: int) -> tuple[int, int]:
    """Tokens kept of reasoning and answer: max_completion_tokens bounds both, max_tokens the
    answer alone, the context everything."""
    room = asked.target.known.traits.context_tokens - asked.prompt_tokens
    if asked.max_completion_tokens is not None:
        room = min(room, asked.max_completion_tokens)
    else:
        content = min(content, asked.max_tokens or DEFAULT_MAX_TOKENS)
    thought = min(thought, room)
    return thought, min(content, room - thought)


def _content(asked: Asked, digest: str) -> tuple[list[str], ToolUse | None]:
    if asked.tools and asked.tool_choice not in (None, "auto", "none"):
        function = _chosen(asked)
        tool = ToolUse(id=f"call_{digest[:24]}", name=function["name"])
        arguments = msgspec.json.encode(_instance(function.get("parameters"), 0)).decode()
        return pieces(arguments), tool
    if asked.response_format is not None:
        schema = asked.response_format.get("json_schema", {}).get("schema")
        value = {"emulated": True, "saw": sentence(asked)}
        if schema is not None:
            value = _instance(schema, 0)
        return pieces(msgspec.json.encode(value).decode()), None
    return pieces(sentence(asked)), None


def sentence(asked: Asked) -> str:
    """What was seen, in the language of the last message."""
    sizes = ", ".join(f"{width}x{height}" for width, height in asked.picture_sizes)
    words = words_in(asked.last_text)
    if is_chinese(asked.last_text):
        seen = f"{len(asked.picture_sizes)} 张图片（{sizes}）" if sizes else "没有图片"
        return (
            f"这是模拟回答，并非真实模型：鱼嘴方舟模拟器代替 {asked.target.served} 收到 "
            f"{asked.message_count} 条消息，{seen}，最后一段约 {words} 个词。"
        )
    pictures = f"{len(asked.picture_sizes)} picture(s) ({sizes})" if sizes else "no picture"
    return (
        f"This is an emulated answer, not a real one: the Yuzui Ark emulator stands in for "
        f"{asked.target.served} and saw {asked.message_count} message(s), {pictures} and "
        f"{words} word(s) in the last text."
    )


def _chosen(asked: Asked) -> dict[str, Any]:
    """The function that tool_choice names, or the first."""
    functions: list[dict[str, Any]] = [tool["function"] for tool in asked.tools]
    if isinstance(asked.tool_choice, dict):
        wanted = asked.tool_choice.get("function", {}).get("name")
        return next((one for one in functions if one["name"] == wanted), functions[0])
    return functions[0]


def _instance(schema: Any, depth: int) -> Any:
    """A small value that fits a JSON schema of the common kinds; {} for what is not understood."""
    if not isinstance(schema, dict) or depth > _SCHEMA_DEPTH_MAX:
        return {}
    choices, properties, kind = schema.get("enum"), schema.get("properties"), schema.get("type")
    if isinstance(choices, list) and choices:
        return choices[0]
    if isinstance(kind, list) and kind:
        kind = kind[0]
    if kind == "array":
        return [_instance(schema.get("items"), depth + 1)]
    if isinstance(kind, str) and kind in _SIMPLE:
        return _SIMPLE[kind]
    if isinstance(properties, dict):
        return {str(name): _instance(inner, depth + 1) for name, inner in properties.items()}
    return {}
