"""A whole gateway on real sockets: real Valkey, engines with fixed answers, the Ark emulator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from backends.ark.emulator.server import Emulator
from backends.ark.emulator.settings import Settings
from backends.scripted_server import ScriptedServer, ServerOptions
from gateway.app import serve_until
from gateway.config import Config
from gateway.keys import from_secret, issue
from gateway.ledger.ledger import Ledger, Row, Till
from gateway.tasks import spawn
from tests.ports import free_port

SECRET = "a secret of the tests, 32 bytes or more"
ADMIN_TOKEN = "an admin token of the tests"
ARK_KEY = "ark-key-of-the-tests"
AT_ONCE = {"first_ms_min": 0.0, "first_ms_max": 0.0, "token_ms": 0.0}
PATIENCE_S = 60.0  # nobody waits so long where all is well; a busy machine may need it


class Rig:
    """One running gateway and what stands behind it."""

    def __init__(
        self, config: Config, workers: list[ScriptedServer], cloud: Emulator | None
    ) -> None:
        self.config = config
        self.url = f"http://127.0.0.1:{config.port}"
        self.admin_url = f"http://127.0.0.1:{config.admin_port}"
        self.workers = workers
        self.cloud = cloud
        self.http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S))
        self.stop = asyncio.Event()
        self.ledger: Ledger | None = None

    def token(self, **claims: Any) -> str:
        asked = {"tenant": "t", "subject": "s", "ttl_s": 600, **claims}
        return issue(
            from_secret("default", SECRET.encode()), issuer="yuzui", audience="yuzui", **asked
        )

    def headers(self, **more: str) -> dict[str, str]:
        named = {f"x-yuzui-{name.replace('_', '-')}": value for name, value in more.items()}
        return {"Authorization": f"Bearer {self.token()}", **named}

    async def ask(
        self,
        headers: Mapping[str, str] | None = None,
        *,
        path: str = "/v1/chat/completions",
        **body: Any,
    ) -> Answered:
        """One request; its whole answer."""
        sent = {"model": "glm-4.6v", "messages": [{"role": "user", "content": "hello"}], **body}
        found = headers if headers is not None else self.headers()
        async with self.http.post(self.url + path, json=sent, headers=found) as response:
            return Answered(
                response.status,
                {k.lower(): v for k, v in response.headers.items()},
                await response.read(),
            )

    async def leave(self, arrived: Callable[[], bool], **body: Any) -> None:
        """A client that goes away when its request has arrived upstream and, of a stream, the
        beginning of the answer has come."""
        came, pieces = asyncio.Event(), 0

        async def read() -> None:
            nonlocal pieces
            url = f"{self.url}/v1/chat/completions"
            async with self.http.post(url, json=body, headers=self.headers()) as response:
                async for line in response.content:
                    pieces += line.startswith(b"data: {")
                    if pieces == 3:
                        came.set()

        reading = spawn(read(), name="client")
        await until(arrived)
        if body.get("stream"):
            async with asyncio.timeout(PATIENCE_S):
                await came.wait()
        reading.cancel()
        await asyncio.wait([reading])

    async def admin(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        url = self.admin_url + path
        async with self.http.request(method, url, json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def budget(self, scope: str, limit_nano: int, period: str = "day") -> None:
        asked = {"scope": scope, "limit_nano": limit_nano, "period": period}
        await self.admin("PUT", "/admin/budgets", asked)

    async def ready_worker(self) -> None:
        """Returns when a worker is fit to be asked."""
        async with asyncio.timeout(2 * PATIENCE_S):
            while not any(  # noqa: ASYNC110 - the gateway is another process as far as we know
                worker["health"] == "up"
                for worker in (await self.admin("GET", "/admin/pool"))["workers"]
            ):
                await asyncio.sleep(0.1)

    async def rows(self) -> list[Row]:
        assert self.ledger is not None
        return [row async for row in self.ledger.rows()]

    async def till(self) -> Till:
        assert self.ledger is not None
        return await self.ledger.till()

    async def settled(self) -> list[Row]:
        """The rows, once no hold is open; every sum must agree then."""
        async with asyncio.timeout(PATIENCE_S):
            while (till := await self.till()).held_nano:  # noqa: ASYNC110 - Redis has no event
                await asyncio.sleep(0.02)
        rows = await self.rows()
        assert sum(row.posted_nano for row in rows) == till.posted_nano
        return rows

    @property
    def cloud_root(self) -> str:
        assert self.cloud is not None
        return self.cloud.url.removesuffix("/api/v3")

    async def fault(self, fault: Mapping[str, Any], **rule: Any) -> None:
        """The emulator's next answers, see its /emulator/faults."""
        url = f"{self.cloud_root}/emulator/faults"
        async with self.http.post(url, json={"fault": fault, **rule}) as response:
            assert response.status == 200, await response.text()

    async def cloud_requests(self) -> list[dict[str, Any]]:
        """What the emulator has received, without texts."""
        assert self.cloud is not None
        url = f"{self.cloud_root}/emulator/requests?limit=1000"
        async with self.http.get(url) as response:
            found: list[dict[str, Any]] = (await response.json())["rows"]
            return found


class Answered(msgspec.Struct, frozen=True):
    """An answer read to its end."""

    status: int
    headers: dict[str, str]  # lower-case names
    body: bytes

    def header(self, name: str) -> str | None:
        return self.headers.get(f"x-yuzui-{name}")

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])

    @property
    def chunks(self) -> list[Any]:
        """The JSON objects of a stream."""
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: {")]
        return [msgspec.json.decode(line) for line in lines]

    @property
    def ended_well(self) -> bool:
        return self.body.endswith(b"data: [DONE]\n\n")


async def until(true: Callable[[], bool]) -> None:
    """Returns when something has become true. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def rig(
    redis_url: str,
    *,
    workers: list[ServerOptions] | None = None,
    cloud: bool | Settings = False,
    settings: Mapping[str, object] | None = None,
) -> AsyncIterator[Rig]:
    """workers: one scripted engine for each; None: one.   cloud: the emulator too."""
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(ScriptedServer(options))
            for options in ([ServerOptions()] if workers is None else workers)
        ]
        emulator = None
        if cloud:
            fast = msgspec.convert({"port": 0, "latency": AT_ONCE}, Settings)
            emulator = Emulator(fast if cloud is True else cloud)
            await emulator.start()
            stack.push_async_callback(emulator.close)
        overrides: dict[str, object] = {
            "port": free_port(),
            "admin_port": free_port(),
            "redis_url": redis_url,
            "auth.secret": SECRET,
            "admin_token": ADMIN_TOKEN,
            "workers": [engine.url for engine in engines],
            **(settings or {}),
        }
        if emulator is not None:
            overrides |= {"ark.base_url": emulator.url, "ark.api_key": ARK_KEY}
        config = Config.load(environ={}, overrides=overrides)
        found = Rig(config, engines, emulator)
        stack.push_async_callback(found.http.close)
        found.ledger = await Ledger.connect(redis_url, instance="onlooker")
        stack.push_async_callback(found.ledger.close)
        running = spawn(serve_until(config, found.stop), name="gateway")
        try:
            await _ready(found, running)
            yield found
        finally:
            found.stop.set()
            await running


async def _ready(found: Rig, running: asyncio.Task[None]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if running.done():
                running.result()
            try:
                async with found.http.get(f"{found.url}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.02)
