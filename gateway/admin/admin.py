"""The admin port: what the command line and the operator's tools ask of a running gateway.

Everything needs the admin token, also on loopback: another user of the machine is not the operator.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from zoneinfo import ZoneInfo

import msgspec
import structlog
from aiohttp import web

from gateway.admin.budgets import budget_paths
from gateway.admin.io import answer_json, moment, read_json
from gateway.data_dir import DataDir
from gateway.errors import GatewayError
from gateway.facts import new_request_id
from gateway.gateway import Gateway
from gateway.ledger.entries import Entry
from gateway.ledger.marks import PAGE_ROWS, Marks
from gateway.ledger.rows import Row, RowState
from gateway.reports.drift import image_drift
from gateway.reports.report import GROUPS, summarise
from gateway.reports.utilisation import used, utilisation
from policies import sensitivity, tokens
from policies.plan import plan
from policies.types import (
    Capability,
    Facts,
    ImageSize,
    Principal,
    Site,
    SloClass,
)

_log = structlog.get_logger("yuzui.admin")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LINES_BYTES = 64 * 1024  # of rows that are written at once


class RestartAsked(msgspec.Struct, forbid_unknown_fields=True):
    """Workers to restart, by name; none: all, one after the other."""

    names: list[str] = []


class Described(msgspec.Struct, forbid_unknown_fields=True):
    """A request as far as the decision needs it. images: width and height in pixels."""

    model: str = "glm-4.6v"
    tenant: str = "demo"
    sensitivity: str | None = None
    prompt: str = ""
    images: list[tuple[int, int]] = []
    output_tokens: int | None = None
    deadline_ms: int | None = None
    slo: SloClass = SloClass.INTERACTIVE


class HotPage(msgspec.Struct):
    """A page of entries, in the order of booking. It is the last one when it is not full."""

    marks: Marks
    entries: list[Entry]


_STREAM_ID = re.compile(r"[0-9]{1,16}-[0-9]{1,16}")


def admin_routes(gateway: Gateway) -> list[web.RouteDef]:
    """Every path of the admin port."""
    act = _Admin(gateway)
    guarded = [
        *budget_paths(gateway),
        ("GET", "/admin/report", act.report),
        ("GET", "/admin/drift", act.drift),
        ("GET", "/admin/utilisation", act.utilisation),
        ("GET", "/admin/rows", act.rows),
        ("GET", "/admin/entries", act.entries),
        ("POST", "/admin/corrections", act.correct),
        ("GET", "/admin/till", act.till),
        ("GET", "/admin/pool", act.pool),
        ("GET", "/admin/workers", act.workers),
        ("POST", "/admin/workers/restart", act.restart_workers),
        ("POST", "/admin/explain", act.explain),
    ]
    return [web.route(method, path, _guard(gateway, handler)) for method, path, handler in guarded]


class _Admin:
    """What each path does; who may ask is checked before."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def report(self, request: web.Request) -> web.Response:
        by = request.query.get("by", "backend")
        if by not in GROUPS:
            text = f"by must be one of {', '.join(GROUPS)}, got {by!r}"
            raise GatewayError(400, "invalid_value", text, param="by")
        zone = ZoneInfo(self._gateway.config.timezone)
        return answer_json(await summarise(self._rows(request), by=by, zone=zone))

    async def drift(self, request: web.Request) -> web.Response:
        found = await image_drift(self._rows(request))
        shown = [{**msgspec.structs.asdict(d), "alarming": d.alarming} for d in found]
        return answer_json(shown)

    async def utilisation(self, request: web.Request) -> web.Response:
        now_ms = int(time.time() * 1000)
        until_ms = moment(request, "until")
        return answer_json(
            utilisation(
                await used(self._rows(request)),
                rate=self._gateway.rules.server_rate,
                workers=len(self._gateway.pool.states()),
                since_ms=moment(request, "since"),
                until_ms=now_ms if until_ms is None else min(until_ms, now_ms),
                whole="tenant" not in request.query,
            )
        )

    async def rows(self, request: web.Request) -> web.StreamResponse:
        wanted = request.query.get("request_id")
        if request.query.get("form") == "lines":
            return await self._row_lines(request)
        return answer_json(
            [row async for row in self._rows(request) if wanted is None or row.request_id == wanted]
        )

    async def entries(self, request: web.Request) -> web.Response:
        """Rows by the id that they were booked under, and where the archive stands: what a reader
        of both needs. after: the last id that is known already; without: the archive's cursor."""
        hot = self._gateway.ledger.hot()
        marks = await hot.look()
        after = request.query.get("after") or marks.cursor
        if after is not None and not _STREAM_ID.fullmatch(after):
            text = f"after must be the id of an entry such as 1795338000123-0, got {after!r}"
            raise GatewayError(400, "invalid_value", text, param="after")
        found = await hot.entries(after, "+", limit=PAGE_ROWS)
        return answer_json(HotPage(marks=marks, entries=found))

    async def _row_lines(self, request: web.Request) -> web.StreamResponse:
        """One row a line, as they are read: a day may have more than memory should hold."""
        response = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
        await response.prepare(request)
        lines = bytearray()
        async for row in self._rows(request):
            lines += msgspec.json.encode(row) + b"\n"
            if len(lines) >= LINES_BYTES:
                await response.write(bytes(lines))
                lines.clear()
        await response.write(bytes(lines))
        await response.write_eof()
        return response

    async def correct(self, request: web.Request) -> web.Response:
        """Books corrections, each once. What is corrected is read from the ledger, so that nobody
        can have a row corrected that is not there or is not open; such a one is answered `gone`."""
        asked = await read_json(request, list[Row])
        known = await self._unreconciled(asked)
        done = []
        for correction in asked:
            original = known.get(correction.hold_id)
            if original is None:
                done.append({"hold_id": correction.hold_id, "gone": True})
                continue
            try:
                found = await self._gateway.ledger.correct(original, correction)
            except ValueError as error:
                raise GatewayError(400, "invalid_value", str(error)) from None
            _log.info(
                "corrected",
                hold_id=correction.hold_id,
                difference_nano=found.difference_nano,
                already=found.already,
                reason=correction.reason,
            )
            done.append({"hold_id": correction.hold_id, **msgspec.structs.asdict(found)})
        return answer_json(done)

    async def _unreconciled(self, asked: list[Row]) -> dict[str, Row]:
        """The open rows that these would correct, found in one reading."""
        if not asked:
            return {}
        arrivals = [row.at_ms for row in asked]
        wanted = {row.hold_id for row in asked}
        rows = self._gateway.ledger.rows(since_ms=min(arrivals), until_ms=max(arrivals) + 1)
        return {
            row.hold_id: row
            async for row in rows
            if row.hold_id in wanted and row.state == RowState.UNRECONCILED
        }

    async def till(self, _: web.Request) -> web.Response:
        return answer_json(await self._gateway.ledger.till())

    async def pool(self, _: web.Request) -> web.Response:
        return answer_json(self._gateway.world.take())

    async def workers(self, _: web.Request) -> web.Response:
        """The pool, and what the supervisor of this data folder says of the workers it runs."""
        gateway = self._gateway
        supervised = msgspec.json.decode(DataDir(gateway.config.data_dir).workers())
        by_url = {worker["url"]: worker for worker in supervised}
        return answer_json(
            [
                {
                    "name": worker.id,
                    "url": (url := gateway.pool.url(worker.id)),
                    "engine": worker.engine,
                    "model": worker.model,
                    "health": worker.health,
                    "breaker": worker.breaker,
                    "slots": worker.slots,
                    "running": worker.running,
                    "waiting": worker.waiting,
                    "in_flight": worker.in_flight,
                    "supervised": by_url.get(url),
                }
                for worker in gateway.world.take().workers
            ]
        )

    async def restart_workers(self, request: web.Request) -> web.Response:
        asked = await read_json(request, RestartAsked)
        data = DataDir(self._gateway.config.data_dir)
        supervised = msgspec.json.decode(data.workers())
        known = [worker["name"] for worker in supervised]
        ours = {w["url"]: w["name"] for w in supervised}
        pool = self._gateway.pool
        names = [ours.get(pool.url(n), n) if n in pool.names() else n for n in asked.names]
        if known and (unknown := sorted(set(names) - set(known))):
            text = (
                f"no worker {unknown[0]!r} is run by this `yuzui up`; it runs: {', '.join(known)}"
            )
            raise GatewayError(404, "not_found", text, param="names")
        if not known or not data.ask_restart(names):
            text = "no `yuzui up` runs workers here; restart them where they were started"
            raise GatewayError(409, "not_supervised", text)
        return answer_json({"restarting": names or known})

    async def explain(self, request: web.Request) -> web.Response:
        facts = _facts_of(await read_json(request, Described), self._gateway)
        world, now_s = self._gateway.world.take(), time.monotonic()
        return answer_json(plan(facts, world, self._gateway.rules, now_s, Random(0)))  # noqa: S311

    async def _rows(self, request: web.Request) -> AsyncIterator[Row]:
        """Between since and until, as far as they are given; of a tenant alone, if one is named."""
        since_ms, until_ms = moment(request, "since"), moment(request, "until")
        tenant = request.query.get("tenant")
        async for row in self._gateway.ledger.rows(since_ms=since_ms, until_ms=until_ms):
            if tenant is None or row.tenant == tenant:
                yield row


def _guard(gateway: Gateway, handler: Handler) -> Handler:
    """Lets only the bearer of the admin token through."""
    wanted = f"Bearer {gateway.admin_token}".encode()

    async def guarded(request: web.Request) -> web.StreamResponse:
        given = request.headers.getall("authorization", ())
        if len(given) != 1 or not hmac.compare_digest(given[0].encode(), wanted):
            text = "the admin port wants `Authorization: Bearer <admin token>`"
            raise GatewayError(401, "invalid_admin_token", text)
        return await handler(request)

    return guarded


def _facts_of(asked: Described, gateway: Gateway) -> Facts:
    """The facts of a request that was only described."""
    side: Site | None = None
    model = asked.model
    for site in Site:
        if model.startswith(f"{site.value}/"):
            side, model = site, model[len(site.value) + 1 :]
    principal = Principal(tenant=asked.tenant, subject="explain", key_id="explain", slo=asked.slo)
    labels = [asked.sensitivity] if asked.sensitivity is not None else []
    route = gateway.rules.routes.get(model)
    limits = gateway.config.limits
    output_max = min(asked.output_tokens or limits.output_tokens_default, limits.output_tokens_max)
    size, chars = len(asked.prompt.encode()), len(asked.prompt)
    return Facts(
        request_id=new_request_id(),
        tenant=asked.tenant,
        scopes=(f"tenant:{asked.tenant}",),
        model=route.name if route else model,
        side=side,
        label=sensitivity.resolve(
            principal, labels, None, has_images=bool(asked.images), rules=gateway.label_rules
        ),
        needs=frozenset({Capability.VISION} if asked.images else ()),
        images=tuple(ImageSize(width=w, height=h) for w, h in asked.images),
        prompt_tokens_max=tokens.text_tokens_max(size, messages=1),
        prompt_tokens_likely=tokens.text_tokens_likely(chars, size, messages=1),
        output_tokens_max=output_max,
        output_tokens_likely=gateway.world.likely_output_tokens(model, output_max),
        deadline_ms=asked.deadline_ms,
        slo=asked.slo,
    )
