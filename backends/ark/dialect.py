"""A chat request in Ark's words: ChatRequest -> body of POST /chat/completions. Pure.

Whitelist: what is sent is built here, name by name, from what Ark documents (docs 82379/1494384).
What the caller asked beyond that is either

    stripped  when the answer means the same without it (seed, user, metadata, a penalty of style)
    refused   when it does not (n > 1, logprobs, a stop word): Failure BAD_REQUEST, the caller's
              fault, with `elsewhere`: another engine may do what Ark cannot

Which of the two, and for which models, stands in `models.ArkModel` and in the functions below.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from backends.ark.models import COMPLETION_TOKENS_MAX, ArkModel, Thinks
from backends.base import Call, Failure, Fault, Kind
from backends.chat import ChatRequest, ContentPart, ImagePart, Message, TextPart
from policies.types import Capability

BODY_KEYS = frozenset(
    {
        "model",
        "messages",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "thinking",
        "reasoning_effort",
        "temperature",
        "top_p",
        "frequency_penalty",
        "presence_penalty",
        "stop",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "service_tier",
    }
)
"""Every name that a body may have at its top; a test holds it against what is really sent."""

STOPS_MAX = 4
TOP_P_DEFAULT = 1.0  # OpenAI's and our workers'; Ark's own is 0.7, which answers otherwise

_OFF = ("none", "minimal")
_ENCODER = msgspec.json.Encoder()


def encode(call: Call, model: ArkModel) -> bytes:
    """The body for one call. `model` is what is known of `call.chat.model`. Raises Failure."""
    return _ENCODER.encode(translate(call, model))


def translate(call: Call, model: ArkModel) -> dict[str, Any]:
    """The body as a dict, see `encode`. Raises Failure."""
    chat = call.chat
    _refuse_undocumented(chat)
    body: dict[str, Any] = {
        "model": chat.model,
        "messages": [_message(message, model) for message in chat.messages],
        **_output_limit(call.output_tokens_max, model),
        **_thinking(chat, model),
        **_sampling(chat, model),
        **_tools(chat, model),
        **_response_format(chat, model),
    }
    if call.stream:
        body["stream"] = True
        # Always: without it a stream of most models ends without a bill.
        body["stream_options"] = {"include_usage": True}
    if chat.service_tier == "default":
        # `auto` is Ark's default. `priority` would be `fast`, which costs two to three times what
        # was reserved; `flex` has no documented counterpart: both are asked at the normal tier.
        body["service_tier"] = "default"
    return body


def _refuse_undocumented(chat: ChatRequest) -> None:
    """What Ark has no word for, and without which the answer would be another one. A last message
    of the assistant is continued there as it is here; only the opposite cannot be said."""
    if (chat.n or 1) > 1:
        raise _refusal("n", "more than one choice")
    if chat.stop_token_ids:
        raise _refusal("stop_token_ids", "stop token ids")
    if chat.ignore_eos:
        raise _refusal("ignore_eos", "answers without an end")
    anew = chat.continue_final_message is False or (
        chat.add_generation_prompt and not chat.continue_final_message
    )
    if anew and chat.messages[-1].role == "assistant":
        raise _refusal("continue_final_message", "a new turn after a turn of the assistant")


def _refusal(param: str, what: str) -> Failure:
    return Failure(
        Kind.BAD_REQUEST,
        f"the cloud model does not support {what} (param {param})",
        fault=Fault.CALLER,
        elsewhere=True,
        status=400,
        code="unsupported_parameter",
    )


def _output_limit(tokens: int, model: ArkModel) -> dict[str, int]:
    """The one limit that is sent; Ark refuses both together.

    For a model that thinks it is max_completion_tokens, which bounds reasoning and answer. With
    max_tokens only the answer is bounded (64 allowed, 110 billed was measured), and the money that
    is held would be less than what may be spent. A model that does not think has no reasoning, and
    the older generation documents max_tokens alone.
    """
    tokens = max(1, min(tokens, model.traits.output_tokens_max))
    if model.thinks is Thinks.NEVER:
        return {"max_tokens": tokens}
    return {"max_completion_tokens": min(tokens, COMPLETION_TOKENS_MAX)}


# -- messages --------------------------------------------------------------------------------------


def _message(message: Message, model: ArkModel) -> dict[str, Any]:
    """One message. `developer` is `system` here; `name` is not documented and dropped."""
    role = "system" if message.role == "developer" else message.role
    sent: dict[str, Any] = {"role": role}
    if isinstance(message.content, list):
        sent["content"] = [_part(part, model) for part in message.content]
    elif message.content is not None:
        sent["content"] = message.content
    if message.role == "assistant" and message.reasoning_content is not None:
        sent["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        sent["tool_calls"] = [
            {
                "id": call.id,
                "type": call.type,
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        sent["tool_call_id"] = message.tool_call_id
    return sent


def _part(part: ContentPart, model: ArkModel) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": _image(part, model)}


def _image(part: ImagePart, model: ArkModel) -> dict[str, str]:
    """`auto` is left out: what it means is the model's default, which differs by family."""
    rule = model.image_rule
    if rule is None:
        raise _refusal("messages", "pictures")
    image = {"url": part.image_url.url}
    detail = part.image_url.detail
    if detail in (None, "auto"):
        return image
    if detail not in rule.details:
        raise _refusal("messages", "this image detail")
    return image | {"detail": detail}


# -- thinking --------------------------------------------------------------------------------------


def _thinking(chat: ChatRequest, model: ArkModel) -> dict[str, Any]:
    """`thinking` and `reasoning_effort`, each as far as the model has it (docs 82379/1449737).

    A caller who says nothing of either gets no thinking where it can be switched off. Ark's default
    is to think, within the same output limit: a request for 64 tokens that overflowed from a local
    worker would come back empty, later, and dearer.
    """
    sent: dict[str, Any] = {}
    switch = chat.thinking.type if chat.thinking is not None else None
    effort = chat.reasoning_effort
    kwargs = chat.chat_template_kwargs
    if kwargs is not None and kwargs.enable_thinking is not None:
        # The spelling of the engines on the premises, and there the one that counts.
        switch, effort = ("enabled", effort) if kwargs.enable_thinking else ("disabled", None)
        effort = None if effort in _OFF else effort
    if model.thinks is Thinks.NEVER:
        if switch == "enabled":
            raise _refusal("thinking", "thinking")
        return sent  # an effort is a wish, and "none" is what this model does
    if switch == "disabled" and effort not in (None, *_OFF):
        raise _refusal("reasoning_effort", "an effort with thinking disabled")
    if switch == "disabled" and model.thinks is Thinks.ALWAYS:
        raise _refusal("thinking", "switching thinking off")
    if switch is None and effort is None and model.thinks is Thinks.SWITCH:
        switch = "disabled"
    if switch == "auto" and not model.thinking_auto:
        switch = None  # "as you like": what the model does when nothing is said
    if switch is not None:
        sent["thinking"] = {"type": switch}
    if effort is None:
        return sent
    if model.efforts is None:
        if effort in _OFF:  # the switch says the same
            sent["thinking"] = {"type": "disabled"}
        return sent
    mapped = model.efforts.send.get(effort)
    if mapped is None:
        raise _refusal("reasoning_effort", "this reasoning effort")
    return sent | {"reasoning_effort": mapped}


# -- sampling --------------------------------------------------------------------------------------


def _sampling(chat: ChatRequest, model: ArkModel) -> dict[str, Any]:
    """Sampling. seed, top_k, min_p and repetition_penalty are not documented and stripped: they
    steer which of many right answers comes."""
    sent: dict[str, Any] = {}
    if not model.temperature_fixed and chat.temperature is not None:
        sent["temperature"] = chat.temperature
    if not model.top_p_fixed:
        sent["top_p"] = TOP_P_DEFAULT if chat.top_p is None else chat.top_p
    if model.penalties and not _has_pictures(chat):
        # Refused by Ark from seed-1.8 on and with pictures; a matter of style, so stripped there.
        for name in ("frequency_penalty", "presence_penalty"):
            if (penalty := getattr(chat, name)) is not None:
                sent[name] = penalty
    stops = [chat.stop] if isinstance(chat.stop, str) else (chat.stop or [])
    wanted: list[tuple[str, Any]] = [
        ("stop", stops),
        ("logprobs", chat.logprobs),
        ("top_logprobs", chat.top_logprobs),
        ("logit_bias", chat.logit_bias),
    ]
    for name, value in wanted:
        if not value:
            continue  # [], {}, false and 0 ask for nothing
        if model.thinks is not Thinks.NEVER:
            # The answer would run on, or lack what was asked for: not the same answer.
            raise _refusal(name, name)
        sent[name] = value
    if len(stops) > STOPS_MAX:
        raise _refusal("stop", f"more than {STOPS_MAX} stop words")
    return sent


def _has_pictures(chat: ChatRequest) -> bool:
    return any(
        isinstance(part, ImagePart)
        for message in chat.messages
        if isinstance(message.content, list)
        for part in message.content
    )


# -- tools and formats -----------------------------------------------------------------------------


def _tools(chat: ChatRequest, model: ArkModel) -> dict[str, Any]:
    """Function tools. Without any, tool_choice and parallel_tool_calls mean nothing."""
    if not chat.tools:
        return {}
    if not all(isinstance(tool, dict) and tool.get("type") == "function" for tool in chat.tools):
        raise _refusal("tools", "tools other than functions")
    sent: dict[str, Any] = {"tools": chat.tools}
    choice = chat.tool_choice
    if choice is not None:
        if choice not in ("none", "auto") and not model.tool_choice_forced:
            raise _refusal("tool_choice", "a forced tool choice")
        sent["tool_choice"] = choice
    if chat.parallel_tool_calls is False:
        if not model.parallel_off:
            raise _refusal("parallel_tool_calls", "calling one tool at a time")
        sent["parallel_tool_calls"] = False
    return sent


def _response_format(chat: ChatRequest, model: ArkModel) -> dict[str, Any]:
    """`text` is the default and left out; vLLM's spelling becomes OpenAI's where it can."""
    wanted, param, structured = chat.response_format, "response_format", chat.structured_outputs
    if structured is not None:
        param = "structured_outputs"
        if structured.json_object:
            wanted = {"type": "json_object"}
        elif isinstance(structured.json, Mapping):
            inner = {"name": "answer", "schema": structured.json}
            wanted = {"type": "json_schema", "json_schema": inner}
        else:
            raise _refusal(param, "patterns and choices")
    if wanted is None:
        return {}
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "text":
        return {}
    if kind not in ("json_object", "json_schema") or not model.can(Capability.STRUCTURED):
        raise _refusal(param, "this response format")
    return {"response_format": wanted}
