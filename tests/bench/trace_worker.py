"""A worker for replays: its slots, queue and times are those of a real engine, its words are not.

A request with a prompt of P words and an output limit of O answers exactly O tokens, after

    P / prefill speed + O / decode speed      seconds in a slot

divided by `--scale`, so that an hour of traffic is replayed in minutes. What it reports of times
(slot_ms, queue_ms, ttft_ms) is not divided: the books then say what the traffic would have cost in
its own time. Its load report is in the time of the replay, because the gateway decides in that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from typing import Any

import uvloop
from aiohttp import web

CHUNKS = 8  # of a stream, however long
WATCH_S = 0.25
CONTEXT_TOKENS = 131_072


class TraceWorker:
    """speeds: tokens a second of one slot, in the traffic's own time."""

    def __init__(self, *, slots: int, scale: int, prefill: float, decode: float) -> None:
        self.slots, self.scale = slots, scale
        self.prefill, self.decode = prefill, decode
        self.running = 0
        self._free = asyncio.Semaphore(slots)
        self._seq = 0
        self._changed = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/load", self._load)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": "glm-4.6v-trace", "object": "model", "max_model_len": CONTEXT_TOKENS}
        return web.json_response({"object": "list", "data": [model]})

    async def _load(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            return web.json_response(self._report())
        response = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
        await response.prepare(request)
        while True:
            await response.write(json.dumps(self._report()).encode() + b"\n")
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), WATCH_S)
            except TimeoutError:
                continue

    def _report(self) -> dict[str, Any]:
        self._seq += 1
        return {
            "engine": "yuzui", "model": "glm-4.6v-trace", "worker": "trace", "slots": self.slots,
            "running": min(self.running, self.slots),
            "waiting": max(0, self.running - self.slots),
            "queue_limit": self.slots,
            "decode_tokens_per_s": self.decode * self.scale,
            "prefill_tokens_per_s": self.prefill * self.scale,
            "kv_tokens_used": 0, "kv_tokens_total": 10_000_000,
            "max_model_len": CONTEXT_TOKENS, "state": "ok", "seq": self._seq,
        }  # fmt: skip

    def _moved(self, step: int) -> None:
        self.running += step
        self._changed.set()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.running >= 2 * self.slots:
            error = {"message": "no room", "type": "server_error", "code": "worker_busy"}
            return web.json_response({"error": error}, status=503, headers={"retry-after": "1"})
        prompt = len(body["messages"][0]["content"].split())
        output = int(body["max_tokens"])
        came = time.monotonic()
        self._moved(1)
        try:
            async with self._free:
                queue_s = time.monotonic() - came
                return await self._answer(request, body, prompt, output, queue_s)
        finally:
            self._moved(-1)

    async def _answer(
        self, request: web.Request, body: dict[str, Any], prompt: int, output: int, queue_s: float
    ) -> web.StreamResponse:
        first_s, decode_s = prompt / self.prefill, output / self.decode
        tail = {
            "usage": {"prompt_tokens": prompt, "completion_tokens": output,
                      "total_tokens": prompt + output},
            "yuzui": {"slot_ms": round(1000 * (first_s + decode_s)),
                      "queue_ms": round(1000 * queue_s * self.scale),
                      "ttft_ms": round(1000 * first_s)},
        }  # fmt: skip
        head = {"id": "chatcmpl-trace", "created": 0, "model": "glm-4.6v-trace"}
        if not body.get("stream"):
            await asyncio.sleep((first_s + decode_s) / self.scale)
            message = {"role": "assistant", "content": "word " * output}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            whole = {**head, "object": "chat.completion", "choices": [choice], **tail}
            return web.json_response(whole)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        chunk = {**head, "object": "chat.completion.chunk"}
        await asyncio.sleep(first_s / self.scale)
        for number in range(CHUNKS):
            words = "word " * (output * (number + 1) // CHUNKS - output * number // CHUNKS)
            choice = {"index": 0, "delta": {"role": "assistant", "content": words}}
            await _event(response, {**chunk, "choices": [choice]})
            await asyncio.sleep(decode_s / CHUNKS / self.scale)
        end = {"index": 0, "delta": {}, "finish_reason": "stop"}
        await _event(response, {**chunk, "choices": [end]})
        await _event(response, {**chunk, "choices": [], **tail})
        await response.write(b"data: [DONE]\n\n")
        return response


async def _event(response: web.StreamResponse, value: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(value).encode() + b"\n\n")


async def _serve(worker: TraceWorker, port: int) -> None:
    runner = web.AppRunner(worker.app(), handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    await stop.wait()
    await runner.cleanup()


async def _main(args: argparse.Namespace) -> None:
    worker = TraceWorker(
        slots=args.slots, scale=args.scale, prefill=args.prefill, decode=args.decode
    )
    await _serve(worker, args.port)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--prefill", type=float, default=4_000.0, help="tokens/s of a slot")
    parser.add_argument("--decode", type=float, default=35.0, help="tokens/s of a slot")
    uvloop.run(_main(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
