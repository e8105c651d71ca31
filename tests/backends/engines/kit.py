"""One engine that behaves as its documentation says, and a backend that asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from backends.base import Call
from backends.chat import ChatRequest, Message
from backends.egress import Egress
from backends.engines.dialect import Dialect
from backends.openai_http import OpenAIHttpBackend
from policies.types import Usage
from tests.backends.conforming import MODEL, Engine
from tests.backends.servers import PATIENT


def chat(**changes: Any) -> ChatRequest:
    base = {"model": MODEL, "messages": [Message(role="user", content="what is it?")]}
    return ChatRequest(**{**base, **changes})


def call(asked: ChatRequest | None = None, *, stream: bool = False, **more: Any) -> Call:
    return Call(
        request_id="r",
        chat=asked or chat(),
        output_tokens_max=64,
        timeouts=PATIENT,
        stream=stream,
        **more,
    )


@asynccontextmanager
async def backend_of(engine: Engine, dialect: Dialect) -> AsyncIterator[OpenAIHttpBackend]:
    egress = Egress(allowed=[engine.url])
    try:
        yield OpenAIHttpBackend(egress, engine.url, dialect=dialect)
    finally:
        await egress.close()


async def whole(backend: OpenAIHttpBackend, asked: Call) -> tuple[dict[str, Any], Usage | None]:
    reply = await backend.open(asked)
    try:
        body, usage = await reply.body()
        return msgspec.json.decode(body), usage
    finally:
        await reply.close()


async def streamed(
    backend: OpenAIHttpBackend, asked: Call
) -> tuple[list[dict[str, Any]], Usage | None]:
    """The JSON of every event as it would reach the client, and the usage."""
    reply = await backend.open(asked)
    chunks, usage = [], None
    try:
        async for batch in reply.events():
            for event in batch:
                usage = event.usage or usage
                if not event.done:
                    chunks.append(msgspec.json.decode(event.raw[6:]))
    finally:
        await reply.close()
    return chunks, usage


def text_of(chunks: list[dict[str, Any]], name: str) -> str:
    """What the deltas of a stream say under one name."""
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return "".join(delta.get(name) or "" for delta in deltas)
