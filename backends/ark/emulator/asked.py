"""Body of a chat request -> what is asked, or the error that Ark would answer.

The vendor's client sends every parameter it was not given as an explicit null: null is absence,
everywhere. Rules: docs 82379/1494384 (parameters), 1449737 (thinking), 1362931 (pictures).
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from backends.ark.emulator import pictures
from backends.ark.emulator.faults import Refused
from backends.ark.emulator.settings import Settings
from backends.ark.emulator.tokens import MESSAGE_TOKENS, prefix_hashes
from backends.ark.models import CATALOGUE, COMPLETION_TOKENS_MAX, ArkModel, Thinks, model_of
from policies.types import Capability

ROLES = ("system", "user", "assistant", "tool")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_STOPS_MAX = 4
_SWITCHES_OFF = ("none", "minimal")
_RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
}
_FIELDS = frozenset(
    "model messages stream stream_options max_tokens max_completion_tokens thinking "
    "reasoning_effort temperature top_p frequency_penalty presence_penalty n stop logprobs "
    "top_logprobs logit_bias tools tool_choice parallel_tool_calls response_format service_tier "
    "repetition_penalty user function_call".split()
)


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What `model` of a request stands for."""

    served: str  # real name and version, echoed in the answer
    known: ArkModel
    endpoint: str | None = None
    endpoint_rpm: int | None = None
    endpoint_tpm: int | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One valid request, as far as an answer depends on it."""

    target: Target
    stream: bool
    include_usage: bool
    usage_in_chunks: bool
    max_tokens: int | None
    max_completion_tokens: int | None
    effort: str  # minimal: no thinking
    message_count: int
    picture_sizes: tuple[tuple[int, int], ...]
    image_tokens: int
    prompt_tokens: int
    prefix_hashes: list[bytes]
    last_text: str
    tools: tuple[dict[str, Any], ...]
    tool_choice: Any
    response_format: dict[str, Any] | None
    service_tier: str


def target_of(name: Any, settings: Settings) -> Target:
    """Finds the model or endpoint. Raises Refused like Ark (404, closed endpoint 400)."""
    if not isinstance(name, str) or not name:
        raise Refused("MissingParameter.model", "The request misses the parameter model.")
    if name.startswith("ep-"):
        row = settings.endpoints.get(name)
        if row is None:
            raise Refused("InvalidEndpointOrModel.NotFound")
        if row.closed:
            raise Refused("InvalidEndpoint.ClosedEndpoint")
        return Target(
            served=row.model,
            known=model_of(row.model, settings.models.get(row.model)),
            endpoint=name,
            endpoint_rpm=row.rpm,
            endpoint_tpm=row.tpm,
        )
    if name not in CATALOGUE and name not in settings.models:
        raise Refused("InvalidEndpointOrModel.NotFound")
    if not settings.model_ids:
        raise Refused("InvalidEndpointOrModel.ModelIDAccessDisabled")
    if name in settings.retired_models:
        raise Refused("UnsupportedModel")
    if name in settings.closed_models:
        raise Refused("ModelNotOpen")
    return Target(served=name, known=model_of(name, settings.models.get(name)))


def read(body: Mapping[str, Any], target: Target, settings: Settings) -> Asked:
    """Checks a whole request. Raises Refused."""
    given = {name: value for name, value in body.items() if value is not None}
    if settings.unknown_fields == "refuse" and not given.keys() <= _FIELDS:
        raise _bad(f"unknown parameter {min(given.keys() - _FIELDS)}")
    messages = given.get("messages")
    if not messages:
        raise Refused("MissingParameter.messages", "The request misses the parameter messages.")
    if not isinstance(messages, list):
        raise _bad("messages must be a list")
    prompt = _Prompt(target.known, settings)
    for message in messages:
        prompt.add(message)
    _check_sampling(given, target.known, bool(prompt.sizes))
    tools = _tools(given, target.known)
    if tools:
        prompt.parts.append((msgspec.json.encode(tools).decode(), 0))
    response_format = _response_format(given, target.known, prompt)
    hashes, tokens = prefix_hashes(prompt.parts)
    if tokens > target.known.traits.context_tokens:
        raise Refused("OutofContextError")
    options = _dict(given, "stream_options")
    tier = given.get("service_tier", "auto")
    if tier not in ("auto", "default", "fast"):
        raise _bad("service_tier must be auto, default or fast")
    return Asked(
        target=target,
        stream=bool(given.get("stream")),
        include_usage=bool(options.get("include_usage")) or target.known.usage_always,
        usage_in_chunks=bool(options.get("chunk_include_usage")),
        max_tokens=_limit(given, "max_tokens", None),
        max_completion_tokens=_limit(given, "max_completion_tokens", COMPLETION_TOKENS_MAX),
        effort=_effort(given, target.known),
        message_count=len(messages),
        picture_sizes=tuple(prompt.sizes),
        image_tokens=prompt.image_tokens,
        prompt_tokens=tokens,
        prefix_hashes=hashes,
        last_text=prompt.last_text,
        tools=tuple(tools),
        tool_choice=given.get("tool_choice"),
        response_format=response_format,
        service_tier="fast" if tier == "fast" else "default",
    )


def _bad(message: str) -> Refused:
    return Refused("InvalidParameter", f"The request is not valid: {message}.")


def _unsupported(name: str) -> Refused:
    return Refused("InvalidParameter.UnsupportedParameter", f"The model does not support {name}.")


def _dict(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = given.get(name, {})
    if not isinstance(value, dict):
        raise _bad(f"{name} must be an object")
    return value


def _limit(given: Mapping[str, Any], name: str, most: int | None) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if "max_tokens" in given and "max_completion_tokens" in given:
        raise _bad("max_tokens and max_completion_tokens must not be given together")
    if not isinstance(value, int) or value < 1 or (most is not None and value > most):
        raise _bad(f"{name} must be between 1 and {most or 'the limit of the model'}")
    return value


class _Prompt:
    """Collects what the messages of one request contain."""

    def __init__(self, known: ArkModel, settings: Settings) -> None:
        self._known = known
        self._settings = settings
        self.parts: list[tuple[str, int]] = []  # text and weight, see tokens.prefix_hashes
        self.sizes: list[tuple[int, int]] = []
        self.image_tokens = 0
        self.last_text = ""

    def add(self, message: Any) -> None:
        """One message. Raises Refused."""
        if not isinstance(message, dict):
            raise _bad("a message must be an object")
        role = message.get("role")
        if role is None:
            raise Refused("InvalidArgumentError", "A message misses its role.")
        if role not in ROLES:
            raise _bad(f"unknown role {str(role)[:40]!r}")
        self.parts.append((f"<{role}>", MESSAGE_TOKENS))
        content = message.get("content")
        calls = message.get("tool_calls")
        if content is None and not (role == "assistant" and calls):
            raise Refused("MissingParameter", "A message misses its content.")
        if isinstance(content, str):
            self._text(content)
        elif isinstance(content, list):
            for part in content:
                self._part(part)
        elif content is not None:
            raise _bad("content must be a text or a list of parts")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict):
                raise _bad("a tool call misses its function")
            # What reaches the prompt is the name and the arguments, not their JSON frame.
            for name in ("name", "arguments"):
                self.parts.append((str(function.get(name) or ""), 0))
        sealed = message.get("encrypted_content")
        if sealed is not None and not seal_holds(sealed, self._settings.seed):
            raise Refused("InvalidParameter", "Invalid signature in encrypted_content.")

    def _text(self, text: str) -> None:
        self.parts.append((text, 0))
        self.last_text = text

    def _part(self, part: Any) -> None:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            self._text(part["text"])
        elif kind == "image_url" and isinstance(part.get("image_url"), dict):
            self._picture(part["image_url"])
        else:
            raise _bad(f"content part of type {str(kind)[:40]!r}")

    def _picture(self, image: dict[str, Any]) -> None:
        rule = self._known.image_rule
        if rule is None:
            raise _unsupported("image_url")
        detail = image.get("detail")
        if detail not in (None, "auto", *rule.details):
            raise Refused("InvalidArgumentError.InvalidImageDetail", "detail is not known.")
        url = image.get("url")
        if not url:
            raise Refused("InvalidImageURL.EmptyURL")
        width, height = self._size(str(url))
        tokens = rule.tokens(
            width, height, None if detail == "auto" else detail, _pixel_limit(image)
        )
        self.sizes.append((width, height))
        self.image_tokens += tokens
        self.parts.append((f"<image {blake2b(str(url).encode()).hexdigest()}>", tokens))

    def _size(self, url: str) -> tuple[int, int]:
        if url.startswith("data:"):
            return pictures.size_of_data_url(url)
        if self._settings.remote_image_px is not None:
            return self._settings.remote_image_px
        raise Refused(
            "InvalidParameter", "Downloading the image failed: the emulator fetches nothing."
        )


def _pixel_limit(image: dict[str, Any]) -> tuple[int, int] | None:
    limit = image.get("image_pixel_limit")
    if limit is None:
        return None
    if not isinstance(limit, dict):
        raise Refused("InvalidArgumentError.InvalidPixelLimit")
    least = limit.get("min_pixels") or pictures.AREA_PX_MIN
    most = limit.get("max_pixels") or pictures.AREA_PX_MAX
    if not (isinstance(least, int) and isinstance(most, int) and 0 < least <= most):
        raise Refused("InvalidArgumentError.InvalidPixelLimit", "image_pixel_limit is not valid.")
    return least, most


def _check_sampling(given: Mapping[str, Any], known: ArkModel, has_pictures: bool) -> None:
    for name, (least, most) in _RANGES.items():
        value = given.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float) or not least <= value <= most:
            raise _bad(f"{name} must be between {least} and {most}")
    if has_pictures or not known.penalties:
        for name in ("frequency_penalty", "presence_penalty"):
            if name in given:
                raise _unsupported(name)
    if known.thinks is not Thinks.NEVER:
        for name in ("stop", "logprobs", "top_logprobs", "logit_bias"):
            if given.get(name) not in (None, False):
                raise _unsupported(name)
    if given.get("n", 1) != 1:
        raise _unsupported("n")
    stop = given.get("stop", [])
    if not isinstance(stop, str | list) or (isinstance(stop, list) and len(stop) > _STOPS_MAX):
        raise _bad(f"stop takes a text or at most {_STOPS_MAX} of them")


def _effort(given: Mapping[str, Any], known: ArkModel) -> str:
    """The effort that counts; `minimal` when the model does not think."""
    thinking = _dict(given, "thinking").get("type")
    effort = given.get("reasoning_effort")
    allowed = ("enabled", "disabled", *(("auto",) if known.thinking_auto else ()))
    if thinking is not None and (thinking not in allowed or known.thinks is Thinks.NEVER):
        raise _bad("thinking.type is not supported by the model")
    if thinking == "disabled" and known.thinks is Thinks.ALWAYS:
        raise _bad("thinking cannot be disabled for the model")
    if effort is not None and (effort not in EFFORTS or known.efforts is None):
        raise _bad("reasoning_effort is not supported by the model")
    if thinking == "disabled" and effort not in (None, *_SWITCHES_OFF):
        raise _bad("reasoning_effort does not go with thinking disabled")
    if known.thinks is Thinks.NEVER or thinking == "disabled":
        return "minimal"
    if known.efforts is None:
        return "medium"
    if effort is None:
        return known.efforts.default
    if effort not in known.efforts.send:
        raise _bad("reasoning_effort is not supported by the model")
    return known.efforts.send[effort]


def _tools(given: Mapping[str, Any], known: ArkModel) -> list[dict[str, Any]]:
    tools = given.get("tools", [])
    if not isinstance(tools, list):
        raise _bad("tools must be a list")
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or tool.get("type") != "function":
            raise _bad("only function tools are supported")
        if not isinstance(function.get("name"), str):
            raise Refused("MissingParameter", "A tool misses function.name.")
    choice = given.get("tool_choice")
    forced = choice == "required" or isinstance(choice, dict)
    if choice is not None and not forced and choice not in ("none", "auto"):
        raise _bad("tool_choice is not known")
    if forced and not known.tool_choice_forced:
        raise _unsupported("tool_choice")
    if forced and not tools:
        raise _bad("tool_choice needs tools")
    if isinstance(choice, dict) and not isinstance(choice.get("function"), dict):
        raise _bad("tool_choice misses its function")
    return tools


def _response_format(
    given: Mapping[str, Any], known: ArkModel, prompt: _Prompt
) -> dict[str, Any] | None:
    wanted = _dict(given, "response_format")
    kind = wanted.get("type", "text")
    if kind == "text":
        return None
    if kind not in ("json_object", "json_schema"):
        raise _bad("response_format.type is not known")
    if not known.can(Capability.STRUCTURED):
        raise _unsupported("response_format")
    if kind == "json_schema" and not isinstance(wanted.get("json_schema"), dict):
        raise _bad("response_format misses its json_schema")
    if kind == "json_object" and not any("json" in text.lower() for text, _ in prompt.parts):
        raise _bad('json_object needs the word "json" in the messages')
    return wanted


def seal(nonce: str, seed: int) -> str:
    """`encrypted_content` of an answer: opaque, and recognised when it comes back."""
    return f"emulated.{nonce}.{_mac(nonce, seed)}"


def seal_holds(sealed: Any, seed: int) -> bool:
    """Whether an `encrypted_content` is one of ours and unchanged."""
    fields = str(sealed).split(".")
    return len(fields) == 3 and fields[2] == _mac(fields[1], seed)


def _mac(nonce: str, seed: int) -> str:
    return blake2b(nonce.encode(), key=str(seed).encode(), digest_size=16).hexdigest()
