"""One gateway process: its parts, put together from the settings, and their start and end."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Coroutine, Mapping
from typing import Any

import structlog
from aiohttp import web
from msgspec.structs import replace

from backends.ark.backend import ArkBackend
from backends.ark.models import traits_of
from backends.base import Backend, Failure, Kind, Timeouts
from backends.egress import Egress
from backends.pool import Pool
from backends.pool.discovery import DnsSource, HeartbeatSource, Source
from gateway.admission import Admission
from gateway.auth import Authenticator
from gateway.config import Config
from gateway.history import History
from gateway.ledger.alerts import Alerts
from gateway.ledger.ledger import Ledger, LedgerFault, LedgerUnavailable
from gateway.ledger.spool import Spool
from gateway.pool.heartbeats import BEAT_EVERY_S, BEAT_TTL_S, Heartbeats
from gateway.pool.waiting import WaitingRoom
from gateway.prices.cards import load_book
from gateway.reports.drift import DriftWatch
from gateway.snapshot import World
from gateway.tasks import spawn
from policies.drift import Drift
from policies.price import PriceBook, PriceCard, Unpriced
from policies.types import Attempt, Health, ModelTraits, Principal, Site, SloClass
from policies.weigh import Route, Rules

_log = structlog.get_logger("yuzui.gateway")

TEND_EVERY_S = 1.0  # lease, sweep, and the ledger's figures for the snapshot
READY_PATIENCE_S = 0.5
OWN_CALLS_MAX = 16
HISTORY_ROWS = 5_000  # that a starting process looks at, for how long answers are
JWKS_BYTES_MAX = 1024 * 1024
_JWKS_LIMITS = Timeouts(connect_s=2.0, first_s=5.0, idle_s=5.0, total_s=10.0)


class Gateway:
    """The parts that a request meets. Constructed here and nowhere else."""

    def __init__(self, config: Config, ledger: Ledger) -> None:
        self.config = config
        self.ledger = ledger
        self._book = load_book(config.prices.cards)
        self._rules = rules_of(config, self._book, _now_ms())
        self._rules_until_ms = self._book.until_ms(_now_ms())
        self.label_rules = config.sensitivity.rules()
        self.rng = random.Random(secrets.randbits(64))  # noqa: S311 - draws workers, not secrets
        self.admission = Admission(config.limits.in_flight_max)
        self.admin_token = config.admin_token.reveal() if config.admin_token else None
        self._heartbeats = Heartbeats(config.redis_url or "")
        # one connection for each request that may be inside, and a few for keys and alerts
        calls_max = config.limits.in_flight_max + OWN_CALLS_MAX
        self._egress = Egress(allowed=_allowed(config), connections_max=calls_max)
        self.pool = Pool(
            self._egress,
            config.members(),
            sources=self._sources(),
            clock=time.monotonic,
            on_change=lambda: self.waiting.look(),
        )
        self._ark: ArkBackend | None = None
        if config.ark.api_key is not None:
            self._ark = ArkBackend(self._egress, config.ark.base_url, config.ark.api_key.reveal())
        self.world = World(
            workers=self.pool.states,
            clouds=clouds_of(config) if self._ark is not None else {},
            budgets=ledger.views,
            clock=time.monotonic,
            warm_up_s=config.pool.warm_up_s,
            line=lambda: self.waiting.line(),
            freed=lambda: self.waiting.look(),
        )
        self.waiting = WaitingRoom(
            self.world,
            self.rules,
            self.rng,
            places=config.pool.queue_max,
            clock=time.monotonic,
        )
        self.auth = Authenticator.from_config(
            config.auth, fetch=self._fetch_jwks, names=self.label_rules.names
        )
        secret = config.budgets.alerts.webhook_secret
        self.alerts = Alerts(
            ledger,
            self._egress,
            webhook_url=config.budgets.alerts.webhook_url,
            webhook_secret=secret.reveal() if secret is not None else None,
            later=self.later,
        )
        self.spool: Spool | None = None
        if config.limits.local_without_books:
            self.spool = Spool.open(config.data_dir / "spool", strict=config.strict)
        self.history = History(config.limits.output_tokens_max)
        self.drift = DriftWatch(time.monotonic, alarm=self._drifted)
        self._later: set[asyncio.Task[Any]] = set()
        self._tending: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ what a request needs

    @property
    def rules(self) -> Rules:
        """By the price card that is valid now. A request keeps those of its arrival."""
        if self._rules_until_ms is not None and _now_ms() >= self._rules_until_ms:
            self._rules = rules_of(self.config, self._book, _now_ms())
            self._rules_until_ms = self._book.until_ms(_now_ms())
            _log.info("price_card", version=self._rules.prices.version)
        return self._rules

    def backend(self, attempt: Attempt, adapter: str = "") -> tuple[Backend, str]:
        """Who carries an attempt, and the model's or its adapter's name there."""
        if attempt.site is Site.CLOUD:
            if self._ark is None:
                raise LookupError("a cloud attempt was planned while the cloud is off")
            return self._ark, attempt.target
        try:
            return self.pool.backend(attempt.target), self.pool.model(attempt.target, adapter)
        except KeyError:  # it was found by itself and is gone since the attempt was decided
            raise Failure(Kind.CONNECT, "the worker has left the pool") from None

    def adapters(self, name: str) -> list[str]:
        """LoRA adapters that a worker behind this public name has loaded now."""
        local = self.rules.routes[name].local
        workers = [w for w in self.pool.states() if local == ("*",) or w.model in local]
        return sorted({adapter for worker in workers for adapter in worker.adapters})

    def later(self, coro: Coroutine[Any, Any, None]) -> None:
        """Runs work that outlives its request; the end of the process waits for it."""
        _ = self._keep(coro)

    async def surely(self, coro: Coroutine[Any, Any, None]) -> None:
        """Runs work to its end, also should whoever waits for it be cancelled."""
        await asyncio.shield(self._keep(coro))

    def _keep(self, coro: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = spawn(coro, name="later")
        self._later.add(task)
        task.add_done_callback(self._later.discard)
        return task

    def _drifted(self, found: Drift) -> None:
        day = time.strftime("%Y-%m-%d", time.gmtime())
        self.later(
            self.alerts.notice(
                f"drift|{found.target}|{day}",
                "image_token_drift",
                f"{found.target} counts {found.counted} tokens for pictures instead of "
                f"{found.expected} ({100 * found.share:+.1f} %)",
                target=found.target,
                expected=found.expected,
                counted=found.counted,
            )
        )

    async def authenticate(self, request: web.Request) -> Principal:
        return await self.auth.principal(request.headers.getall("authorization", ()), time.time())

    def has(self, site: Site, name: str) -> bool:
        """Whether a side could answer for a public name, as things are configured."""
        route = self.rules.routes[name]
        if site is Site.CLOUD:
            return self._ark is not None and bool(route.cloud)
        return bool(route.local and (self.config.workers or self.config.pool.remote))

    async def not_ready(self) -> list[str]:
        """What is missing before requests can be answered; empty: ready."""
        missing = []
        if self.admission.draining:
            missing.append("draining")
        try:
            await asyncio.wait_for(self.ledger.ping(), READY_PATIENCE_S)
        except (LedgerUnavailable, TimeoutError):
            if self.spool is None:  # else local requests are answered all the same
                missing.append("ledger")
        up = any(worker.health is Health.UP for worker in self.pool.states())
        if not up and self._ark is None:
            missing.append("worker")
        return missing

    def _sources(self) -> list[Source]:
        """What finds workers while this process runs."""
        pool = self.config.pool
        sources: list[Source] = [
            DnsSource(self._egress, found.member(f"dns{n}"), every_s=found.every_s)
            for n, found in enumerate(pool.dns, start=1)
        ]
        if pool.heartbeats:
            sources.append(
                HeartbeatSource(self._heartbeats.read, every_s=BEAT_EVERY_S, keep_s=BEAT_TTL_S)
            )
        return sources

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        now_s = time.time()
        await self.ledger.renew_lease(now_s)
        await self.ledger.refresh(now_s)
        await self.history.seed(self.ledger.latest_rows(HISTORY_ROWS))
        await self.pool.start()
        await self.auth.keys.start()
        for model in unpriced(self.rules):
            _log.warning("unpriced_model", model=model, card=self.rules.prices.version)
        self._tending = spawn(self._tend(), name="tend the ledger")

    async def close(self) -> None:
        if self._later:
            await asyncio.wait(self._later, timeout=self.config.limits.drain_s)
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.wait([self._tending])  # however it ended: the rest is closed all the same
        await self.auth.keys.stop()
        self.waiting.close()
        await self.pool.close()
        await self._heartbeats.close()
        await self._egress.close()
        if self.spool is not None:
            self.spool.close()
        await self.ledger.close()

    async def _tend(self) -> None:
        """Never returns: without it the lease ends, and nothing is swept, booked or told."""
        while True:
            now_s = time.time()
            try:
                if self.spool is not None:
                    self.spool.flush()
            except OSError as error:  # a full disk; the books are tended all the same
                _log.error("spool_failed", why=str(error))
            try:
                await self._tend_once(now_s)
            except (LedgerUnavailable, LedgerFault) as error:
                _log.warning("ledger_unavailable", why=str(error))
            except Exception:  # whatever one turn met, the next one may do better
                _log.exception("tending_failed")
            await asyncio.sleep(TEND_EVERY_S)

    async def _tend_once(self, now_s: float) -> None:
        """Keeps the lease, resolves what others left behind, and reads the budgets' figures."""
        await self.ledger.renew_lease(now_s)
        swept = await self.ledger.sweep(now_s)
        await self.ledger.refresh(now_s)
        await self.alerts.look(now_s)
        if self.spool is not None:
            await self.spool.book(self.ledger)
        if swept.voided or swept.expired:
            _log.warning("swept", voided=swept.voided, expired=swept.expired)

    async def _fetch_jwks(self) -> bytes:
        url = self.config.auth.jwks_url or ""
        wire = await self._egress.open("GET", url, headers={}, body=None, timeouts=_JWKS_LIMITS)
        try:
            return await wire.read(JWKS_BYTES_MAX)
        finally:
            await wire.close()


def rules_of(config: Config, book: PriceBook, at_ms: int) -> Rules:
    """What the operator decided, in the vocabulary of the decision, with the prices of a moment
    (milliseconds since 1970)."""
    routes: dict[str, Route] = {}
    for name, model in config.models.items():
        route = Route(name=name, local=model.local, cloud=model.cloud)
        routes.update({spelled: route for spelled in (name, *model.aliases)})
    return Rules(
        routes=routes,
        prices=with_endpoints(book.at(at_ms), config.ark.endpoints),
        server_rate=config.local_cost.server_rate(),
        ttft_target_ms={
            SloClass.INTERACTIVE: 1000.0 * config.limits.ttft_interactive_s,
            SloClass.BATCH: 1000.0 * config.limits.ttft_batch_s,
        },
        local_total_s=config.limits.local.total_s,
        patience_ms={
            SloClass.INTERACTIVE: 1000.0 * config.pool.wait_interactive_s,
            SloClass.BATCH: 1000.0 * config.pool.wait_batch_s,
        },
    )


def with_endpoints(card: PriceCard, endpoints: Mapping[str, str]) -> PriceCard:
    """The card with the price of every endpoint (ep-...) whose model it prices."""
    priced = {}
    for name, model in endpoints.items():
        with contextlib.suppress(Unpriced):
            priced[name] = card.price_of(model)
    return replace(card, models={**card.models, **priced})


def unpriced(rules: Rules) -> list[str]:
    """Cloud models of routes that the card does not price: requests for them are refused."""
    found = set()
    for route in rules.routes.values():
        for model in route.cloud:
            try:
                rules.prices.price_of(model)
            except Unpriced:
                found.add(model)
    return sorted(found)


def clouds_of(config: Config) -> dict[str, ModelTraits]:
    """What is known of every cloud model that a public name can lead to."""
    wanted = {name for model in config.models.values() for name in model.cloud}
    return {name: traits_of(config.ark.endpoints.get(name, name)) for name in sorted(wanted)}


def _allowed(config: Config) -> list[str]:
    """Every place outside this process that it may open a connection to."""
    allowed = [member.url for member in config.members()]
    if config.ark.enabled:
        allowed.append(config.ark.base_url)
    if config.budgets.alerts.webhook_url:
        allowed.append(config.budgets.alerts.webhook_url)
    if config.auth.jwks_url:
        allowed.append(config.auth.jwks_url)
    return allowed


def _now_ms() -> int:
    return int(time.time() * 1000)
