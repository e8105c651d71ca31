"""The least that a proxy on aiohttp can do: JSON in, the same JSON to the upstream, its JSON out.

The measure that `make bench-gateway` holds the gateway against: machines differ by a factor of
three, so a figure alone says little. No authentication, no decision, no books, no log.
"""

from __future__ import annotations

import asyncio
import json
import sys

import aiohttp
import uvloop
from aiohttp import web


async def main(port: int, upstream: str) -> None:
    async with aiohttp.ClientSession() as session:

        async def chat(request: web.Request) -> web.Response:
            body = json.loads(await request.read())
            async with session.post(f"{upstream}/v1/chat/completions", json=body) as response:
                return web.json_response(await response.json())

        async def ready(_: web.Request) -> web.Response:
            return web.Response()

        app = web.Application(client_max_size=2**25)
        app.add_routes([web.post("/v1/chat/completions", chat), web.get("/readyz", ready)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
