"""A `ChatRequest` -> the exact ids, token types and pixels that GLM is to read.

The template comes from the checkpoint. Text of the request passes through it hidden (see
`tokenizer.Guard`), so nothing a user writes can end a turn, open a picture or switch thinking off.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from backends.glm.checkpoint.tokenizer import (
    THINK_CLOSE,
    THINK_OPEN,
    GlmTokenizer,
    Guard,
    strings_of,
)
from backends.glm.errors import bad_request
from backends.glm.request.images import (
    Vision,
    decode_picture,
    open_picture,
)
from backends.glm.request.limits import Limits
from backends.glm.request.messages import ImagePart, Message, TextPart
from backends.glm.request.protocol import ChatRequest
from backends.glm.types import Pixels, Prompt, Thinking

ASSISTANT = "<|assistant|>"

T = TypeVar("T")
# Work that can be left off after each step; others have their turn there. It returns its result.
Steps = Generator[None, None, T]


def finish(steps: Steps[T]) -> T:
    """All steps at once, and the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptBuilder:
    """What of a checkpoint prompts depend on. Thread-safe; runs outside the event loop."""

    tokenizer: GlmTokenizer
    vision: Vision
    image_token_id: int
    max_model_len: int
    limits: Limits = field(default_factory=Limits)

    def build(self, chat: ChatRequest) -> Prompt:
        """The prompt, in one go. Raises: as `steps`."""
        return finish(self.steps(chat))

    def steps(self, chat: ChatRequest) -> Steps[Prompt]:
        """Render, check the context, decode the pictures, expand their places. A step ends after
        each picture's header, and between two pictures.

        Raises: WorkerError 400 (`invalid_image*`, `context_length_exceeded`, `invalid_prompt`).
        """
        opened = []
        for url, where in self._image_urls(chat):
            opened.append((open_picture(url, where), where))
            yield
        # Checked from the headers, so that an impossible request costs no decoding.
        sizes = [picture.size for picture, _ in opened]
        self._check_pixels(sizes, [where for _, where in opened])
        self.check_length(sum(self.vision.tokens(width=w, height=h) for w, h in sizes))
        ids, begun = self._render(chat)
        if ids.count(self.image_token_id) != len(opened):
            raise bad_request(
                "The model's chat template has no place for a picture in one of these messages.",
                param="messages",
                code="invalid_prompt",
            )
        seen: list[Pixels] = []
        for picture, where in opened:
            if seen:
                yield
            seen.append(self.vision.pixels(decode_picture(picture, where)))
        pixels = None
        if seen:
            pixels = Pixels.joined(seen)
            ids = _expand(ids, self.image_token_id, pixels.tokens)
        self.check_length(len(ids))
        return Prompt(
            ids=ids,
            image_token_id=self.image_token_id,
            pixels=pixels,
            thinking=self._thinking(ids),
            begun_tokens=begun,
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

    def _check_pixels(self, sizes: list[tuple[int, int]], places: list[str]) -> None:
        """Raises: WorkerError 400 that names the picture which passes the limit."""
        most = self.limits.image_pixels_max
        areas = itertools.accumulate(width * height for width, height in sizes)
        for area, where in zip(areas, places, strict=True):
            if area > most:
                raise bad_request(
                    f"The pictures of a request may have {most:,} pixels together; with this one "
                    f"they have {area:,}. Send smaller pictures (the model sees at most "
                    f"{self.vision.limits.max_pixels:,} pixels of each) or fewer.",
                    param=where,
                    code="too_many_pixels",
                )

    def _image_urls(self, chat: ChatRequest) -> list[tuple[str, str]]:
        """Each picture's URL and the field it stands in, in the order of the prompt."""
        found = [
            (part.url, f"messages[{i}].content[{j}].image_url")
            for i, message in enumerate(chat.messages)
            for j, part in enumerate(message.parts)
            if isinstance(part, ImagePart)
        ]
        if len(found) > self.limits.images_max:
            raise bad_request(
                f"At most {self.limits.images_max} pictures are read per request; this one has "
                f"{len(found)}.",
                param="messages",
                code="too_many_images",
            )
        return found

    def _render(self, chat: ChatRequest) -> tuple[list[int], int]:
        """The prompt's ids, and how many at its end are the beginning of the answer."""
        messages = [_template_message(message) for message in chat.messages]
        field, begun = "content", ""
        if chat.continues:
            field, begun = _beginning(chat)
            messages[-1] = {**messages[-1], field: ""}
        tools = [tool.spec for tool in chat.tools.offered] or None
        guard = self._guard([*messages, {"begun": begun}], tools)
        variables: dict[str, Any] = {}
        if chat.enable_thinking is not None:  # absent: the template's own default
            variables["enable_thinking"] = chat.enable_thinking
        try:
            hidden = [_hide_message(guard, message) for message in messages]
            if chat.continues:
                hidden[-1][field] = guard.mark
            rendered = self.tokenizer.render(
                hidden,
                tools=guard.hide(tools),
                variables=variables,
                add_generation_prompt=not chat.continues,
            )
        # Templates are code that comes with a model and raise anything; callers are told the kind.
        except Exception as error:
            raise bad_request(
                f"The model's chat template refused these messages ({type(error).__name__}).",
                param="messages",
                code="invalid_prompt",
            ) from None
        if not chat.continues:
            return self.tokenizer.encode(rendered, guard.reveal), 0
        # Cut where the answer's text stands and put it back as it was sent: a template strips it
        # of the space that its next word needs.
        head, found, _ = rendered.rpartition(guard.mark)
        if not found:
            raise bad_request(
                "The model's chat template has no place for a last message that is continued.",
                param="messages",
                code="invalid_prompt",
            )
        tail = self.tokenizer.encode_plain(begun)
        return self.tokenizer.encode(head, guard.reveal) + tail, len(tail)

    def _guard(self, messages: list[Any], tools: list[Any] | None) -> Guard:
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


def _beginning(chat: ChatRequest) -> tuple[str, str]:
    """The field of the last message that is continued, and its text. A message that only thinks so
    far goes on thinking.

    Raises: WorkerError 400 if it holds more than text.
    """
    last = chat.messages[-1]
    texts = [part.text for part in last.parts if isinstance(part, TextPart)]
    if len(texts) < len(last.parts):
        raise bad_request(
            "A last message that is continued must be text.",
            param=f"messages[{len(chat.messages) - 1}].content",
        )
    begun = "".join(texts)
    if last.reasoning and not begun:
        return "reasoning_content", last.reasoning
    return "content", begun


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
