"""What the tests of Ark share: a fast emulator, requests, pictures."""

from __future__ import annotations

import base64
import io
from typing import Any

import aiohttp
import msgspec
from PIL import Image

from backends.ark.backend import ArkBackend
from backends.ark.emulator.settings import Settings
from backends.base import Call, Event, Timeouts
from backends.chat import ChatRequest
from policies.types import CloudPermit, Sensitivity

AT_ONCE = {"first_ms_min": 0.0, "first_ms_max": 0.0, "token_ms": 0.0}
SEED_2_1 = "doubao-seed-2-1-turbo-260628"
SEED_2_0 = "doubao-seed-2-0-mini-260428"
SEED_1_8 = "doubao-seed-1-8-251228"
SEED_1_6 = "doubao-seed-1-6-vision-250815"
SEED_1_5 = "doubao-1-5-pro-32k-250115"
VISION_1_5 = "doubao-1-5-vision-pro-32k-250328"
GLM_5_3 = "glm-5-3-flash-260828"
GLM_5_2 = "glm-5-2-260617"
KEY = "ark-0f0f0f0f-1111-2222-3333-444444444444-abcde"
HEADERS = {"Authorization": f"Bearer {KEY}"}
LIMITS = Timeouts(connect_s=2, first_s=5, idle_s=2, total_s=20)
NOW_S = 1_000_040.0  # wall clock of the backend under test: 40 s before a full minute
USER: list[dict[str, Any]] = [{"role": "user", "content": "Hello there, emulator"}]


def fast(**changes: Any) -> Settings:
    """Settings of an emulator that answers without waiting, on a free port."""
    return msgspec.convert({"port": 0, "latency": AT_ONCE, **changes}, Settings)


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, kind)
    return buffer.getvalue()


def data_url(width: int, height: int, kind: str = "PNG") -> str:
    text = base64.b64encode(picture(width, height, kind)).decode()
    return f"data:image/{kind.lower()};base64,{text}"


def chat(model: str = SEED_2_0, **fields: Any) -> ChatRequest:
    return msgspec.convert({"model": model, "messages": USER, **fields}, ChatRequest)


def call(model: str = SEED_2_0, *, permit: bool = True, limit: int = 4096, **fields: Any) -> Call:
    timeouts = fields.pop("timeouts", LIMITS)
    request = chat(model, **fields)
    return Call(
        request_id="yz-1",
        chat=request,
        output_tokens_max=limit,
        timeouts=timeouts,
        stream=bool(request.stream),
        permit=CloudPermit(request_id="yz-1", level=Sensitivity.PUBLIC) if permit else None,
    )


async def post(url: str, **body: Any) -> tuple[int, dict[str, str], Any]:
    """A bare request: (status, lower-case headers, body as JSON or bytes)."""
    headers = {**HEADERS, **body.pop("headers", {})}
    full = {"model": SEED_2_0, "messages": USER, **body}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/chat/completions", json=full, headers=headers) as answer,
    ):
        raw = await answer.read()
        found = {name.lower(): value for name, value in answer.headers.items()}
        is_json = answer.content_type == "application/json"
        return answer.status, found, msgspec.json.decode(raw) if is_json else raw


async def admin(url: str, path: str, method: str = "GET", body: Any = None) -> Any:
    root = url.removesuffix("/api/v3")
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"{root}/emulator/{path}", json=body) as answer,
    ):
        return await answer.json()


async def stream_of(backend: ArkBackend, sent: Call) -> list[Event]:
    """All events of a streamed call. Raises Failure."""
    reply = await backend.open(sent)
    try:
        return [event async for batch in reply.events() for event in batch]
    finally:
        await reply.close()


def chunks_of(raw: bytes) -> list[Any]:
    """The JSON objects of a stream, without [DONE]."""
    lines = [line.removeprefix(b"data: ") for line in raw.split(b"\n\n") if line]
    return [msgspec.json.decode(line) for line in lines if line != b"[DONE]"]
