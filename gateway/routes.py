"""The public address: which path leads to which dialect, and every error in one shape."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog
from aiohttp import web

from gateway.auth import AuthError
from gateway.errors import GatewayError
from gateway.gateway import Gateway
from gateway.serve import serve
from gateway.wire.chat import ChatDialect
from gateway.wire.predict import PredictDialect
from policies.types import Site

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = structlog.get_logger("yuzui.routes")

NAME_SHOWN_CHARS = 80
# When a name was made is nobody's business here; clients want a number: since when it is served.
STARTED_S = int(time.time())
CLIENT_GONE = 499  # as nginx calls it; never sent, there is nobody to send it to
_CHAT = ChatDialect()


def public_routes(gateway: Gateway) -> list[web.RouteDef]:
    """Every path of the public port."""

    async def chat(request: web.Request) -> web.StreamResponse:
        return await serve(gateway, request, _CHAT)

    async def predict(request: web.Request) -> web.StreamResponse:
        return await serve(gateway, request, PredictDialect(request.match_info["model"]))

    async def models(request: web.Request) -> web.StreamResponse:
        await gateway.authenticate(request)
        return _json(200, {"object": "list", "data": _models(gateway)})

    async def model(request: web.Request) -> web.StreamResponse:
        await gateway.authenticate(request)
        name = request.match_info["model"]
        for found in _models(gateway):
            if found["id"] == name:
                return _json(200, found)
        text = f"no model {name[:NAME_SHOWN_CHARS]!r}; GET /v1/models lists those that are here"
        raise GatewayError(404, "model_not_found", text, param="model")

    async def livez(_: web.Request) -> web.StreamResponse:
        return _json(200, {"status": "ok"})

    async def readyz(_: web.Request) -> web.StreamResponse:
        missing = await gateway.not_ready()
        if missing:
            return _json(503, {"status": "not ready", "missing": missing})
        return _json(200, {"status": "ready"})

    return [
        web.post("/v1/chat/completions", chat),
        web.post("/api/v3/chat/completions", chat),
        web.post("/v1/models/{model:[^:]+}:predict", predict),
        web.get("/v1/models", models),
        web.get("/api/v3/models", models),
        web.get("/v1/models/{model:.+}", model),
        web.get("/api/v3/models/{model:.+}", model),
        web.get("/livez", livez),
        web.get("/readyz", readyz),
    ]


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every error into the OpenAI shape; what nobody expected is logged, never shown."""
    try:
        return await handler(request)
    except GatewayError as error:
        return _error(error)
    except AuthError as error:
        _log.info("not_authenticated", code=error.code, why=error.why)
        return _error(GatewayError(error.status, error.code, error.message))
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _error(_of_http(error, request))
    except ConnectionResetError:
        # The client has left: nobody will read this, but raising would be logged as our error.
        return web.Response(status=CLIENT_GONE)
    except Exception:  # the last line of defence: a bug must not show a traceback to a stranger
        _log.exception("unexpected", path=request.path)
        text = "an unexpected error in the gateway; it has been logged"
        return _error(GatewayError(500, "internal_error", text))


def _of_http(error: web.HTTPException, request: web.Request) -> GatewayError:
    if error.status == 413:
        most = request.client_max_size
        text = f"the body is larger than the {most} bytes that limits.body_bytes_max allows"
        return GatewayError(413, "request_too_large", text)
    if error.status == 404:
        return GatewayError(404, "not_found", f"there is nothing at this path for {request.method}")
    if error.status == 405:
        return GatewayError(405, "method_not_allowed", f"{request.method} is not allowed here")
    return GatewayError(error.status, "http_error", error.reason or "bad request")


def _error(error: GatewayError) -> web.Response:
    return web.Response(
        status=error.status,
        body=error.body(),
        content_type="application/json",
        headers=error.headers,
    )


def _models(gateway: Gateway) -> list[dict[str, object]]:
    """Public names first, then the same with a side in front, then adapters that workers have."""
    names = sorted(gateway.rules.routes)
    sided = [f"{site.value}/{name}" for site in Site for name in names if gateway.has(site, name)]
    adapted = [f"{name}:{adapter}" for name in names for adapter in gateway.adapters(name)]
    listed = [*names, *sided, *adapted]
    return [
        {"id": name, "object": "model", "created": STARTED_S, "owned_by": "yuzui"}
        for name in listed
    ]


def _json(status: int, value: object) -> web.Response:
    return web.Response(
        status=status, body=msgspec.json.encode(value), content_type="application/json"
    )
