"""vLLM (its OpenAI server, v0.9 and later).

    tool_choice           its default is none, also when tools are given: OpenAI's auto is said
    thinking, effort      chat_template_kwargs.enable_thinking
    response_format regex structured_outputs.regex
    a prefix of the answer  continue_final_message, and add_generation_prompt must be false then
    cache_salt            parts its prefix cache between tenants and labels
    priority              an error unless its scheduler runs by priority: never sent
    reasoning             message.reasoning, delta.reasoning (once reasoning_content); both come in

Errors are {"error": {...}} with the HTTP status as code; a full queue is 503 (backends.chunks).
"""

from __future__ import annotations

from typing import Any

from backends.base import Call
from backends.engines.dialect import (
    as_members,
    changed,
    choices_of,
    continues,
    from_members,
    pattern_asked,
    rename,
    sent,
    switch_thinking,
)


class Vllm:
    name = "vllm"
    ours = False

    def encode(self, call: Call) -> bytes:
        chat = sent(call)
        members = as_members(chat)
        if chat.tools and chat.tool_choice is None:
            members["tool_choice"] = "auto"
        switch_thinking(members)
        if (pattern := pattern_asked(members)) is not None:
            members["structured_outputs"] = {"regex": pattern}
        if continues(chat):
            members |= {"continue_final_message": True, "add_generation_prompt": False}
        for message in members["messages"]:
            rename(message, "reasoning_content", "reasoning")
        if call.cache_salt is not None:
            members["cache_salt"] = call.cache_salt
        return from_members(members)

    def even(self, data: bytes) -> bytes:
        # in a text the quotes would be escaped, so this finds members only
        return changed(data, _even) if b'"reasoning"' in data else data


def _even(value: dict[str, Any]) -> None:
    for choice in choices_of(value):
        for part in ("delta", "message"):
            rename(choice.get(part), "reasoning", "reasoning_content")
