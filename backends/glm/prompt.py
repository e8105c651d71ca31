"""A `ChatRequest` -> the exact ids, token types and pixels that GLM is to read.

The template comes from the checkpoint. Text of the request passes through it hidden (see
`tokenizer.Guard`), so nothing a user writes can end a turn, open a picture or switch thinking off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends.glm.errors import WorkerError, bad_request
from backends.glm.images import (
    IMAGES_MAX,
    Vision,
    decode_picture,
    open_picture,
)
from backends.glm.protocol import ChatRequest, ImagePart, Message
from backends.glm.tokenizer import THINK_CLOSE, THINK_OPEN, GlmTokenizer, Guard, strings_of
from backends.glm.types import Prompt, Thinking

ASSISTANT = "<|assistant|>"


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptBuilder:
    """What of a checkpoint prompts depend on. Thread-safe; runs outside the event loop."""

    tokenizer: GlmTokenizer
    vision: Vision
    image_token_id: int
    max_model_len: int

    def build(self, chat: ChatRequest) -> Prompt:
        """Render, check the context, decode the pictures, expand their places.

        Raises: WorkerError 400 (`invalid_image*`, `context_length_exceeded`, `invalid_prompt`).
        """
        opened = [(open_picture(url, where), where) for url, where in _image_urls(chat)]
        # Checked from the headers, so that an impossible request costs no decoding.
        sizes = [picture.size for picture, _ in opened]
        self.check_length(sum(self.vision.tokens(width=w, height=h) for w, h in sizes))
        ids = self._render(chat)
        pixels = None
        if ids.count(self.image_token_id) != len(opened):
            raise bad_request(
                "The model's chat template has no place for a picture in one of these messages.",
                param="messages",
                code="invalid_prompt",
            )
        if opened:
            pixels = self.vision.pixels([decode_picture(p, where) for p, where in opened])
            ids = _expand(ids, self.image_token_id, pixels.tokens)
        self.check_length(len(ids))
        return Prompt(
            ids=ids,
            image_token_id=self.image_token_id,
            pixels=pixels,
            thinking=self._thinking(ids),
        )

    def check_length(self, prompt_tokens: int) -> None:
        """Raises: WorkerError 400 `context_length_exceeded` if no token of an answer would fit."""
        if prompt_tokens >= self.max_model_len:
            raise bad_request(
                f"This model's context is {self.max_model_len} tokens; the prompt alone needs "
                f"{prompt_tokens}.",
                param="messages",
                code="context_length_exceeded",
            )

    def _render(self, chat: ChatRequest) -> list[int]:
        messages = [_template_message(message) for message in chat.messages]
        tools = list(chat.tools) or None
        guard = self._guard(messages, tools)
        variables: dict[str, Any] = {}
        if chat.enable_thinking is not None:  # absent: the template's own default
            variables["enable_thinking"] = chat.enable_thinking
        try:
            hidden = [_hide_message(guard, message) for message in messages]
            rendered = self.tokenizer.render(hidden, tools=guard.hide(tools), variables=variables)
        except Exception as error:  # a template may raise anything about a chat it does not like
            raise bad_request(
                f"The model's chat template refused these messages ({type(error).__name__}).",
                param="messages",
                code="invalid_prompt",
            ) from None
        return self.tokenizer.encode(rendered, guard.reveal)

    def _guard(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> Guard:
        try:
            return Guard(self.tokenizer.guarded, [*strings_of(messages), *strings_of(tools)])
        except ValueError:
            raise bad_request(
                "The text uses every private-use character; at least a few must stay free.",
                param="messages",
                code="invalid_prompt",
            ) from None

    def _thinking(self, ids: list[int]) -> Thinking:
        """Read from the prompt itself, since every family member closes it a little differently."""
        assistant = self.tokenizer.control_id(ASSISTANT)
        opened, closed = (self.tokenizer.control_id(t) for t in (THINK_OPEN, THINK_CLOSE))
        for token_id in reversed(ids):
            if token_id == assistant:
                break
            if token_id in (opened, closed):
                return "open" if token_id == opened else "closed"
        return "model"


def _image_urls(chat: ChatRequest) -> list[tuple[str, str]]:
    """Each picture's URL and the field it stands in, in the order of the prompt."""
    found = [
        (part.url, f"messages[{i}].content[{j}].image_url")
        for i, message in enumerate(chat.messages)
        for j, part in enumerate(message.parts)
        if isinstance(part, ImagePart)
    ]
    if len(found) > IMAGES_MAX:
        raise too_many_images()
    return found


def too_many_images() -> WorkerError:
    """The 400 of a request with more than IMAGES_MAX pictures."""
    return bad_request(
        f"At most {IMAGES_MAX} pictures are read per request.",
        param="messages",
        code="too_many_images",
    )


def _template_message(message: Message) -> dict[str, Any]:
    """The shape that GLM's template walks over: parts with `type`, calls with dict arguments."""
    parts = [
        {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
        for part in message.parts
    ]
    # One text is passed as a string: templates print it without the line break of a part.
    only_text = len(parts) == 1 and parts[0]["type"] == "text"
    made: dict[str, Any] = {
        "role": message.role,
        "content": parts[0]["text"] if only_text else parts or "",
    }
    if message.reasoning is not None:
        made["reasoning_content"] = message.reasoning
    if message.tool_calls:
        made["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return made


def _hide_message(guard: Guard, message: dict[str, Any]) -> dict[str, Any]:
    """Hide the values; the keys and the role are ours and the template looks for them."""
    return {key: value if key == "role" else guard.hide(value) for key, value in message.items()}


def _expand(ids: list[int], image_token_id: int, counts: tuple[int, ...]) -> list[int]:
    """Repeat each picture's one placeholder as often as the picture has tokens."""
    remaining = iter(counts)
    expanded: list[int] = []
    for token_id in ids:
        repeat = next(remaining) if token_id == image_token_id else 1
        expanded += [token_id] * repeat
    return expanded
