"""The request side of the OpenAI chat dialect: JSON bytes -> a checked `ChatRequest`.

Pure: no model, no tokenizer, no clock. A known field with a wrong value is refused with the name of
the field, and so is one that changes the answer and that this worker does not honour: a silently
dropped limit is worse than an error. Fields that change nothing about the answer (`user`, `store`,
`metadata`) and those of other dialects that nobody knows are ignored, as engines of this kind do.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from backends.chat import EFFORTS, REFUSED, StructuredOutputs
from backends.glm.answer.forms import Form, Tools, read_form, read_tools
from backends.glm.errors import WorkerError, bad_request
from backends.glm.request.messages import ImagePart, Message, WireMessage, read_message
from backends.glm.types import SamplingOverrides
from backends.limits import (
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
    TOP_K_MAX,
    TOP_LOGPROBS_MAX,
)
from backends.surrogates import HALF_CHARACTER, half_character

DEFAULT_MAX_TOKENS = 1024  # a full answer with some thinking; a runaway one ends within a minute


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Thinking(msgspec.Struct):
    type: Literal["enabled", "disabled", "auto"] | None = None


class _Fields(msgspec.Struct):
    """The fields that this worker reads."""

    model: str
    messages: list[WireMessage]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    n: int | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    thinking: _Thinking | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    modalities: list[str] | None = None
    cache_salt: str | None = None
    priority: int | None = None


_Body = msgspec.defstruct(
    "_Body",
    [(name, Any, None) for name in REFUSED],
    bases=(_Fields,),
)


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A chat request that has passed every check that needs no model.

    `n`: answers wanted; `stop_ids`: further token ids that end an answer; `ignore_eos`: the
    checkpoint's own do not; `continues`: the last message is the assistant's and is written on;
    `cache_salt`: who may share what is cached, and whose turn it is; `priority`: lower goes first
    (both as vLLM has them).
    """

    model: str
    messages: tuple[Message, ...]
    tools: Tools = Tools()
    form: Form | None = None
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    sampling: SamplingOverrides = SamplingOverrides()
    enable_thinking: bool | None = None
    continues: bool = False
    cache_salt: str = ""
    priority: int = 0

    @property
    def has_pictures(self) -> bool:
        """Whether any of its messages holds one."""
        return any(isinstance(part, ImagePart) for m in self.messages for part in m.parts)


_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Body)


def parse_chat(raw: bytes | bytearray) -> ChatRequest:
    """Decode and check a request body.

    Raises: WorkerError 400 that names the field, also for what this worker does not do.
    """
    try:
        body = _decoder.decode(raw)
    except msgspec.ValidationError as error:
        text = str(error)  # names types and the path, never the value
        raise bad_request(f"Invalid request: {text}", param=_path_of(text)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        if half_character(raw):
            raise bad_request(f"The request body {HALF_CHARACTER}.", code="invalid_text") from None
        raise bad_request("The request body is not valid JSON.") from None
    _refuse_unsupported(body)
    if not body.messages:
        raise bad_request("`messages` must not be empty.", param="messages")
    messages = tuple(read_message(m, f"messages[{i}]") for i, m in enumerate(body.messages))
    if body.n is not None and body.n < 1:
        raise bad_request("`n` must be at least 1.", param="n")
    return ChatRequest(
        model=body.model,
        messages=messages,
        tools=read_tools(body.tools, body.tool_choice, body.parallel_tool_calls),
        form=read_form(body.response_format, body.structured_outputs),
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        n=body.n or 1,
        max_tokens=_max_tokens(body),
        stop=_stop(body.stop),
        stop_ids=_stop_ids(body.stop_token_ids),
        ignore_eos=bool(body.ignore_eos),
        sampling=_sampling(body),
        enable_thinking=_enable_thinking(body),
        continues=_continues(body, messages),
        cache_salt=body.cache_salt or "",
        priority=body.priority or 0,
    )


def _path_of(text: str) -> str | None:
    """The field in msgspec's message: "... - at `$.messages[0].role`" -> "messages[0].role", and
    one that is missing: "Object missing required field `model`" -> "model"."""
    what, found, tail = text.rpartition("`$")
    path = tail.rstrip("`").lstrip(".") if found else ""
    _, missing, name = (what if found else text).partition("missing required field `")
    if missing:
        path = f"{path}.{name.partition('`')[0]}".lstrip(".")
    return path or None


def _refuse_unsupported(body: Any) -> None:
    for name, remedy in REFUSED.items():
        if getattr(body, name) not in (None, False):
            raise _unsupported(f"`{name}` is not supported by this worker: {remedy}.", name)
    if body.modalities not in (None, [], ["text"]):
        raise _unsupported('`modalities` must be ["text"].', "modalities")


def _unsupported(message: str, param: str) -> WorkerError:
    return bad_request(message, param=param, code="unsupported_parameter")


def _max_tokens(body: _Fields) -> int | None:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise bad_request(
            "Give either `max_tokens` or `max_completion_tokens`, not both.", param="max_tokens"
        )
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    value = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if value is not None and value < 1:
        raise bad_request(f"`{name}` must be at least 1.", param=name)
    return value


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > STOPS_MAX:
        raise bad_request(
            f"`stop` takes at most {STOPS_MAX} strings, not {len(strings)}.", param="stop"
        )
    for index, text in enumerate(strings):
        if not 0 < len(text) <= STOP_CHARS_MAX:
            raise bad_request(
                f"`stop` takes strings of 1 to {STOP_CHARS_MAX} characters; this one has "
                f"{len(text)}.",
                param="stop" if isinstance(stop, str) else f"stop[{index}]",
            )
    return strings


def _stop_ids(ids: list[int] | None) -> tuple[int, ...]:
    if len(ids or ()) > STOP_IDS_MAX:
        raise bad_request(
            f"`stop_token_ids` takes at most {STOP_IDS_MAX} token ids.", param="stop_token_ids"
        )
    for index, token_id in enumerate(ids or ()):
        if token_id < 0:
            param = f"stop_token_ids[{index}]"
            raise bad_request(f"`{param}` is below 0; token ids begin at 0.", param=param)
    return tuple(ids or ())


def _sampling(body: _Fields) -> SamplingOverrides:
    def within(name: str, low: float, high: float, value: float | None) -> None:
        if value is not None and not low <= value <= high:  # refuses NaN as well
            raise bad_request(f"`{name}` must be between {low} and {high}.", param=name)

    within("temperature", 0.0, TEMPERATURE_MAX, body.temperature)
    within("top_p", 0.0, 1.0, body.top_p)
    within("top_k", -1, TOP_K_MAX, body.top_k)
    within("min_p", 0.0, 1.0, body.min_p)
    within("repetition_penalty", REPETITION_MIN, REPETITION_MAX, body.repetition_penalty)
    within("frequency_penalty", -PENALTY_ABS_MAX, PENALTY_ABS_MAX, body.frequency_penalty)
    within("presence_penalty", -PENALTY_ABS_MAX, PENALTY_ABS_MAX, body.presence_penalty)
    within("seed", SEED_MIN, SEED_MAX, body.seed)
    within("top_logprobs", 0, TOP_LOGPROBS_MAX, body.top_logprobs)
    if body.top_logprobs and not body.logprobs:
        raise bad_request("`top_logprobs` needs `logprobs`: true.", param="top_logprobs")
    return SamplingOverrides(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        seed=body.seed,
        logit_bias=_logit_bias(body.logit_bias or {}),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def _logit_bias(wanted: dict[str, float]) -> tuple[tuple[int, float], ...]:
    """JSON has no integer keys: the token ids are the decimal texts of them."""
    if len(wanted) > LOGIT_BIAS_MAX:
        raise bad_request(f"`logit_bias` takes at most {LOGIT_BIAS_MAX} tokens.",
                          param="logit_bias")  # fmt: skip
    for key, bias in wanted.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 9):
            raise bad_request("`logit_bias` maps token ids to numbers.", param="logit_bias")
        if not (math.isfinite(bias) and abs(bias) <= LOGIT_BIAS_ABS_MAX):
            raise bad_request(
                f"`logit_bias` must be between -{LOGIT_BIAS_ABS_MAX:g} and {LOGIT_BIAS_ABS_MAX:g}.",
                param=f"logit_bias.{key}",
            )
    return tuple((int(key), bias) for key, bias in wanted.items())


def _enable_thinking(body: _Fields) -> bool | None:
    """The thinking switch; the most specific spelling wins, None leaves it to the template."""
    kwargs = body.chat_template_kwargs or {}
    for name, flag in kwargs.items():
        param = f"chat_template_kwargs.{name[:64]}"
        if name != "enable_thinking":
            raise _unsupported(
                "`chat_template_kwargs` takes `enable_thinking`; nothing else is handed to the "
                "template.",
                param,
            )
        if not isinstance(flag, bool):
            raise bad_request(f"`{param}` must be true or false.", param=param)
    if "enable_thinking" in kwargs:
        return bool(kwargs["enable_thinking"])
    if body.thinking is not None and body.thinking.type in ("enabled", "disabled"):
        return body.thinking.type == "enabled"
    if body.reasoning_effort is None:
        return None
    if body.reasoning_effort not in EFFORTS:
        raise bad_request(
            f"`reasoning_effort` must be one of {', '.join(EFFORTS)}.", param="reasoning_effort"
        )
    return EFFORTS[body.reasoning_effort]


def _continues(body: _Fields, messages: tuple[Message, ...]) -> bool:
    """Whether the last message is the beginning of the answer. One of the assistant is, unless the
    caller says otherwise in vLLM's words."""
    last = messages[-1]
    wanted = body.continue_final_message
    if wanted and body.add_generation_prompt:
        raise bad_request(
            "`continue_final_message` and `add_generation_prompt` exclude each other.",
            param="continue_final_message",
        )
    if body.add_generation_prompt is False and not wanted and last.role != "assistant":
        raise bad_request(
            "`add_generation_prompt` false is for a last message that is continued.",
            param="add_generation_prompt",
        )
    if wanted and last.role != "assistant":
        raise bad_request(
            "`continue_final_message` needs a last message of role assistant.",
            param="continue_final_message",
        )
    if (
        last.role != "assistant"
        or wanted is False
        or (wanted is None and body.add_generation_prompt)
    ):
        return False
    where = f"messages[{len(messages) - 1}]"
    if last.tool_calls:
        raise bad_request(
            "A message with `tool_calls` cannot be continued: add the tool's answer.",
            param=f"{where}.tool_calls",
        )
    return True
