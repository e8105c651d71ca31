"""Bodies of requests in memory: how large one may be, how many bytes all of them, how long one may
take. Nothing is read of a request that is not admitted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from backends.glm.errors import WorkerError, WorkerUnavailable

BODY_BYTES_MAX = 64 * 1024 * 1024  # three pictures of the largest size as base64, or very many
BODIES_BYTES_MAX = 8 * BODY_BYTES_MAX  # of all bodies that are not prepared yet
BODY_S_MAX = 60.0  # the gateway has all of it when it begins to send, and is near


class Bodies:
    """Bodies that are being read or prepared. Lives on the event loop."""

    def __init__(self) -> None:
        self._bytes = 0

    @asynccontextmanager
    async def read(self, request: web.Request) -> AsyncIterator[bytearray]:
        """The body; it counts until the block is left.

        Raises: WorkerError 413 (too large), 408 (too slow), 503 (others fill the memory).
        """
        stated = request.content_length
        if stated is not None and stated > BODY_BYTES_MAX:
            raise _too_large()
        size = BODY_BYTES_MAX if stated is None else stated
        if self._bytes + size > BODIES_BYTES_MAX:
            raise WorkerUnavailable(
                code="worker_busy",
                message="This worker is busy: the requests that it reads fill its memory for them.",
            )
        self._bytes += size
        try:
            yield await _all_of(request)
        finally:
            self._bytes -= size


async def _all_of(request: web.Request) -> bytearray:
    """Not `request.read()`, which would keep the body until the answer ends."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S_MAX):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > BODY_BYTES_MAX:
                    raise _too_large()
    except TimeoutError:
        raise WorkerError(
            f"The body did not arrive within {BODY_S_MAX:g} seconds; send it in one go.",
            status=408,
            kind="invalid_request_error",
            code="body_timeout",
        ) from None
    return body


def _too_large() -> WorkerError:
    return WorkerError(
        f"A request may have at most {BODY_BYTES_MAX:,} bytes; send fewer or smaller pictures.",
        status=413,
        kind="invalid_request_error",
        code="request_too_large",
    )
