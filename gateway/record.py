"""What is kept of an exchange: its ledger row, its log line, and what the client is told of it."""

from __future__ import annotations

import time
from contextlib import suppress
from urllib.parse import quote

import msgspec
import structlog
import tenacity
from msgspec.structs import replace

from backends.chat import ChatRequest
from gateway.errors import GatewayError, insufficient_quota
from gateway.gateway import Gateway
from gateway.ledger.ledger import Exhausted, LedgerFault, LedgerUnavailable
from gateway.ledger.rows import Outcome, Row, RowState
from gateway.pool.waiting import NoRoom
from gateway.run import Run
from gateway.wire.base import Asked
from policies import affinity
from policies.budget import cny, posted_of, refusal_text
from policies.charge import Charge, charge
from policies.exchange import Event, Resolve, Step, Then
from policies.plan import PASSING, RETRY_AFTER_S
from policies.types import (
    Facts,
    Principal,
    Reason,
    Refusal,
    Sensitivity,
    Usage,
    Why,
)

_log = structlog.get_logger("yuzui.exchange")
# A settlement that Redis did not take is repeated this long; after that the sweeper resolves the
# hold at its deadline, in full.
SETTLE_PATIENCE_S = 60.0


class Exchange:
    """One request and its books."""

    def __init__(
        self, gateway: Gateway, principal: Principal, facts: Facts, asked: Asked, why: Why
    ) -> None:
        self._gateway = gateway
        self._rules = gateway.rules  # of its arrival, also should prices change while it runs
        self._principal = principal
        self.facts = facts
        self.asked = asked
        self._why = why
        self.waited_ms = 0.0  # for a local slot
        self._arrived_s = time.monotonic()
        self._arrived_ms = int(time.time() * 1000)
        self._attempts = 0
        self._route: str | None = None
        self._reason = why.reason
        self._cost_nano = 0  # of all attempts together, as the books have it
        self._saved_nano = 0
        self._limited_by: Exhausted | None = None  # the budget that ended the answer early

    @property
    def pinned(self) -> bool:
        return self.facts.label.level >= Sensitivity.SENSITIVE

    @property
    def cache_salt(self) -> str:
        """Parts what engines keep of prompts between tenants and between labels."""
        return affinity.salt(self.facts.tenant, self.facts.label.level)

    def chat_for(self, model: str) -> ChatRequest:
        """The request in the words of one engine: its own model name, our clamped limit."""
        return replace(self.asked.chat, model=model)

    # ------------------------------------------------------------ the books

    def draft(self, run: Run) -> Row:
        """The row as far as it is known when money is held; the sweeper posts it if we die."""
        facts, attempt = self.facts, run.attempt
        self._attempts += 1
        run.draft = Row(
            request_id=facts.request_id,
            attempt=run.number,
            at_ms=self._arrived_ms,
            tenant=facts.tenant,
            org=self._principal.org,
            subject=self._principal.subject,
            key_id=self._principal.key_id,
            model=facts.model,
            site=attempt.site,
            target=attempt.target,
            reason=attempt.reason,
            label=facts.label.level.name.lower(),
            label_source=facts.label.source,
            labels=tuple([s[6:] for s in facts.scopes if s.startswith("label:")]),
            stream=facts.stream,
            held_nano=attempt.hold_nano,
            card_version=self._rules.prices.version,
            slots=attempt.slots,
            image_tokens_expected=attempt.image_tokens,
            attempts=self._attempts,
        )
        return run.draft

    async def settle(self, run: Run, taken: Step, *, outcome: Outcome) -> None:
        """Resolves the hold of an attempt that is over, and remembers what it cost.

        Never raises for a ledger that cannot be reached or used: the settlement is then repeated
        in the background, and after that the sweeper posts the hold in full.
        """
        attempt, elapsed_ms = run.attempt, run.elapsed_ms
        assert taken.resolve is not None
        self._route = f"{attempt.site.value}:{attempt.target}"
        self._reason = attempt.reason
        if taken.resolve is Resolve.VOID:
            await self.give_back(run)
            return
        charged = charge(
            taken.resolve,
            attempt,
            self.facts,
            run.usage,
            at_ms=self._arrived_ms,
            elapsed_ms=int(elapsed_ms),
            rules=self._rules,
        )
        row = self._row(run, charged, outcome, final=taken.then is not Then.NEXT)
        if outcome is Outcome.OK:
            self._learn(run)
            self._gateway.world.succeeded(
                attempt,
                self.facts.model,
                ttft_ms=run.ttft_ms if self.facts.stream else None,
                total_ms=elapsed_ms,
                output_tokens=self._each(run.usage) if run.usage is not None else None,
            )
        posted_nano = await self._post(run, row)
        self._cost_nano += posted_nano
        self._saved_nano += replace(row, posted_nano=posted_nano).saved_nano
        self._gateway.drift.saw(row)
        self._log_line(row)

    async def _post(self, run: Run, row: Row) -> int:
        if run.spooled:
            return self._spool_end(run, row)
        try:
            return (await self._gateway.ledger.settle(run.hold_id, row)).posted_nano
        except (LedgerUnavailable, LedgerFault) as error:
            if isinstance(error, LedgerFault):
                _log.error("ledger_fault", hold_id=run.hold_id, why=str(error))
            self._gateway.later(self._settle_again(run.hold_id, row))
            return posted_of(row.posted_nano, run.attempt.hold_nano)

    def _spool_end(self, run: Run, row: Row | None) -> int:
        assert self._gateway.spool is not None  # or it could not have begun there
        try:
            return self._gateway.spool.end(run.hold_id, row)
        except OSError as error:  # a full disk: what has begun there is booked in full later
            _log.error("spool_failed", hold_id=run.hold_id, why=str(error))
            return run.attempt.hold_nano

    def _learn(self, run: Run) -> None:
        """How long this answer was is a hint on the next one."""
        if run.usage is None:
            return
        tokens = self._each(run.usage)
        limit = run.attempt.output_tokens_max or self.facts.output_tokens_max
        self._limited(run, tokens >= limit)
        self._gateway.history.saw(self.facts.tenant, self.facts.model, tokens, cut=tokens >= limit)

    def _each(self, usage: Usage) -> int:
        """Tokens of one answer, where several were asked for."""
        return -(-usage.completion_tokens // self.facts.choices)

    def _limited(self, run: Run, cut: bool) -> None:
        if cut and run.limited_by is not None:
            self._limited_by = run.limited_by

    async def _settle_again(self, hold_id: str, row: Row) -> None:
        async for attempt in tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type((LedgerUnavailable, LedgerFault)),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=2.0),
            stop=tenacity.stop_after_delay(SETTLE_PATIENCE_S),
            reraise=True,
        ):
            with attempt:
                await self._gateway.ledger.settle(hold_id, row)

    async def give_back(self, run: Run) -> None:
        """Voids a hold that certainly was not billed. The ledger repeats it if Redis is away."""
        if run.spooled:
            self._spool_end(run, None)
            return
        with suppress(LedgerUnavailable, LedgerFault):
            await self._gateway.ledger.void(run.hold_id)

    def _row(self, run: Run, charged: Charge, outcome: Outcome, *, final: bool) -> Row:
        usage = run.usage or Usage(prompt_tokens=0, completion_tokens=0)
        assert run.draft is not None
        return replace(
            run.draft,
            final=final,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            image_tokens=usage.image_tokens,
            completion_tokens=usage.completion_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            slot_ms=charged.slot_ms,
            served_model=usage.served_model,
            service_tier=usage.service_tier,
            posted_nano=charged.posted_nano,
            marginal_nano=charged.marginal_nano,
            cloud_nano=charged.cloud_nano,
            tier=charged.tier,
            state=RowState(charged.state),
            flags=charged.flags,
            outcome=outcome,
            finish_reason=run.finish_reason,
            ttft_ms=None if run.ttft_ms is None else int(run.ttft_ms),
            waited_ms=int(self.waited_ms),
            total_ms=int(1000.0 * (time.monotonic() - self._arrived_s)),
        )

    # ------------------------------------------------------------ what the client is told

    def curtailed(self, run: Run, found: Exhausted | None) -> Step:
        """A stream was ended because its hold could not grow."""
        self._limited_by = found
        run.finish_reason = "length"
        return run.advance(Event.CURTAILED)

    def over_budget(self, found: Exhausted) -> GatewayError:
        """A budget had no room for an attempt; the next one may draw on others. Names the budget,
        what is used of it, and when it starts anew."""
        self._attempts -= 1  # it was drafted and not sent
        self._reason = Reason.BUDGET_EXHAUSTED
        self._route = None
        text = refusal_text(found.budget, found.amount_nano)
        if any(seen.verdict in PASSING for seen in self._why.considered):
            # a place without that budget may be free in a moment: repeating can help
            return GatewayError(503, "no_capacity", text, retry_after_s=RETRY_AFTER_S)
        return insufficient_quota(text)

    def no_books(self) -> GatewayError:
        """Money cannot be held now; the next attempt may need none."""
        self._attempts -= 1
        text = "the books cannot be reached; nothing was sent and nothing is charged"
        return GatewayError(503, "ledger_unavailable", text, retry_after_s=1)

    def no_room(self, late: NoRoom) -> GatewayError:
        """No local slot came free in time, and the plan has nothing else."""
        self._route = None
        self._reason = Reason.QUEUE_LATE
        code = Reason.SENSITIVE_LOCAL_UNAVAILABLE.value if self.pinned else "no_capacity"
        text = f"no local slot came free within the {self.waited_ms:.0f} ms that it could wait"
        return GatewayError(503, code, text, retry_after_s=late.retry_after_s)

    def refused(self, refusal: Refusal) -> None:
        self._reason = refusal.reason

    def explain(self, error: GatewayError) -> GatewayError:
        """Adds to an error answer what the decision was."""
        error.headers.update(self.headers())
        if error.code == Reason.SENSITIVE_LOCAL_UNAVAILABLE.value:
            error.headers["x-yuzui-reason"] = error.code
        self._log_refused(error)
        return error

    def headers(self) -> dict[str, str]:
        """The decision and the money, as response headers."""
        headers = self._decision_headers(self._route, self._reason)
        headers["x-yuzui-cost-cny"] = cny(self._cost_nano)
        headers["x-yuzui-saved-cny"] = cny(self._saved_nano)
        if self._limited_by is not None:
            scope = quote(self._limited_by.budget.scope, safe=":@=/")  # a name may be in any script
            headers["x-yuzui-budget"] = f"the answer was cut short by {scope}"
        return headers

    def stream_headers(self, run: Run) -> dict[str, str]:
        """The same at the start of a stream, when what it will cost is not known yet."""
        route = f"{run.attempt.site.value}:{run.attempt.target}"
        return self._decision_headers(route, run.attempt.reason)

    def note(self) -> dict[str, object]:
        """The `yuzui` object in the last chunk of a stream; amounts in CNY, as exact as in the
        headers (a float would not do)."""
        note: dict[str, object] = {
            "request_id": self.facts.request_id,
            "route": self._route,
            "reason": self._reason.value,
            "attempts": self._attempts,
            "cost_cny": msgspec.Raw(cny(self._cost_nano).encode()),
            "saved_cny": msgspec.Raw(cny(self._saved_nano).encode()),
        }
        if self._limited_by is not None:
            found = self._limited_by
            text = refusal_text(found.budget, found.amount_nano)
            note["budget"] = {
                "scope": found.budget.scope,
                "period": found.budget.period,
                "message": f"the answer was cut short: {text}",
            }
        if self.waited_ms:
            note["waited_ms"] = round(self.waited_ms)
        if self.facts.label.note:
            note["sensitivity_note"] = self.facts.label.note
        return note

    def _decision_headers(self, route: str | None, reason: Reason) -> dict[str, str]:
        label = self.facts.label
        headers = {
            "x-yuzui-request-id": self.facts.request_id,
            "x-yuzui-reason": reason.value,
            "x-yuzui-attempts": str(self._attempts),
            "x-yuzui-sensitivity": label.level.name.lower(),
        }
        if self.waited_ms:
            headers["x-yuzui-waited-ms"] = f"{self.waited_ms:.0f}"
        if route is not None:
            headers["x-yuzui-route"] = route
        if label.note:
            headers["x-yuzui-sensitivity-note"] = label.note
        return headers

    # ------------------------------------------------------------ the log

    def _log_line(self, row: Row) -> None:
        _log.info(
            "exchange",
            request_id=row.request_id,
            tenant=row.tenant,
            route=self._route,
            reason=row.reason,
            label=row.label,
            outcome=row.outcome,
            tokens_in=row.prompt_tokens,
            tokens_out=row.completion_tokens,
            posted_nano=row.posted_nano,
            ttft_ms=row.ttft_ms,
            waited_ms=row.waited_ms,
            total_ms=row.total_ms,
            attempts=row.attempts,
        )

    def _log_refused(self, error: GatewayError) -> None:
        _log.info(
            "refused",
            request_id=self.facts.request_id,
            tenant=self.facts.tenant,
            status=error.status,
            code=error.code,
            reason=self._reason.value,
            label=self.facts.label.level.name.lower(),
        )
