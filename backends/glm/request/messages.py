"""The messages of a request: what clients send -> turns that GLM's chat template knows. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from backends.glm.errors import bad_request

Role = Literal["system", "developer", "user", "assistant", "tool"]


class WireFunctionCall(msgspec.Struct):
    """`function` of a call in an assistant turn."""

    name: str
    arguments: str | dict[str, Any] = ""


class WireToolCall(msgspec.Struct):
    """A call in an assistant turn."""

    function: WireFunctionCall
    id: str | None = None
    type: str = "function"


class WireMessage(msgspec.Struct):
    """One message as sent. `reasoning` is vLLM's name for `reasoning_content`."""

    role: Role
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[WireToolCall] | None = None
    tool_call_id: str | None = None


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


def read_message(message: WireMessage, where: str) -> Message:
    """Check one message. Raises: WorkerError 400 that names the field under `where`."""
    reasoning, parts = message.reasoning_content, _parts(message.content, where)
    reasoning = message.reasoning if reasoning is None else reasoning
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
