"""The simple predict API: POST /v1/models/{model}:predict, {"prompt", "image_url"} -> {"text"}."""

from __future__ import annotations

import msgspec

from backends.chat import ChatRequest, ContentPart, ImagePart, ImageUrl, Message, TextPart
from gateway.errors import GatewayError
from gateway.wire.base import Asked
from gateway.wire.chat import check, invalid


class _Wire(msgspec.Struct, frozen=True):
    prompt: str
    image_url: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class PredictDialect:
    """One prompt, at most one picture, a text. Made for one model name, taken from the path."""

    name = "predict"

    def __init__(self, model: str) -> None:
        self._model = model

    def read(self, body: bytes) -> Asked:
        try:
            wire = msgspec.json.decode(body, type=_Wire)
        except msgspec.ValidationError as error:
            raise invalid(error) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise GatewayError(
                400, "invalid_json", f"the body is not valid JSON: {error}"
            ) from None
        parts: list[ContentPart] = [TextPart(text=wire.prompt)]
        if wire.image_url:
            parts.insert(0, ImagePart(image_url=ImageUrl(url=wire.image_url)))
        chat = ChatRequest(
            model=self._model,
            messages=[Message(role="user", content=parts)],
            max_tokens=wire.max_tokens,
            temperature=wire.temperature,
        )
        check(chat)
        return Asked(chat=chat)

    def answer(self, body: bytes) -> bytes:
        try:
            completion = msgspec.json.decode(body, type=_Completion)
        except msgspec.DecodeError:
            raise GatewayError(502, "upstream_broken", "the engine's answer is not JSON") from None
        text = (completion.choices[0].message.content or "") if completion.choices else ""
        return msgspec.json.encode({"text": text, "usage": completion.usage})
