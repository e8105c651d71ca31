"""The boundaries of a request's prompt, as keys: the only thing of its text that leaves `facts`."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from backends.chat import ChatRequest, ImagePart, TextPart
from policies import affinity, tokens
from policies.types import Prefix

# A picture of a megapixel; which rule counts here is the worker's, and this is for a comparison.
PICTURE_TOKENS = 1_300


def prefixes_of(chat: ChatRequest, salt: str) -> tuple[tuple[Prefix, ...], tuple[str, ...]]:
    """Boundaries after every part of every message, and a key for each picture."""
    return affinity.prefixes(salt, _parts(chat)), tuple(_pictures(chat, salt))


def _parts(chat: ChatRequest) -> Iterator[tuple[bytes, int]]:
    """In the order in which a chat template writes them: tools first."""
    if chat.tools:
        yield _text(msgspec.json.encode(chat.tools).decode())
    for message in chat.messages:
        if isinstance(message.content, list):
            for part in message.content:
                if isinstance(part, TextPart):
                    yield _text(f"{message.role}\0{part.text}")
                else:
                    yield affinity.fingerprint(part.image_url.url), PICTURE_TOKENS
            continue
        said = [message.role, message.content or "", message.tool_call_id or ""]
        said += [f"{c.function.name}\0{c.function.arguments}" for c in message.tool_calls or ()]
        yield _text("\0".join(said))


def _pictures(chat: ChatRequest, salt: str) -> Iterator[str]:
    for message in chat.messages:
        for part in message.content if isinstance(message.content, list) else ():
            if isinstance(part, ImagePart):
                yield salt[:8] + affinity.fingerprint(part.image_url.url).hex()


def _text(text: str) -> tuple[bytes, int]:
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return affinity.fingerprint(text), tokens.text_tokens_likely(len(text), size, messages=1)
