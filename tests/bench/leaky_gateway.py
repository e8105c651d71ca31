"""A gateway whose budget leaks on purpose, in the two usual ways, and one that holds first.

    check    what was spent is looked at before a request and added to after its answer: a burst
             passes the check together, and a client that leaves is not booked at all
    hold     the bound is taken before the request and the difference given back after it, also when
             the client leaves

It is what `overspend` has to tell apart: a program that finds nothing anywhere is not a proof.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

UPSTREAM_S = 0.05  # an engine takes time, and in it the others pass the check
PRICE_IN, PRICE_OUT = 800, 2_700  # nano-CNY per token


class LeakyGateway:
    """spent: nano-CNY as its own books say."""

    def __init__(self, *, mode: str, budget_nano: int) -> None:
        self.mode = mode
        self.budget_nano = budget_nano
        self.spent = 0
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> LeakyGateway:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/spend", self._spend)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _spend(self, _: web.Request) -> web.Response:
        return web.json_response({"team": [{"spend": f"{self.spent / 10**9:.9f}"}]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = len(body["messages"][0]["content"].split())
        output = body["max_tokens"]
        cost = prompt * PRICE_IN + output * PRICE_OUT
        if self.mode == "hold":
            if self.spent + cost > self.budget_nano:
                return _refused()
            self.spent += cost  # never given back: what left may have been billed
            return await self._answer(request, body, prompt, output)
        if self.spent >= self.budget_nano:
            return _refused()
        response = await self._answer(request, body, prompt, output)
        self.spent += cost
        return response

    async def _answer(
        self, request: web.Request, body: dict[str, Any], prompt: int, output: int
    ) -> web.StreamResponse:
        usage = {"prompt_tokens": prompt, "completion_tokens": output}
        await asyncio.sleep(UPSTREAM_S)
        if not body.get("stream"):
            return web.json_response({"choices": [], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(10):
            chunk: dict[str, Any] = {"choices": [{"delta": {"content": "word "}}]}
            if number == 9:
                chunk["usage"] = usage
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            await asyncio.sleep(UPSTREAM_S / 5)
        await response.write(b"data: [DONE]\n\n")
        return response


def _refused() -> web.Response:
    return web.json_response({"error": {"code": "insufficient_quota"}}, status=429)
