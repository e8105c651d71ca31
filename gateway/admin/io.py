"""What every path of the admin port does alike: read a typed body, answer JSON."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from aiohttp import web

from gateway.errors import GatewayError

T = TypeVar("T")
MOMENT_MS_MAX = 253_402_214_400_000  # 9999-12-31: no calendar here knows a later one
ACTOR_HEADER = "x-yuzui-actor"


async def read_json(request: web.Request, kind: type[T]) -> T:
    """The body as `kind`. Raises GatewayError that names the field."""
    try:
        return msgspec.json.decode(await request.read(), type=kind)
    except msgspec.DecodeError as error:
        raise GatewayError(400, "invalid_value", str(error)) from None


def answer_json(value: object) -> web.Response:
    body = msgspec.json.encode(value, enc_hook=dict)  # a read-only mapping is one all the same
    return web.Response(body=body, content_type="application/json")


def moment(request: web.Request, name: str) -> int | None:
    """A query parameter in milliseconds since 1970. Raises GatewayError."""
    value = request.query.get(name)
    if value is None:
        return None
    if not re.fullmatch("[0-9]{1,15}", value) or int(value) > MOMENT_MS_MAX:
        text = f"{name} must be milliseconds since 1970, got {value[:80]!r}"
        raise GatewayError(400, "invalid_value", text, param=name)
    return int(value)


def actor(request: web.Request) -> str:
    """Who asks, for the audit trail: what the bearer of the admin token says of himself."""
    return request.headers.get(ACTOR_HEADER, "admin")
