"""The emulator's HTTP server: routes, the checks of a request in their order, start and stop.

Order of a chat request: API key, JSON, model, injected fault, requests a minute, parameters and
prompt, tokens a minute and concurrency, answer. The admin routes under `/emulator/` have no key:
the server binds to the loopback address unless it is told otherwise.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import msgspec
from aiohttp import web

from backends.ark.emulator import speak
from backends.ark.emulator.admin import Admin, answer_json
from backends.ark.emulator.answer import compose
from backends.ark.emulator.asked import Asked, Target, read, target_of
from backends.ark.emulator.billing import Bill
from backends.ark.emulator.books import Books, Charged, Received
from backends.ark.emulator.control import ControlPlane
from backends.ark.emulator.faults import (
    INJECT_HEADER,
    NO_FAULT,
    Fault,
    FaultBook,
    Refused,
    parse,
)
from backends.ark.emulator.limits import Limiter, Wish
from backends.ark.emulator.settings import BODY_BYTES_MAX, LimitRow, Settings
from backends.ark.emulator.tokens import PrefixCache
from backends.ark.models import CATALOGUE, base_name
from backends.listen import listen

MARK_HEADER = "X-Emulated"
MARK = "yuzui-ark-emulator"
CLIENT_ID_HEADER = "X-Client-Request-Id"
_CREATED_S = 1_756_684_800  # of every entry of the model list; the real dates are not published
_ID_CHARS_MAX = 128
_ROW = web.RequestKey("row", Received)


class Dice:
    """Numbers in [0, 1) that follow from a seed: the same run gives the same numbers."""

    def __init__(self, seed: int, name: str) -> None:
        self._key = f"{seed}/{name}".encode()
        self._count = 0

    def __call__(self) -> float:
        self._count += 1
        digest = blake2b(str(self._count).encode(), key=self._key, digest_size=7).digest()
        return int.from_bytes(digest, "big") / 2**56


class Emulator:
    """The server and everything it remembers.

    clock: wall clock in seconds; limits and the cache go by it, so a test may move it.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self._clock = clock
        self._runner: web.AppRunner | None = None
        self.url = ""  # base URL for clients, known after start()
        self.reset()

    def reset(self) -> None:
        """Forgets everything: books, limits, cache, rules that were added."""
        settings = self.settings
        self.bill = Bill(settings.billing, self._clock)
        self.books = Books(settings.rows_max, on_charge=self.bill.add)
        # Rules count down: each start gets copies.
        rules = [msgspec.structs.replace(rule) for rule in settings.faults]
        self.faults = FaultBook(rules, Dice(settings.seed, "faults"))
        self._pace = Dice(settings.seed, "pace")
        self._limiter = Limiter(
            window_s=settings.window_s,
            concurrency=settings.concurrency,
            burst=settings.burst,
            clock=self._clock,
        )
        self._cache = PrefixCache(
            blocks_max=settings.cache_blocks_max, ttl_s=settings.cache_ttl_s, clock=self._clock
        )

    # -- start and stop ------------------------------------------------------------------------

    def app(self) -> web.Application:
        """The routes. Everything else is a 404 with an empty body, like Ark's."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        base = self.settings.base_path.rstrip("/")
        app.router.add_post(f"{base}/chat/completions", self._chat)
        app.router.add_get(f"{base}/models", self._models)
        Admin(self).add_to(app.router)
        ControlPlane(lambda: self.bill, self.settings.billing).add_to(app.router)
        app.router.add_route("*", "/{path:.*}", self._nowhere)
        app.on_response_prepare.append(self._mark)
        return app

    async def start(self) -> str:
        """Listens; returns the base URL for clients. Raises ListenError."""
        # The access log is off: it costs time, and books.Received says more. The handler must be
        # cancelled when the client leaves, otherwise nobody stops generating (and charging).
        self._runner = web.AppRunner(
            self.app(), access_log=None, handler_cancellation=True, shutdown_timeout=1.0
        )
        await self._runner.setup()
        host, port = self.settings.host, self.settings.port
        site = web.TCPSite(self._runner, host, port)
        await listen(site, host=host, port=port, names=("--host", "--port"))
        host, port = self._runner.addresses[0][:2]
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{port}{self.settings.base_path.rstrip('/')}"
        return self.url

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _mark(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Every answer says that it is emulated, and echoes the caller's request id."""
        response.headers[MARK_HEADER] = MARK
        row = request.get(_ROW)
        if row is not None:
            if row.client_request_id is not None:
                response.headers[CLIENT_ID_HEADER] = row.client_request_id
            if self.settings.send_request_id:
                response.headers["X-Request-Id"] = row.server_id

    # -- chat ----------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        row = self._arrived(request)
        request[_ROW] = row
        try:
            response = await self._serve(request, row)
            if row.state != "dropped":
                row.status = response.status
        except Refused as refused:
            row.state, row.status, row.code = "refused", refused.status, refused.code
            response = self._error(refused, row.server_id)
        except (asyncio.CancelledError, ConnectionError):
            if row.state == "open":
                row.state = "client_left"
            raise
        finally:
            self.books.leave(row)
        return response

    def _arrived(self, request: web.Request) -> Received:
        seq = self.books.received.count
        client_id = request.headers.get(CLIENT_ID_HEADER)
        row = Received(
            seq=seq,
            at_s=self._clock(),
            server_id=self._server_id(seq),
            client_request_id=client_id and client_id[:_ID_CHARS_MAX],
            path=request.path,
        )
        self.books.arrive(row)
        return row

    def _server_id(self, seq: int) -> str:
        """Ark's form: 02, milliseconds of the wall clock, 32 hexadecimal digits."""
        tail = blake2b(str(seq).encode(), key=str(self.settings.seed).encode(), digest_size=16)
        return f"02{int(self._clock() * 1000):013d}{tail.hexdigest()}"

    async def _serve(self, request: web.Request, row: Received) -> web.StreamResponse:
        row.account = self._account(request)
        body = await self._body(request)
        target = target_of(body.get("model"), self.settings)
        row.model = target.endpoint or target.served
        row.stream = bool(body.get("stream"))
        fault = self._fault(request, row.model)
        if fault.drop:
            row.state = "dropped"
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if fault.refuses:
            raise Refused(fault.code or "", fault=fault)
        wish = self._wish(row.account, target)
        self._limiter.count_request(wish)
        asked = read(body, target, self.settings)
        row.images = len(asked.picture_sizes)
        row.prompt_tokens = asked.prompt_tokens
        return await self._answer(request, row, asked, fault, wish)

    async def _answer(
        self, request: web.Request, row: Received, asked: Asked, fault: Fault, wish: Wish
    ) -> web.StreamResponse:
        """Speaks, and books what it cost however it ends."""
        expected = asked.max_completion_tokens or asked.max_tokens
        if expected is None:
            expected = self.settings.output_estimate_tokens
        taken = self._limiter.take(wish, asked.prompt_tokens + expected)
        spoken = self._spoken(row, asked, fault, wish.account)
        started_s = self._clock()
        try:
            if asked.stream:
                return await speak.Stream(request, spoken, self.settings).run()
            return await speak.plain(spoken, self.settings)
        finally:
            row.state = spoken.state
            row.completion_tokens = spoken.completion_tokens
            self._limiter.release(taken, asked.prompt_tokens + spoken.completion_tokens)
            self.books.charge(
                Charged(
                    seq=row.seq,
                    server_id=row.server_id,
                    client_request_id=row.client_request_id,
                    account=wish.account,
                    model=asked.target.served,
                    endpoint=asked.target.endpoint,
                    service_tier=asked.service_tier,
                    stream=asked.stream,
                    started_s=started_s,
                    ended_s=self._clock(),
                    prompt_tokens=asked.prompt_tokens,
                    cached_tokens=spoken.cached_tokens,
                    image_tokens=asked.image_tokens,
                    completion_tokens=spoken.completion_tokens,
                    reasoning_tokens=spoken.reasoning_done,
                    state=spoken.state,
                )
            )

    def _spoken(self, row: Received, asked: Asked, fault: Fault, account: str) -> speak.Spoken:
        pace = self.settings.latency
        spread = pace.first_ms_max - pace.first_ms_min
        drawn_ms = pace.first_ms_min + spread * self._pace()
        first_ms = drawn_ms if fault.first_ms is None else fault.first_ms
        token_ms = pace.token_ms if fault.token_ms is None else fault.token_ms
        return speak.Spoken(
            asked=asked,
            answer=compose(asked, self.settings, fault),
            fault=fault,
            server_id=row.server_id,
            created_s=int(self._clock()),
            cached_tokens=self._cached(asked, account),
            first_s=first_ms / 1000,
            token_s=token_ms / 1000,
        )

    def _cached(self, asked: Asked, account: str) -> int:
        """Tokens of the prompt that the implicit cache knows; never the whole prompt."""
        least = asked.target.known.cache_prefix_tokens
        if least is None:
            return 0
        scope = f"{account}/{asked.target.served}"
        hit = self._cache.hit(scope, asked.prefix_hashes, prefix_tokens_min=least)
        return min(hit, asked.prompt_tokens - 1)

    def _account(self, request: web.Request) -> str:
        """API key -> account. Raises Refused(AuthenticationError)."""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Refused("AuthenticationError")
        if not self.settings.keys:
            return "default"
        given = key.strip().encode("utf-8", "surrogateescape")
        for known in self.settings.keys:
            if hmac.compare_digest(known.key.encode(), given):
                return known.account
        raise Refused("AuthenticationError")

    async def _body(self, request: web.Request) -> dict[str, Any]:
        try:
            body = msgspec.json.decode(await request.read())
        except web.HTTPRequestEntityTooLarge as error:
            raise Refused("RequestTooLarge") from error
        except msgspec.DecodeError as error:
            raise Refused("InvalidParameter", "The body is not valid JSON.") from error
        if not isinstance(body, dict):
            raise Refused("InvalidParameter", "The body must be a JSON object.")
        return body

    def _fault(self, request: web.Request, model: str) -> Fault:
        """The header of the request counts before the rules."""
        header = request.headers.get(INJECT_HEADER)
        if header is not None:
            return parse(header)
        return self.faults.strike(model)

    def _wish(self, account: str, target: Target) -> Wish:
        name = base_name(target.served)
        row = self.settings.limits.get(name) or self.settings.limits.get("*") or LimitRow()
        return Wish(
            account=account,
            name=name,
            rpm=target.known.rpm if row.rpm is None else row.rpm,
            tpm=target.known.tpm if row.tpm is None else row.tpm,
            endpoint=target.endpoint,
            endpoint_rpm=target.endpoint_rpm,
            endpoint_tpm=target.endpoint_tpm,
            burst_code=target.known.burst_code,
        )

    def _error(self, refused: Refused, server_id: str) -> web.Response:
        headers: dict[str, str] = {}
        fault = refused.fault
        if fault.retry_after_s is not None:
            headers["Retry-After"] = f"{fault.retry_after_s:g}"
        elif refused.status == 429 and fault is NO_FAULT and self.settings.send_retry_after:
            headers["Retry-After"] = str(int(self._limiter.window_left_s()) + 1)
        if fault.should_retry is not None:
            headers["x-should-retry"] = str(fault.should_retry).lower()
        return web.Response(
            status=refused.status,
            body=refused.body(server_id),
            headers=headers,
            content_type="application/json",
        )

    async def _models(self, request: web.Request) -> web.Response:
        try:
            self._account(request)
        except Refused as refused:
            return self._error(refused, self._server_id(0))
        rows = []
        for name in (*CATALOGUE, *self.settings.models):
            entry = {"id": name, "object": "model", "created": _CREATED_S, "owned_by": "emulated"}
            if name in self.settings.retired_models:
                entry["status"] = "Shutdown"
            rows.append(entry)
        return answer_json({"object": "list", "data": rows})

    async def _nowhere(self, _request: web.Request) -> web.Response:
        return web.Response(status=404)
