"""The budget paths of the admin port. What they change goes into the audit trail.

    GET    /admin/budgets          every budget and its figures
    PUT    /admin/budgets          make one, or change what is named of it
    POST   /admin/budgets/raise    add to its limit
    POST   /admin/budgets/freeze   refuse everything from now on;  /unfreeze takes that back
    POST   /admin/budgets/reset    count from nothing again
    DELETE /admin/budgets          ?scope=&period=
    GET    /admin/budgets/audit    ?scope=&period=&since=  who changed what, when, from what to what

The header x-yuzui-actor says who asks (default: admin).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from gateway.admin.io import actor, answer_json, moment, read_json
from gateway.errors import GatewayError
from gateway.gateway import Gateway
from gateway.ledger.budgets import NoSuchBudget
from gateway.ledger.views import BudgetStatus
from policies.budget import BudgetOptions, Period
from policies.types import SoftLimit

Handler = Callable[[web.Request], Awaitable[web.Response]]


class OptionsAsked(msgspec.Struct, forbid_unknown_fields=True):
    """As policies.budget.BudgetOptions; what is left out stays as it is."""

    hard: bool | msgspec.UnsetType = msgspec.UNSET
    soft: tuple[SoftLimit, ...] | msgspec.UnsetType = msgspec.UNSET
    pace: bool | msgspec.UnsetType = msgspec.UNSET
    alerts: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    forecast: bool | msgspec.UnsetType = msgspec.UNSET

    def over(self, known: BudgetOptions) -> BudgetOptions:
        given: dict[str, Any] = {
            name: value
            for name in self.__struct_fields__
            if (value := getattr(self, name)) is not msgspec.UNSET
        }
        return msgspec.structs.replace(known, **given)


class BudgetAsked(msgspec.Struct, forbid_unknown_fields=True):
    """A budget to set. What is None stays as it is, and for a new budget is the default.

    zone:      whose midnight ends its period (the gateway's time zone)
    start_day: 1 to 7 of a week, 1 to 28 of a month (1)
    """

    scope: str
    limit_nano: int
    period: str = "month"
    zone: str | None = None
    start_day: int | None = None
    options: OptionsAsked = msgspec.field(default_factory=OptionsAsked)


class BudgetNamed(msgspec.Struct, forbid_unknown_fields=True):
    """The budget that is meant. add_nano: for raise."""

    scope: str
    period: str = "month"
    add_nano: int = 0


def budget_paths(gateway: Gateway) -> list[tuple[str, str, Handler]]:
    """Method, path and what it does; who may ask is checked before."""
    act = _Budgets(gateway)
    return [
        ("GET", "/admin/budgets", act.list_all),
        ("PUT", "/admin/budgets", act.put),
        ("DELETE", "/admin/budgets", act.delete),
        ("GET", "/admin/budgets/audit", act.audit),
        ("POST", "/admin/budgets/{act:raise|freeze|unfreeze|reset}", act.change),
    ]


class _Budgets:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._ledger = gateway.ledger

    async def list_all(self, _: web.Request) -> web.Response:
        return answer_json(await self._ledger.budgets(time.time()))

    async def put(self, request: web.Request) -> web.Response:
        asked = await read_json(request, BudgetAsked)
        try:
            period = Period(asked.period)
        except ValueError:
            known = ", ".join(Period)
            text = f"period must be one of {known}, got {asked.period!r}"
            raise GatewayError(400, "invalid_value", text, param="period") from None
        now_s = time.time()
        old = self._find(await self._ledger.budgets(now_s), asked.scope, period)
        zone = asked.zone or (old.zone if old is not None else self._gateway.config.timezone)
        start_day = asked.start_day
        if start_day is None:  # 0 is one that is wrong
            start_day = old.start_day if old is not None else 1
        try:
            await self._ledger.set_budget(
                asked.scope,
                limit_nano=asked.limit_nano,
                period=period,
                zone=zone,
                start_day=start_day,
                options=asked.options.over(old.options if old is not None else BudgetOptions()),
                now_s=now_s,
                who=actor(request),
            )
        except ValueError as error:
            raise GatewayError(400, "invalid_value", str(error)) from None
        return await self.list_all(request)

    def _find(self, all_: list[BudgetStatus], scope: str, period: Period) -> BudgetStatus | None:
        return next((b for b in all_ if (b.scope, b.period) == (scope, period)), None)

    async def change(self, request: web.Request) -> web.Response:
        asked, act = await read_json(request, BudgetNamed), request.match_info["act"]
        ledger, who, now_s = self._ledger, actor(request), time.time()
        scope, period = asked.scope, asked.period
        try:
            if act == "raise":
                await ledger.raise_budget(
                    scope, period, add_nano=asked.add_nano, now_s=now_s, who=who
                )
            elif act == "reset":
                await ledger.reset_budget(scope, period, now_s=now_s, who=who)
            else:
                frozen = act == "freeze"
                await ledger.freeze_budget(scope, period, frozen=frozen, now_s=now_s, who=who)
        except NoSuchBudget as error:
            raise GatewayError(404, "not_found", str(error)) from None
        except ValueError as error:
            raise GatewayError(400, "invalid_value", str(error)) from None
        return await self.list_all(request)

    async def delete(self, request: web.Request) -> web.Response:
        scope, period = request.query.get("scope", ""), request.query.get("period", "")
        try:
            known = await self._ledger.delete_budget(
                scope, period, now_s=time.time(), who=actor(request)
            )
        except ValueError as error:
            raise GatewayError(400, "invalid_value", str(error)) from None
        if not known:
            raise GatewayError(404, "not_found", str(NoSuchBudget(scope, period)))
        return await self.list_all(request)

    async def audit(self, request: web.Request) -> web.Response:
        found = await self._ledger.audit(
            since_ms=moment(request, "since") or 0,
            scope=request.query.get("scope"),
            period=request.query.get("period"),
        )
        return answer_json(found)
