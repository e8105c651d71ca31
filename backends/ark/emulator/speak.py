"""An answer on the wire, plain or streamed, with its pace and its faults.

Shape of a stream (measured, docs 82379/1494384): every delta repeats `role`; `finish_reason` is
absent until the last content chunk; `usage` is null in every chunk; reasoning comes first, then for
summarising models one chunk with only `encrypted_content`, then the text, the finish, the usage.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from aiohttp import web

from backends.ark.emulator.answer import Answer
from backends.ark.emulator.asked import Asked
from backends.ark.emulator.faults import Fault, Refused
from backends.ark.emulator.settings import Settings


class Spoken(msgspec.Struct, kw_only=True):
    """One answer under way: what is said, and how much of it has been generated."""

    asked: Asked
    answer: Answer
    fault: Fault
    server_id: str
    created_s: int
    cached_tokens: int
    first_s: float
    token_s: float
    reasoning_done: int = 0
    content_done: int = 0
    state: str = "client_left"  # until something better is known

    @property
    def completion_tokens(self) -> int:
        return self.reasoning_done + self.content_done

    def progress(self, elapsed_s: float | None) -> None:
        """Sets what is generated after so long (None: all); for an answer sent in one piece."""
        total = self.answer.reasoning_tokens + len(self.answer.content)
        if elapsed_s is None or (self.token_s <= 0 and elapsed_s >= self.first_s):
            made = total
        elif elapsed_s < self.first_s:
            made = 0
        else:
            made = min(total, int((elapsed_s - self.first_s) / self.token_s) + 1)
        self.reasoning_done = min(made, self.answer.reasoning_tokens)
        self.content_done = made - self.reasoning_done

    def usage(self, settings: Settings) -> dict[str, Any]:
        """Ark's usage object for what has been generated so far."""
        if self.fault.usage is not None:
            return self.fault.usage
        details: dict[str, int] = {"cached_tokens": self.cached_tokens}
        if settings.report_image_tokens and self.asked.image_tokens:
            details["image_tokens"] = self.asked.image_tokens
        return {
            "prompt_tokens": self.asked.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.asked.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": details,
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_done},
        }


async def plain(spoken: Spoken, settings: Settings) -> web.Response:
    """The whole answer after the time that its generation takes."""
    answer = spoken.answer
    tokens = answer.reasoning_tokens + len(answer.content)
    started_s = time.monotonic()
    try:
        await asyncio.sleep(spoken.first_s + spoken.token_s * max(0, tokens - 1))
        spoken.progress(None)
    except asyncio.CancelledError:
        spoken.progress(time.monotonic() - started_s)
        raise
    text = "".join(answer.content)
    message: dict[str, Any] = {"role": "assistant", "content": "" if answer.tool else text}
    if answer.reasoning:
        message["reasoning_content"] = "".join(answer.reasoning)
    if answer.sealed:
        message["encrypted_content"] = answer.sealed
    if answer.tool:
        function = {"name": answer.tool.name, "arguments": text}
        message["tool_calls"] = [{"id": answer.tool.id, "type": "function", "function": function}]
    choice = {
        "index": 0,
        "message": message,
        "finish_reason": answer.finish_reason,
        "logprobs": None,
    }
    if answer.moderation:
        choice["moderation_hit_type"] = answer.moderation
    body = {
        "id": spoken.server_id,
        "object": "chat.completion",
        "created": spoken.created_s,
        "model": spoken.asked.target.served,
        "service_tier": spoken.asked.service_tier,
        "choices": [choice],
    }
    if not spoken.fault.no_usage:
        body["usage"] = spoken.usage(settings)
    spoken.state = "moderated" if answer.moderation else "answered"
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


class _Piece(msgspec.Struct, frozen=True):
    """One delta, and how many tokens were generated for it."""

    delta: dict[str, Any]
    reasoning_tokens: int = 0
    content_tokens: int = 0


def _pieces(answer: Answer, chunk_tokens: int) -> Iterator[_Piece]:
    """The deltas of an answer in order."""
    shown = len(answer.reasoning)
    for at in range(0, shown, chunk_tokens):
        end = min(at + chunk_tokens, shown)
        # A summary shows fewer tokens than were generated: share them out over its chunks.
        made = answer.reasoning_tokens * end // shown - answer.reasoning_tokens * at // shown
        text = "".join(answer.reasoning[at:end])
        yield _Piece({"content": "", "reasoning_content": text}, reasoning_tokens=made)
    if answer.sealed:
        yield _Piece({"content": "", "encrypted_content": answer.sealed})
    for at in range(0, len(answer.content), chunk_tokens):
        part = answer.content[at : at + chunk_tokens]
        text = "".join(part)
        if answer.tool is None:
            yield _Piece({"content": text}, content_tokens=len(part))
            continue
        call: dict[str, Any] = {"index": 0, "function": {"arguments": text}}
        if at == 0:
            call |= {"id": answer.tool.id, "type": "function"}
            call["function"]["name"] = answer.tool.name
        yield _Piece({"content": "", "tool_calls": [call]}, content_tokens=len(part))


class Stream:
    """One streamed answer."""

    def __init__(self, request: web.Request, spoken: Spoken, settings: Settings) -> None:
        self._request = request
        self._spoken = spoken
        self._settings = settings
        self._response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        self._sent = 0

    async def run(self) -> web.StreamResponse:
        """Speaks to the end, or to the fault. Raises CancelledError when the client leaves."""
        spoken, fault = self._spoken, self._spoken.fault
        await self._response.prepare(self._request)
        await asyncio.sleep(spoken.first_s)
        due_s = time.monotonic()
        for piece in _pieces(spoken.answer, self._settings.chunk_tokens):
            if self._sent and spoken.token_s:
                due_s += spoken.token_s * (piece.reasoning_tokens + piece.content_tokens)
                await asyncio.sleep(due_s - time.monotonic())
            if await self._strikes():
                return self._response
            spoken.reasoning_done += piece.reasoning_tokens
            spoken.content_done += piece.content_tokens
            await self._chunk([{"index": 0, "delta": {"role": "assistant", **piece.delta}}])
        if await self._strikes(at_end=True):
            return self._response
        if not fault.no_finish:
            await self._finish()
        spoken.state = "moderated" if spoken.answer.moderation else "answered"
        await self._response.write_eof()
        return self._response

    async def _finish(self) -> None:
        answer, fault = self._spoken.answer, self._spoken.fault
        choice: dict[str, Any] = {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "finish_reason": answer.finish_reason,
        }
        if answer.moderation:
            choice["moderation_hit_type"] = answer.moderation
        await self._chunk([choice])
        if self._spoken.asked.include_usage and not fault.no_usage:
            await self._chunk([], self._spoken.usage(self._settings))
        if not fault.no_done:
            await self._response.write(b"data: [DONE]\n\n")

    async def _chunk(
        self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None
    ) -> None:
        if usage is None and self._spoken.asked.usage_in_chunks:
            usage = self._spoken.usage(self._settings)
        body = {
            "id": self._spoken.server_id,
            "object": "chat.completion.chunk",
            "created": self._spoken.created_s,
            "model": self._spoken.asked.target.served,
            "service_tier": self._spoken.asked.service_tier,
            "choices": choices,
            "usage": usage,
        }
        await self._response.write(b"data: " + msgspec.json.encode(body) + b"\n\n")
        self._sent += 1

    async def _strikes(self, at_end: bool = False) -> bool:
        """Plays the fault that is due after the chunks sent so far; True: the stream is over."""
        fault = self._spoken.fault

        def due(after: int | None) -> bool:
            return after is not None and (self._sent == after or (at_end and self._sent < after))

        if due(fault.garbage_after):
            await self._response.write(b"data: {this is not json\n\n")
        if due(fault.error_after):
            refused = Refused(fault.code or "InternalServiceError", fault=fault)
            body = refused.body(self._spoken.server_id)
            await self._response.write(b"data: " + body + b"\n\n")
            await self._response.write_eof()
            self._spoken.state = "cut"
            return True
        if due(fault.cut_after):
            self._spoken.state = "cut"
            if self._request.transport is not None:
                self._request.transport.close()  # flushes, then ends in mid-answer
            return True
        if due(fault.stall_after):
            await asyncio.Event().wait()  # nobody sets it: ends when the client leaves
        return False
