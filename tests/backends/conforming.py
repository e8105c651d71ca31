"""Servers that behave as vLLM and SGLang do, as far as their documentation and sources say.

No GPU is at hand to run the engines themselves. These are real HTTP servers (aiohttp) with the
engines' request rules, answer and error shapes, streams, metrics and load endpoints; what they
answer is fixed. They refuse what the engines refuse, so that a dialect that is wrong fails here.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from typing import Any

from aiohttp import web

MODEL = "zai-org/GLM-4.6V-Flash"
THOUGHT, ANSWER = ["it is ", "red"], ["a red ", "circle"]
CONTEXT = 32_768


class Engine(ABC):
    """`async with Vllm() as engine:` serves at `engine.url`; `asked` are the bodies it was sent."""

    name = ""

    def __init__(
        self,
        *,
        port: int = 0,
        running: int = 0,
        waiting: int = 0,
        queue_max: int | None = None,
        pace_s: float = 0.0,
        api_key: str | None = None,
        metrics: bool = True,
    ) -> None:
        self.port = port
        self.running = running
        self.waiting = waiting
        self.queue_max = queue_max
        self.pace_s = pace_s
        self.api_key = api_key
        self.metrics = metrics
        self.healthy = True
        self.url = ""
        self.adapters: tuple[str, ...] = ()  # listed as vLLM does: by their bare names, a parent
        self.asked: list[dict[str, Any]] = []
        self.tokens = 0
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Any:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        self.more_routes(app)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    @abstractmethod
    def more_routes(self, app: web.Application) -> None:
        """Endpoints that only this engine has."""

    # ------------------------------------------------------------ what they share

    async def _models(self, request: web.Request) -> web.Response:
        if (refused := self._keyless(request)) is not None:
            return refused
        model = {"id": MODEL, "object": "model", "owned_by": self.name, "max_model_len": CONTEXT}
        more = [{**model, "id": name, "parent": MODEL} for name in self.adapters]
        return web.json_response({"object": "list", "data": [model, *more]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        if not self.metrics:
            return web.json_response({"detail": "Not Found"}, status=404)
        return web.Response(text=self.metrics_text())

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        if (refused := self._keyless(request)) is not None:
            return refused
        body = json.loads(await request.read())
        self.asked.append(body)
        problem = self.problem(body)
        if problem is not None:
            status, kind, text, param = problem
            return self.error(status, kind, text, param)
        if self.queue_max is not None and self.running + self.waiting >= self.queue_max:
            return self.error(503, *self.full)
        self.running += 1
        try:
            if body.get("stream"):
                return await self._stream(request, body)
            await asyncio.sleep(self.pace_s * 4)
            return web.json_response(self.whole(body))
        finally:
            self.running -= 1
            self.tokens += 4

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for chunk in self.chunks(body):
            if self.pace_s:
                await asyncio.sleep(self.pace_s)
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    def _keyless(self, request: web.Request) -> web.Response | None:
        if self.api_key is None or request.headers.get("authorization") == f"Bearer {self.api_key}":
            return None
        return web.json_response({"error": "Unauthorized"}, status=401)

    def chunks(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        thinks = self.thinks(body)
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{self.reasoning: text} for text in THOUGHT] if thinks else []
        deltas += [{"content": text} for text in ANSWER]
        found = [self.chunk([self.choice(delta=delta)]) for delta in deltas]
        found.append(self.chunk([self.choice(delta={"content": ""}, end="stop")]))
        if (body.get("stream_options") or {}).get("include_usage"):
            found.append({**self.chunk([]), "usage": self.usage(thinks)})
        return found

    def whole(self, body: dict[str, Any]) -> dict[str, Any]:
        thinks = self.thinks(body)
        message = {"role": "assistant", "content": "".join(ANSWER)}
        message[self.reasoning] = "".join(THOUGHT) if thinks else None  # type: ignore[assignment]
        choice = self.choice(message=message, end="stop")
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL}
        return {**head, "choices": [choice], "usage": self.usage(thinks)}

    def chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1}
        return {**head, "model": MODEL, "choices": choices}

    def thinks(self, body: dict[str, Any]) -> bool:
        kwargs = body.get("chat_template_kwargs") or {}
        if "enable_thinking" in kwargs:
            return bool(kwargs["enable_thinking"])
        return body.get("reasoning_effort") != "none"

    # ------------------------------------------------------------ where they differ

    reasoning = ""  # the member that carries it
    full: tuple[str, str] = ("", "")  # type and text of the error of a full queue

    efforts: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("text", "json_object", "json_schema", "structural_tag")

    def problem(self, body: dict[str, Any]) -> tuple[int, str, str, str | None] | None:
        """Status, type, text and field of what is wrong with a request."""
        form = (body.get("response_format") or {"type": "text"}).get("type")
        if form not in self.formats:
            return 400, "BadRequestError", f"Unknown response_format type {form}", "response_format"
        if body.get("reasoning_effort", "low") not in self.efforts:
            text = f"Input should be one of {self.efforts}"
            return 400, "BadRequestError", text, "reasoning_effort"
        if "thinking" in body:  # ignored by the engines, which is worse: it fails here
            return 400, "BadRequestError", "test: a word of Ark's", "thinking"
        asked = len(json.dumps(body["messages"])) // 4 + (body.get("max_tokens") or 16)
        if body.get("model") not in (MODEL, *self.adapters):
            return 404, "NotFoundError", f"The model `{body.get('model')}` does not exist.", None
        if asked > CONTEXT:
            return self.too_long(asked)
        return None

    @abstractmethod
    def too_long(self, asked: int) -> tuple[int, str, str, str | None]:
        """What is wrong with a request of more than the context: as `problem`."""

    @abstractmethod
    def error(self, status: int, kind: str, text: str, param: str | None = None) -> web.Response:
        """An error in the engine's shape."""

    @abstractmethod
    def choice(self, *, end: str | None = None, **part: Any) -> dict[str, Any]:
        """A choice of an answer, or of a chunk of a stream."""

    @abstractmethod
    def usage(self, thinks: bool) -> dict[str, Any]:
        """The usage of an answer."""

    @abstractmethod
    def metrics_text(self) -> str:
        """What /metrics says."""


class Vllm(Engine):
    """vLLM v0.32's server, with --enable-prompt-tokens-details and a reasoning parser."""

    name = "vllm"
    reasoning = "reasoning"
    full = ("Service Unavailable", "The server is at capacity, try again later.")
    efforts = ("none", "low", "medium", "high")
    old = False  # the names of the v0 engine's metrics

    def more_routes(self, app: web.Application) -> None:
        """None that a gateway asks."""

    def problem(self, body: dict[str, Any]) -> tuple[int, str, str, str | None] | None:
        if body.get("priority"):
            text = "Got priority 1 but Priority scheduling is not enabled."
            return 400, "BadRequestError", text, "priority"
        if body.get("continue_final_message") and body.get("add_generation_prompt", True):
            text = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
            return 400, "BadRequestError", text, None
        if any("reasoning_content" in message for message in body["messages"]):
            return 400, "BadRequestError", "test: the old name", "messages"
        forms = (body.get("structured_outputs") or {"": 0}).values()
        if sum(value is not None for value in forms) != 1:
            text = "You must use one kind of structured outputs constraint"
            return 400, "BadRequestError", text, "structured_outputs"
        if "regex" in body:
            return 400, "BadRequestError", "test: a word of another engine", "regex"
        return super().problem(body)

    def too_long(self, asked: int) -> tuple[int, str, str, str | None]:
        text = f"This model's maximum context length is {CONTEXT} tokens. However, you requested"
        return 400, "BadRequestError", f"{text} {asked} tokens.", "input_tokens"

    def error(self, status: int, kind: str, text: str, param: str | None = None) -> web.Response:
        error = {"message": text, "type": kind, "param": param, "code": status}
        return web.json_response({"error": error}, status=status)

    def choice(self, *, end: str | None = None, **part: Any) -> dict[str, Any]:
        return {"index": 0, **part, "logprobs": None, "finish_reason": end, "stop_reason": None}

    def usage(self, thinks: bool) -> dict[str, Any]:
        details = {"cached_tokens": 64, "multimodal_tokens": {"image": 144}}
        found = {"prompt_tokens": 200, "completion_tokens": 4, "total_tokens": 204}
        return {
            **found,
            "prompt_tokens_details": details,
            "completion_tokens_details": {"reasoning_tokens": 2 if thinks else 0},
        }

    def metrics_text(self) -> str:
        labels = f'{{engine="0",model_name="{MODEL}"}}'
        kv = "gpu_cache_usage_perc" if self.old else "kv_cache_usage_perc"
        pace = "time_per_output_token_seconds" if self.old else "inter_token_latency_seconds"
        return (
            "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
            "# TYPE vllm:num_requests_running gauge\n"
            f"vllm:num_requests_running{labels} {float(self.running)}\n"
            "# HELP vllm:num_requests_waiting Number of requests waiting to be processed.\n"
            "# TYPE vllm:num_requests_waiting gauge\n"
            f"vllm:num_requests_waiting{labels} {float(self.waiting)}\n"
            f"# TYPE vllm:{kv} gauge\n"
            f"vllm:{kv}{labels} 0.25\n"
            f"# TYPE vllm:{pace} histogram\n"
            f'vllm:{pace}_bucket{{engine="0",le="0.025",model_name="{MODEL}"}} {self.tokens}\n'
            f"vllm:{pace}_count{labels} {float(self.tokens)}\n"
            f"vllm:{pace}_sum{labels} {self.tokens * 0.02}\n"
        )


class Sglang(Engine):
    """SGLang's server, with --enable-cache-report; --enable-metrics as `metrics` says."""

    name = "sglang"
    reasoning = "reasoning_content"
    full = ("HTTPStatus.SERVICE_UNAVAILABLE", "The request queue is full.")
    efforts = ("none", "low", "medium", "high")

    def more_routes(self, app: web.Application) -> None:
        app.router.add_get("/v1/loads", self._loads)
        app.router.add_get("/server_info", self._server_info)

    async def _loads(self, _: web.Request) -> web.Response:
        rank = {
            "dp_rank": 0,
            "num_running_reqs": self.running,
            "num_waiting_reqs": self.waiting,
            "num_used_tokens": 10,
            "num_total_tokens": 1_000,
        }
        return web.json_response({"loads": [rank]})

    async def _server_info(self, _: web.Request) -> web.Response:
        return web.json_response({"max_running_requests": 48, "internal_states": [{}]})

    def problem(self, body: dict[str, Any]) -> tuple[int, str, str, str | None] | None:
        if "add_generation_prompt" in body or "structured_outputs" in body:
            return 400, "BadRequestError", "test: words of another engine", None
        return super().problem(body)

    def too_long(self, asked: int) -> tuple[int, str, str, str | None]:
        text = f"Requested token count exceeds the model's maximum context length of {CONTEXT}"
        return 400, "BadRequestError", f"{text} tokens. You requested {asked}.", None

    def error(self, status: int, kind: str, text: str, param: str | None = None) -> web.Response:
        error = {"object": "error", "message": text, "type": kind, "param": param, "code": status}
        return web.json_response(error, status=status)

    def choice(self, *, end: str | None = None, **part: Any) -> dict[str, Any]:
        stop = 151_336 if end else None
        return {"index": 0, **part, "logprobs": None, "finish_reason": end, "matched_stop": stop}

    def usage(self, thinks: bool) -> dict[str, Any]:
        return {
            "prompt_tokens": 200,
            "completion_tokens": 4,
            "total_tokens": 204,
            "prompt_tokens_details": {"cached_tokens": 64, "image_tokens": 144},
            "reasoning_tokens": 2 if thinks else 0,
        }

    def metrics_text(self) -> str:
        labels = f'{{model_name="{MODEL}",tp_rank="0",pp_rank="0"}}'
        return (
            "# HELP sglang:num_running_reqs The number of running requests.\n"
            "# TYPE sglang:num_running_reqs gauge\n"
            f"sglang:num_running_reqs{labels} {float(self.running)}\n"
            f"sglang:num_queue_reqs{labels} {float(self.waiting)}\n"
            f"sglang:num_grammar_queue_reqs{labels} 0.0\n"
            f"sglang:token_usage{labels} 0.25\n"
            f"sglang:gen_throughput{labels} 0.0\n"
            f"sglang:inter_token_latency_seconds_count{labels} {float(self.tokens)}\n"
            f"sglang:inter_token_latency_seconds_sum{labels} {self.tokens * 0.02}\n"
        )
