"""SGLang (its OpenAI server, v0.4.9 and later).

    thinking, effort      chat_template_kwargs.enable_thinking
    a prefix of the answer  continue_final_message alone: it has no add_generation_prompt
    structured_outputs    (vLLM's words) regex, or response_format with a JSON Schema; a
                          response_format of type regex is `regex`, too
    cache_salt            parts its prefix cache between tenants and labels
    priority              needs a scheduler that runs by it, and its direction is a flag: never sent
    stop information      matched_stop; everybody else says stop_reason
    usage                 reasoning_tokens stand beside the details and not in them

Errors are flat, {"object": "error", ...}, and wrapped in streams; a full queue is 503, and so is a
wait in it that took too long (backends.chunks).
"""

from __future__ import annotations

import re
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

# Its chunks carry these members always, mostly as null: only a value is worth reading the chunk.
_WORTH_READING = re.compile(rb'"matched_stop":\s*[^n\s]|"reasoning_tokens":\s*[1-9]')


class Sglang:
    name = "sglang"
    ours = False

    def encode(self, call: Call) -> bytes:
        chat = sent(call)
        members = as_members(chat)
        switch_thinking(members)
        members.pop("add_generation_prompt", None)
        if continues(chat):
            members["continue_final_message"] = True
        _structured(members)
        if call.cache_salt is not None:
            members["cache_salt"] = call.cache_salt
        return from_members(members)

    def even(self, data: bytes) -> bytes:
        return changed(data, _even) if _WORTH_READING.search(data) else data


def _structured(members: dict[str, Any]) -> None:
    if (pattern := pattern_asked(members)) is not None:
        members["regex"] = pattern
    asked = members.pop("structured_outputs", None)
    if not asked:
        return
    if asked.get("regex") is not None:
        members["regex"] = asked["regex"]
    elif asked.get("choice") is not None:
        members["regex"] = "|".join(re.escape(word) for word in asked["choice"])
    elif asked.get("json") is not None:
        schema = {"name": "answer", "schema": asked["json"]}
        members["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif asked.get("json_object"):
        members["response_format"] = {"type": "json_object"}


def _even(value: dict[str, Any]) -> None:
    for choice in choices_of(value):
        rename(choice, "matched_stop", "stop_reason")
    usage = value.get("usage")
    if isinstance(usage, dict) and (reasoning := usage.pop("reasoning_tokens", None)):
        details = usage.get("completion_tokens_details")
        found = details if isinstance(details, dict) else {}
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning, **found}
