"""The OpenAI chat dialect as typed values: what every backend is asked in.

Decoding is an allow-list: a field that is not named here never reaches an engine. Requests are sent
on by encoding these values again, not by relaying the caller's bytes, so that what was checked is
what is sent (a repeated key or an unknown field cannot mean one thing here and another upstream).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Json = Any  # a JSON value that is passed on as it is: tools, schemas

# Fields of OpenAI's and neighbouring dialects that change the answer and that nobody here honours,
# with what to do instead. They are refused by name: dropped, they would change the answer silently.
REFUSED = {
    "functions": "use `tools`",
    "function_call": "use `tool_choice`",
    "audio": "the models here write text",
    "web_search_options": "nothing is searched",
    "prompt_logprobs": "only the answer's `logprobs` are given",
    "echo": "the prompt is not repeated",
    "best_of": "use `n` and choose",
    "use_beam_search": "tokens are drawn one after the other",
    "length_penalty": "it belongs to beam search",
    "min_tokens": "leave it out",
    "bad_words": "use `logit_bias`",
    "allowed_token_ids": "use `structured_outputs`",
    "truncate_prompt_tokens": "shorten the messages",
    "thinking_token_budget": "use `max_tokens`, or `reasoning_effort` none",
    "include_stop_str_in_output": "the stop string is never part of the answer",
    "guided_json": "use `structured_outputs.json` or `response_format`",
    "guided_regex": "use `structured_outputs.regex`",
    "guided_choice": "use `structured_outputs.choice`",
    "guided_grammar": "use a JSON Schema or a regex",
    "regex": "use `structured_outputs.regex`",
    "ebnf": "use a JSON Schema or a regex",
    "chat_template": "the model's own template is used",
    "documents": "put them into the messages",
    "prompt_embeds": "send text and pictures",
    "lora_path": "name the adapter in `model`",
}

# `reasoning_effort` -> whether the model thinks. GLM thinks or it does not: the lowest efforts
# switch it off, as they do at Ark; and one word means the same wherever a request ends up.
EFFORTS = {"none": False, "minimal": False} | dict.fromkeys(
    ("low", "medium", "high", "xhigh", "max"), True
)

# `response_format.type`; regex, with `pattern`, is our own spelling of what all engines have.
FORMATS = ("text", "json_object", "json_schema", "regex")


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of the parts of a message's content."""


class TextPart(Part, tag_field="type", tag="text", frozen=True, omit_defaults=True):
    text: str


class ImageUrl(msgspec.Struct, frozen=True, omit_defaults=True):
    url: str
    detail: str | None = None


class ImagePart(Part, tag_field="type", tag="image_url", frozen=True, omit_defaults=True):
    image_url: ImageUrl


ContentPart = TextPart | ImagePart


class FunctionCall(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    arguments: str = ""


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    include_usage: bool | None = None


class Thinking(msgspec.Struct, frozen=True, omit_defaults=True):
    type: Literal["enabled", "disabled", "auto"]


class StructuredOutputs(
    msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True
):
    """vLLM's spelling of what an answer is held to; exactly one member is set."""

    json: Json | None = None
    regex: str | None = None
    choice: list[str] | None = None
    json_object: bool | None = None


class TemplateKwargs(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The one variable of the chat template that a caller may set (vLLM, SGLang)."""

    enable_thinking: bool | None = None


class ChatRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """One chat request; `None` means the caller said nothing. `gateway.wire` checks the ranges."""

    model: str
    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[Json] | None = None
    tool_choice: Json | None = None
    parallel_tool_calls: bool | None = None
    response_format: Json | None = None
    structured_outputs: StructuredOutputs | None = None
    reasoning_effort: str | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: TemplateKwargs | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    service_tier: str | None = None
    user: str | None = None
