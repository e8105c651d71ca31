"""Two addresses before one gateway: the public port and the admin port, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import secrets

import structlog
from aiohttp import web

from backends.listen import listen
from gateway.admin.admin import admin_routes
from gateway.config import ENVIRONMENT, Config
from gateway.gateway import Gateway
from gateway.ledger.ledger import Ledger
from gateway.routes import errors_as_json, public_routes

_log = structlog.get_logger("yuzui.app")

BACKLOG = 1024  # connections that may wait while the loop is busy
ADMIN_BODY_BYTES_MAX = 1024 * 1024


async def serve_until(config: Config, stop: asyncio.Event) -> None:
    """Runs one gateway process until `stop` is set, then drains it. Raises ListenError."""
    _allow_descriptors()
    instance = f"gw-{os.getpid()}-{secrets.token_hex(4)}"
    ledger = await Ledger.connect(config.redis_url or "", instance=instance)
    gateway = Gateway(config, ledger)
    public = web.Application(
        client_max_size=config.limits.body_bytes_max, middlewares=[errors_as_json]
    )
    public.add_routes(public_routes(gateway))
    admin = web.Application(client_max_size=ADMIN_BODY_BYTES_MAX, middlewares=[errors_as_json])
    admin.add_routes(admin_routes(gateway))
    runners = [_runner(public), _runner(admin)]
    try:
        await gateway.start()
        sites = [
            await _listen(runners[0], config, "YUZUI_HOST", "YUZUI_PORT"),
            await _listen(runners[1], config, "YUZUI_ADMIN_HOST", "YUZUI_ADMIN_PORT"),
        ]
        _quiet_collector()
        _log.info("listening", port=config.port, admin_port=config.admin_port, pid=os.getpid())
        await stop.wait()
        for site in sites:
            await site.stop()
        await gateway.admission.drained(config.limits.drain_s)
    finally:
        for runner in runners:
            await runner.cleanup()
        await gateway.close()
        _log.info("stopped", pid=os.getpid())


def _allow_descriptors() -> None:
    """As many as this process may have. A request is two connections, and a shell's usual limit of
    1,024 is half of what may be inside; out of descriptors, every worker looks dead."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS names no bound and takes none
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _quiet_collector() -> None:
    """What lives now lives as long as the process: the collector need not look at it again. Nor
    need it look often: requests leave few cycles behind, and 8 % of the CPU went into looking."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _runner(app: web.Application) -> web.AppRunner:
    return web.AppRunner(
        app,
        handler_cancellation=True,  # else a client that left is noticed only when we write to it
        auto_decompress=False,  # a small body must not become a large one
        access_log=None,  # an exchange writes its own line
        shutdown_timeout=1.0,  # drain() has waited already
    )


async def _listen(
    runner: web.AppRunner, config: Config, host_name: str, port_name: str
) -> web.TCPSite:
    """Listens where the settings of these variables say. Raises ListenError."""
    host, port = (getattr(config, ENVIRONMENT[name]) for name in (host_name, port_name))
    if runner.server is None:
        await runner.setup()
    shared = config.gateways > 1  # several processes on one port: the kernel deals out connections
    site = web.TCPSite(runner, host, port, reuse_port=shared or None, backlog=BACKLOG)
    await listen(site, host=host, port=port, names=(host_name, port_name))
    return site
