"""The request side of the OpenAI chat dialect: JSON bytes -> a checked `ChatRequest`.

Pure: no model, no tokenizer, no clock. Unknown fields are ignored, as OpenAI-compatible engines do,
so that a client's extra fields never break a call; a known field with a wrong value is refused with
the name of the field, because a silently dropped limit is worse than an error.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from backends.glm.errors import WorkerError, bad_request

STOP_STRINGS_MAX = 4  # OpenAI's limit for `stop`
DEFAULT_MAX_TOKENS = 1024  # a full answer with some thinking; a runaway one ends within a minute
TEMPERATURE_MAX = 2.0  # OpenAI's range; above it the text is noise
SEED_MIN, SEED_MAX = -(2**63), 2**63 - 1  # what JSON integers of the SDKs and torch both accept
TOP_LOGPROBS_OFF = (None, 0)

ROLES = ("system", "developer", "user", "assistant", "tool")
Role = Literal["system", "developer", "user", "assistant", "tool"]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Thinking(msgspec.Struct):
    type: Literal["enabled", "disabled", "auto"] | None = None


class _FunctionCall(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] = ""


class _ToolCall(msgspec.Struct):
    function: _FunctionCall
    id: str | None = None
    type: str = "function"


class _Message(msgspec.Struct):
    role: Role
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None


class _Body(msgspec.Struct):
    """The fields this worker reads; everything else in the body is ignored."""

    model: str
    messages: list[_Message]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking: _Thinking | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call the assistant made in an earlier turn; arguments are decoded from their JSON text."""

    name: str
    arguments: dict[str, Any]


class TextPart(msgspec.Struct, frozen=True):
    """Text of a message."""

    text: str


class ImagePart(msgspec.Struct, frozen=True):
    """A picture of a message: the `url` as sent (only data URLs are accepted later on)."""

    url: str


Part = TextPart | ImagePart


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn. `role` is one that GLM's chat template knows (`developer` became `system`)."""

    role: Literal["system", "user", "assistant", "tool"]
    parts: tuple[Part, ...]
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


class SamplingOverrides(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller set; None leaves the checkpoint's own default in force."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A chat request that has passed every check that needs no model."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: SamplingOverrides = SamplingOverrides()
    enable_thinking: bool | None = None


_decoder = msgspec.json.Decoder(_Body)


def parse_chat(raw: bytes) -> ChatRequest:
    """Decode and check a request body.

    Raises: WorkerError 400 that names the field, also for what this worker cannot do yet.
    """
    try:
        body = _decoder.decode(raw)
    except msgspec.ValidationError as error:
        text = str(error)  # names types and the path, never the value
        raise bad_request(f"Invalid request: {text}", param=_path_of(text)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise bad_request("The request body is not valid JSON.") from None
    _refuse_unsupported(body)
    if not body.messages:
        raise bad_request("`messages` must not be empty.", param="messages")
    return ChatRequest(
        model=body.model,
        messages=tuple(_message(m, f"messages[{i}]") for i, m in enumerate(body.messages)),
        tools=_tools(body),
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        max_tokens=_max_tokens(body),
        stop=_stop(body.stop),
        sampling=_sampling(body),
        enable_thinking=_enable_thinking(body),
    )


def _path_of(text: str) -> str | None:
    """The field in msgspec's message: "... - at `$.messages[0].role`" -> "messages[0].role"."""
    _, found, tail = text.rpartition("`$")
    return (tail.rstrip("`").lstrip(".") or None) if found else None


def _unsupported(what: str, param: str) -> WorkerError:
    return bad_request(
        f"{what} is not supported yet by this worker.", param=param, code="unsupported_parameter"
    )


def _refuse_unsupported(body: _Body) -> None:
    if body.n not in (None, 1):
        raise _unsupported("`n` other than 1", "n")
    if body.logprobs or body.top_logprobs not in TOP_LOGPROBS_OFF:
        raise _unsupported("`logprobs`", "logprobs")
    if body.response_format is not None and body.response_format.get("type") != "text":
        raise _unsupported("`response_format` other than text", "response_format")
    if body.tool_choice not in (None, "auto", "none"):
        raise _unsupported("`tool_choice` other than auto and none", "tool_choice")


def _tools(body: _Body) -> tuple[dict[str, Any], ...]:
    if not body.tools or body.tool_choice == "none":
        return ()
    for index, tool in enumerate(body.tools):
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad_request("A tool needs `function.name`.", param=f"tools[{index}]")
    return tuple(body.tools)


def _max_tokens(body: _Body) -> int | None:
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    value = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if value is not None and value < 1:
        raise bad_request(f"`{name}` must be at least 1.", param=name)
    return value


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > STOP_STRINGS_MAX:
        raise bad_request(f"`stop` takes at most {STOP_STRINGS_MAX} strings.", param="stop")
    if not all(strings):
        raise bad_request("`stop` must not contain an empty string.", param="stop")
    return strings


def _sampling(body: _Body) -> SamplingOverrides:
    def within(name: str, low: float, high: float, value: float | None) -> None:
        if value is not None and not low <= value <= high:  # refuses NaN as well
            raise bad_request(f"`{name}` must be between {low} and {high}.", param=name)

    within("temperature", 0.0, TEMPERATURE_MAX, body.temperature)
    within("top_p", 0.0, 1.0, body.top_p)
    within("top_k", -1, 2**31, body.top_k)
    within("repetition_penalty", 0.01, 10.0, body.repetition_penalty)
    within("seed", SEED_MIN, SEED_MAX, body.seed)
    return SamplingOverrides(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        repetition_penalty=body.repetition_penalty,
        seed=body.seed,
    )


def _enable_thinking(body: _Body) -> bool | None:
    """The thinking switch; the most specific spelling wins, None leaves it to the template."""
    kwargs = body.chat_template_kwargs or {}
    flag = kwargs.get("enable_thinking")
    if flag is not None:
        if not isinstance(flag, bool):
            name = "chat_template_kwargs.enable_thinking"
            raise bad_request(f"`{name}` must be true or false.", param=name)
        return flag
    if body.thinking is not None and body.thinking.type in ("enabled", "disabled"):
        return body.thinking.type == "enabled"
    if body.reasoning_effort is not None:
        return body.reasoning_effort != "none"
    return None


def _message(message: _Message, where: str) -> Message:
    reasoning, parts = message.reasoning_content, _parts(message.content, where)
    if message.role == "assistant" and reasoning is None:
        reasoning, parts = _split_thought(parts)
    calls = tuple(
        ToolCall(
            name=call.function.name,
            arguments=_arguments(call.function.arguments, f"{where}.tool_calls[{i}]"),
        )
        for i, call in enumerate(message.tool_calls or ())
    )
    if not parts and not calls and message.role != "assistant":
        raise bad_request("A message needs `content`.", param=f"{where}.content")
    role = "system" if message.role == "developer" else message.role
    return Message(role=role, parts=parts, reasoning=reasoning, tool_calls=calls)


def _parts(content: str | list[dict[str, Any]] | None, where: str) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    return tuple(_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))


def _part(part: dict[str, Any], where: str) -> Part:
    match part.get("type"):
        case "text":
            text = part.get("text")
            if not isinstance(text, str):
                raise bad_request("A text part needs `text`.", param=f"{where}.text")
            return TextPart(text)
        case "image_url":
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, dict) else image
            if not isinstance(url, str):
                raise bad_request("An image part needs `image_url.url`.", param=where)
            return ImagePart(url)
        case _:
            raise bad_request(
                "Content parts must be of type text or image_url.",
                param=f"{where}.type",
                code="invalid_content_part",
            )


def _split_thought(parts: tuple[Part, ...]) -> tuple[str | None, tuple[Part, ...]]:
    """Take a thought out of an assistant turn that a client sent back unsplit.

    GLM's template does this itself by looking for `</think>` in the content. It cannot here,
    because control literals in content are neutralised before it sees them.
    """
    if len(parts) != 1 or not isinstance(parts[0], TextPart):
        return None, parts
    thought, found, answer = parts[0].text.partition("</think>")
    if not found:
        return None, parts
    return thought.replace("<think>", "", 1).strip("\n"), (TextPart(answer.lstrip("\n")),)


def _arguments(arguments: str | dict[str, Any], where: str) -> dict[str, Any]:
    """OpenAI sends arguments as JSON text; GLM's template iterates over a dict."""
    if isinstance(arguments, dict):
        return arguments
    try:
        value = msgspec.json.decode(arguments) if arguments.strip() else {}
    except (msgspec.DecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise bad_request(
            "Tool call arguments must be a JSON object.", param=f"{where}.function.arguments"
        )
    return value
