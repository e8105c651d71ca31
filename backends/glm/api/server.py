"""HTTP: the OpenAI chat dialect, health, models and load. Nothing here knows the model.

A reply begins when the first token exists. Until then a failure still has a status of its own, and
a gateway in front can take the request elsewhere.
"""

from __future__ import annotations

import asyncio
import time
import traceback
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import structlog
from aiohttp import web

from backends.glm.answer.choices import Choice, Naming
from backends.glm.api.adapter_calls import adapter_routes
from backends.glm.api.bodies import Bodies
from backends.glm.api.models import described, listed
from backends.glm.api.replies import DONE, ReplyHead, sse, timings
from backends.glm.api.report import LoadReporter
from backends.glm.api.service import Conversation, Service
from backends.glm.engine.events import Failed, Finished, Progress
from backends.glm.errors import (
    WorkerError,
    engine_failure,
    worker_draining,
    worker_failed,
)

CALL_BYTES_MAX = 64 * 1024  # of calls other than chat: a name and a path
CALLER_GONE = 499  # nginx's; nobody reads it
PATH_TOLD = 80  # characters of an unknown path that are said back
LOAD_HEADER = "x-yuzui-load"
_STREAM_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}

_SERVICE: web.AppKey[Service] = web.AppKey("service", Service)
_REPORTER: web.AppKey[LoadReporter] = web.AppKey("reporter", LoadReporter)
_BODIES: web.AppKey[Bodies] = web.AppKey("bodies", Bodies)

_log = structlog.get_logger("glm.server")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(service: Service, reporter: LoadReporter) -> web.Application:
    """The application; run it with `handler_cancellation=True`, or callers who leave are missed."""
    app = web.Application(client_max_size=CALL_BYTES_MAX, middlewares=[_errors_as_json])
    app[_SERVICE] = service
    app[_REPORTER] = reporter
    app[_BODIES] = Bodies()
    app.router.add_post("/v1/chat/completions", _chat)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/v1/models/{name:.+}", _model)
    app.add_routes(adapter_routes(service))
    app.router.add_get("/health", _health)
    app.router.add_get("/load", _load)
    return app


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except WorkerError as error:
        return _error_reply(request, error)
    except web.HTTPException as error:  # aiohttp's own: unknown path, wrong method, body too large
        return _error_reply(request, _of_http(error, request))
    except ConnectionError:  # the caller left in mid-reply: raised, it would be logged as our error
        return web.Response(status=CALLER_GONE)
    except Exception as error:  # the last line of defence: the caller gets a shape it can read
        where = traceback.extract_tb(error.__traceback__)[-1]
        _log.error(
            "unexpected_error",
            kind=type(error).__name__,
            at=f"{where.name}:{where.lineno}",
            path=request.path,
        )
        return _error_reply(request, engine_failure("The worker failed on this request."))


def _of_http(error: web.HTTPException, request: web.Request) -> WorkerError:
    """aiohttp's own refusal in our shape, with what to do instead."""
    code, text = error.reason.lower().replace(" ", "_"), error.reason
    if isinstance(error, web.HTTPNotFound):
        text = f"There is nothing at {request.method} {request.path[:PATH_TOLD]}; the calls are "
        text += "POST /v1/chat/completions, GET /v1/models, GET /health and GET /load."
    elif isinstance(error, web.HTTPMethodNotAllowed):
        text = f"This path takes {', '.join(sorted(error.allowed_methods))}, not {error.method}."
    elif isinstance(error, web.HTTPRequestEntityTooLarge):
        code = "request_too_large"
        text = f"The body of this call may have at most {CALL_BYTES_MAX:,} bytes."
    return WorkerError(text, status=error.status, kind="invalid_request_error", code=code)


def _error_reply(request: web.Request, error: WorkerError) -> web.Response:
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if request.method == "POST":
        headers[LOAD_HEADER] = request.app[_REPORTER].header()
    return _json(error.body(), status=error.status, headers=headers)


def _json(
    payload: dict[str, Any], *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(payload),
        status=status,
        headers=headers,
        content_type="application/json",
    )


async def _health(request: web.Request) -> web.Response:
    service = request.app[_SERVICE]
    if service.trouble is not None:
        return _json({"status": service.state, "reason": service.trouble}, status=503)
    return _json({"status": service.state}, status=200 if service.state == "ok" else 503)


async def _models(request: web.Request) -> web.Response:
    return _json(listed(request.app[_SERVICE]))


async def _model(request: web.Request) -> web.Response:
    return _json(described(request.app[_SERVICE], request.match_info["name"]))


async def _load(request: web.Request) -> web.StreamResponse:
    reporter = request.app[_REPORTER]
    if request.app[_SERVICE].trouble is not None:
        return _json(reporter.snapshot(), status=503)
    if request.query.get("watch") not in ("1", "true"):
        return _json(reporter.snapshot())
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    async for report in reporter.watch():
        await response.write(msgspec.json.encode(report) + b"\n")
    return response


async def _chat(request: web.Request) -> web.StreamResponse:
    body = request.app[_BODIES].read(request)
    async with request.app[_SERVICE].converse(body) as talk:
        headers = {LOAD_HEADER: request.app[_REPORTER].header()}
        head = ReplyHead(
            naming=Naming(reply_id=f"chatcmpl-{uuid.uuid4().hex}", spelled=talk.spelled),
            created_s=int(time.time()),
            model=talk.request.model,
            logprobs=talk.request.sampling.logprobs is not None,
        )
        try:
            if not talk.request.stream:
                return _json(await _whole(talk, head), headers=headers)
            first = await _next(talk)  # a failure so far still has a status
            response = web.StreamResponse(headers={**headers, **_STREAM_HEADERS})
            await response.prepare(request)
            await _relay(talk, head, first=first, response=response)
            return response
        except (asyncio.CancelledError, ConnectionError):
            _log.info("caller_left", prompt_tokens=len(talk.prompt.ids))
            raise


async def _whole(talk: Conversation, head: ReplyHead) -> dict[str, Any]:
    choices = [Choice(index) for index in range(talk.request.n)]
    ends: dict[int, Finished] = {}
    while len(ends) < len(choices):
        index, event = await _next(talk)
        choices[index].take(event.deltas)
        if isinstance(event, Finished):
            ends[index] = event
    ordered = [ends[choice.index] for choice in choices]
    _log_end(talk, ordered)
    return head.completion(choices, ordered, talk.prompt)


async def _relay(
    talk: Conversation,
    head: ReplyHead,
    *,
    first: tuple[int, Progress | Finished],
    response: web.StreamResponse,
) -> None:
    """Write the stream. A stream that breaks ends with an error and without [DONE], because the
    end of a broken stream must not look like the end of an answer."""
    ends: dict[int, Finished] = {}
    called: set[int] = set()
    event: Progress | Finished
    index, event = first
    text = b"".join(sse(head.role_chunk(choice)) for choice in range(talk.request.n))
    while True:
        text += b"".join(sse(head.delta_chunk(index, delta)) for delta in event.deltas)
        if any(delta.channel == "call" for delta in event.deltas):
            called.add(index)
        if isinstance(event, Finished):
            ends[index] = event
            text += sse(head.finish_chunk(index, event, called=index in called))
            if len(ends) == talk.request.n:
                break
        if text:
            await response.write(text)
        try:
            index, event = await _next(talk)
        except WorkerError as error:
            await response.write(sse(error.body()))
            return
        text = b""
    ordered = [ends[choice] for choice in range(talk.request.n)]
    _log_end(talk, ordered)
    if talk.request.include_usage:
        text += sse(head.usage_chunk(talk.prompt, ordered))
    await response.write(text + DONE)


async def _next(talk: Conversation) -> tuple[int, Progress | Finished]:
    """The next event and whose it is, unless it is a failure. Raises: WorkerError 500 or 503."""
    choice, event = await talk.events.get()
    if not isinstance(event, Failed):
        return choice, event
    if event.aborted:  # the caller's own abort is never read, so the worker is being stopped
        raise worker_draining()
    if event.engine:
        raise worker_failed()
    _log.error("engine_failure", detail=event.detail[:300])
    raise engine_failure("The engine failed on this request.")


def _log_end(talk: Conversation, ends: list[Finished]) -> None:
    _log.info(
        "chat",
        stream=talk.request.stream,
        finish=",".join(end.reason for end in ends),
        prompt_tokens=len(talk.prompt.ids),
        image_tokens=talk.prompt.image_tokens,
        completion_tokens=sum(end.completion_tokens for end in ends),
        **timings(ends),
    )
