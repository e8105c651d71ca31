"""Tells somebody that a budget has crossed a threshold, or will not last: a log line, a counter,
and a signed webhook.

Every gateway sees every crossing. Exactly one tells: the one that claims it in Redis. Should it die
before the webhook has taken the message, its claim runs out and another one tells: at least once,
normally once, and always with the same id.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from hashlib import sha256
from typing import Any

import msgspec
import structlog

from backends.base import Failure, Timeouts
from backends.egress import Egress
from gateway.ledger.ledger import Ledger, LedgerUnavailable
from gateway.ledger.views import Budget
from policies.alerts import Alert, alerts_due
from policies.budget import cny

_log = structlog.get_logger("yuzui.alerts")

TRIES = 5
BACKOFF_S = 1.0  # doubled after each try
CLAIM_S = 120.0  # longer than all tries together take
REMEMBER_S = 40 * 86_400.0  # what was told and is about no budget
FOREVER_S = 10 * 366 * 86_400.0  # a told crossing of a budget whose period never ends
AFTER_S = 86_400.0  # and so long after its end one whose period does
TOLD_MAX = 10_000  # that this process need not ask about; beyond it asks again
ANSWER_BYTES_MAX = 4_096
_LIMITS = Timeouts(connect_s=2.0, first_s=5.0, idle_s=5.0, total_s=10.0)


class Alerts:
    """counts: how many were told, by kind, and webhooks that failed; for exporters of metrics."""

    def __init__(
        self,
        ledger: Ledger,
        egress: Egress,
        *,
        webhook_url: str | None,
        webhook_secret: str | None,
        later: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._ledger = ledger
        self._egress = egress
        self._url = webhook_url
        self._secret = (webhook_secret or "").encode()
        self._later = later
        self._told: set[str] = set()
        self.counts: Counter[str] = Counter()

    async def look(self, now_s: float) -> None:
        """Tells what nobody has told yet. Call it when the figures were read. Raises
        LedgerUnavailable."""
        for budget in self._ledger.known_budgets():
            options = budget.definition.options
            for alert in alerts_due(
                budget.view,
                counter=budget.counter,
                thresholds=options.alerts,
                forecast=options.forecast,
                zone=budget.definition.zone,
                wall_s=now_s,
            ):
                if alert.key not in self._told and await self._claimed(alert):
                    self._tell(alert, budget, now_s)

    async def _claimed(self, alert: Alert) -> bool:
        mine = await self._ledger.claim_alert(alert.key, CLAIM_S)
        if mine is None:  # somebody has told it for good
            if len(self._told) >= TOLD_MAX:
                self._told.clear()
            self._told.add(alert.key)
        return bool(mine)

    def _tell(self, alert: Alert, budget: Budget, now_s: float) -> None:
        self.counts[alert.kind.value] += 1
        _log.warning("budget_alert", kind=alert.kind.value, scope=budget.scope, text=alert.text)
        ends_s = budget.resets_at_s
        remember_s = FOREVER_S if ends_s is None else max(0.0, ends_s - now_s) + AFTER_S
        self._later(self._deliver(alert.key, _message(alert, budget, now_s), remember_s))

    async def notice(self, key: str, kind: str, text: str, **figures: object) -> None:
        """Tells something that is about no budget, once for its key among all gateways. Whoever
        calls has logged it; with Redis away the log line is all there is."""
        try:
            mine = key not in self._told and await self._ledger.claim_alert(key, CLAIM_S)
        except LedgerUnavailable:
            return
        if not mine:
            return
        self.counts[kind] += 1
        name = sha256(key.encode()).hexdigest()[:32]
        message = msgspec.json.encode({"id": name, "kind": kind, "text": text, **figures})
        await self._deliver(key, message)

    async def _deliver(self, key: str, message: bytes, remember_s: float = REMEMBER_S) -> None:
        if self._url is not None and not await self._posted(self._url, message):
            self.counts["webhook_failed"] += 1
            _log.error("alert_webhook_failed", scope=key)
            return  # the claim runs out, and somebody tries again
        try:
            await self._ledger.alert_told(key, remember_s)
        except LedgerUnavailable:
            return  # told twice rather than never

    async def _posted(self, url: str, message: bytes) -> bool:
        for n in range(TRIES):
            if n:
                await asyncio.sleep(BACKOFF_S * 2 ** (n - 1) * (0.5 + secrets.randbelow(100) / 100))
            try:
                if await self._post(url, message):
                    return True
            except Failure:
                continue
        return False

    async def _post(self, url: str, message: bytes) -> bool:
        at = str(int(time.time()))
        headers = {
            "content-type": "application/json",
            "x-yuzui-signature": f"t={at},v1={signature(self._secret, at, message)}",
        }
        wire = await self._egress.open("POST", url, headers=headers, body=message, timeouts=_LIMITS)
        try:
            await wire.read(ANSWER_BYTES_MAX)
            return 200 <= wire.status < 300
        finally:
            await wire.close()


def signature(secret: bytes, at: str, message: bytes) -> str:
    """HMAC-SHA256 over the time and the message, so that neither can be changed nor replayed later:
    the receiver computes the same and looks at the time."""
    return hmac.new(secret, at.encode() + b"." + message, sha256).hexdigest()


def _message(alert: Alert, budget: Budget, now_s: float) -> bytes:
    view = budget.view
    return msgspec.json.encode(
        {
            "id": sha256(alert.key.encode()).hexdigest()[:32],
            "kind": alert.kind.value,
            "text": alert.text,
            "scope": view.scope,
            "period": view.period,
            "percent": alert.percent,
            "limit_cny": msgspec.Raw(cny(view.limit_nano).encode()),
            "posted_cny": msgspec.Raw(cny(view.posted_nano).encode()),
            "held_cny": msgspec.Raw(cny(view.held_nano).encode()),
            "resets_at_s": view.resets_at_s,
            "used_up_at_s": alert.used_up_at_s,
            "at_s": now_s,
        }
    )
