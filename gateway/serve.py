"""One request, a straight line: bound, who, what, facts, world, decide; then, for each attempt of
the plan, wait for room, reserve, send, relay, settle.

The order of a client's errors follows from it: too busy, not known, not readable, not possible, no
room, not affordable, not answered.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque

import structlog
from aiohttp import web
from msgspec.structs import replace

from backends.base import Billed, Call, Failure, Fault, Kind, Reply, Timeouts
from gateway import errors
from gateway.errors import GatewayError
from gateway.facts import facts_of, new_request_id
from gateway.gateway import Gateway
from gateway.ledger.ledger import Exhausted, HoldRequest, LedgerFault, LedgerUnavailable, Reserved
from gateway.ledger.rows import Outcome, Row
from gateway.ledger.spool import SpoolFull
from gateway.pool.waiting import NoRoom, Place, late_for
from gateway.record import Exchange
from gateway.relay import Relay
from gateway.run import Run
from gateway.topup import TopUp
from gateway.wire.base import Dialect
from policies.exchange import Event, Step, Then
from policies.plan import plan
from policies.types import Attempt, Refusal, Site, SloClass

_log = structlog.get_logger("yuzui.serve")

# Past its total time limit an attempt is dead; its hold outlives it by this much, so that a slow
# settlement is not overtaken by the sweeper.
HOLD_GRACE_S = 30.0
# A local request that may go on without the books waits for them no longer than this. They answer
# within milliseconds; whoever has no other way waits for the whole time limit of a call.
BOOKS_PATIENCE_S = 0.2
# How often one request is given back by busy workers before its plan goes on.
BUSY_MAX = 8
_PRIORITY = {SloClass.INTERACTIVE: 0, SloClass.BATCH: 1}  # inside of our worker the lesser first
_TIMEOUTS = (Kind.TIMEOUT_FIRST, Kind.TIMEOUT_IDLE, Kind.TIMEOUT_TOTAL)


async def serve(gateway: Gateway, request: web.Request, dialect: Dialect) -> web.StreamResponse:
    """Answers one request.

    Raises:
        GatewayError: for every answer that is not the wanted one.
        asyncio.CancelledError: the client has left; its books are being closed.
    """
    with gateway.admission.enter():
        principal = await gateway.auth.principal(
            request.headers.getall("authorization", ()), time.time()
        )
        asked = dialect.read(await request.read())
        facts = facts_of(new_request_id(), principal, asked, request.headers, gateway)
        gateway.world.offered()
        world = gateway.world.take(facts)
        decision = plan(facts, world, gateway.rules, time.monotonic(), gateway.rng)
        exchange = Exchange(gateway, principal, facts, asked, decision.why)
        if isinstance(decision, Refusal):
            exchange.refused(decision)
            raise exchange.explain(errors.of_refusal(decision))
        return await _Attempts(gateway, request, dialect, exchange).run(decision.attempts)


class _Attempts:
    """The only loop: the next attempt of the plan, until one has answered."""

    def __init__(
        self, gateway: Gateway, request: web.Request, dialect: Dialect, exchange: Exchange
    ) -> None:
        self._gateway = gateway
        self._request = request
        self._dialect = dialect
        self._exchange = exchange
        self._turn = gateway.waiting.turn(exchange.facts)
        self._failed_on: set[str] = set()
        self._response: web.StreamResponse | None = None  # of a stream, once it has begun

    async def run(self, attempts: tuple[Attempt, ...]) -> web.StreamResponse:
        error: GatewayError | None = None
        left = deque(attempts)
        busy_left = BUSY_MAX
        for number in itertools.count():
            if not left:
                break
            planned = left.popleft()
            elsewhere = next((a for a in left if a.site is not planned.site), None)
            try:
                place = await self._room(planned, elsewhere)
            except NoRoom as late:
                error = error or self._exchange.no_room(late)
                left = deque(late_for(left))
                continue
            # Counted from here on: whoever decides while we reserve must see that we are coming.
            with place.sending:
                try:
                    run = await self._reserve(number, place.attempt)
                except GatewayError as refused:
                    error = error or refused  # the next attempt may draw on less, or on nothing
                    continue
                try:
                    return await self._answer(run)
                except Failure as failure:
                    self._failed_on.add(run.attempt.target)
                    if failure.kind is Kind.BUSY and run.attempt.site is Site.LOCAL and busy_left:
                        busy_left -= 1  # it has cost nobody anything: wait for room again
                        left.appendleft(planned)
                        self._failed_on.discard(run.attempt.target)
                    taken = self._advance_failed(
                        run, failure, more=failure.elsewhere and bool(left)
                    )
                    broken = taken.then is Then.BREAK
                    outcome = Outcome.BROKEN if broken else _outcome(failure)
                    await self._settle(run, taken, outcome)
                    if broken:
                        return await self._break(errors.of_failure(failure, pinned=False))
                    error = errors.of_failure(failure, pinned=self._exchange.pinned)
                    if taken.then is Then.FAIL:
                        break
                except Exception:  # whatever it was: money that is held must not stay so
                    return await self._give_up(run)
        assert error is not None  # a plan is never empty
        raise self._exchange.explain(error)

    async def _room(self, planned: Attempt, elsewhere: Attempt | None) -> Place:
        """A place for the attempt: a worker with a free slot, chosen when there is one."""
        turn = self._turn
        try:
            return await turn.place(planned, elsewhere=elsewhere, avoid=frozenset(self._failed_on))
        finally:
            self._exchange.waited_ms = turn.waited_ms

    # ------------------------------------------------------------ reserve

    async def _reserve(self, number: int, attempt: Attempt) -> Run:
        """Holds the attempt's money. Raises GatewayError when a budget has no room for it, or when
        the books cannot be reached."""
        run = Run(number, attempt, hold_id=f"{self._exchange.facts.request_id}.{number}")
        draft = self._exchange.draft(run)
        reserved = await self._hold(run, draft)
        if isinstance(reserved, Exhausted) and attempt.tight_nano:
            run.tighten(reserved)
            reserved = await self._hold(run, draft)
        if isinstance(reserved, Exhausted):
            raise self._exchange.over_budget(reserved)
        return run

    async def _hold(self, run: Run, draft: Row) -> Reserved | Exhausted:
        attempt, now_s = run.attempt, time.time()
        hold = HoldRequest(
            id=run.hold_id,
            amount_nano=attempt.hold_nano,
            scopes=attempt.scopes,
            sent=attempt.site is Site.LOCAL,
            deadline_s=now_s + self._timeouts(attempt).total_s + HOLD_GRACE_S,
            draft=draft,
        )
        spools = attempt.site is Site.LOCAL and self._gateway.spool is not None
        patience_s = BOOKS_PATIENCE_S if spools else None
        try:
            return await self._gateway.ledger.reserve(hold, now_s, patience_s=patience_s)
        except (LedgerUnavailable, LedgerFault) as error:
            # the ledger gives back by itself what it may have held; a fault has changed nothing
            if isinstance(error, LedgerFault):
                _log.error("ledger_fault", hold_id=run.hold_id, why=str(error))
            if self._spooled(run, hold):
                return Reserved(hold_id=run.hold_id, budgets=())
            raise self._exchange.no_books() from None

    def _spooled(self, run: Run, hold: HoldRequest) -> bool:
        """Whether a local attempt may go on without the books; it is noted on disk then."""
        spool = self._gateway.spool
        if spool is None or run.attempt.site is not Site.LOCAL:
            return False
        try:
            spool.begin(hold)
        except (SpoolFull, OSError):
            return False
        run.spooled = True
        run.attempt = replace(run.attempt, hold_max_nano=0)  # nothing to ask for more
        return True

    # ------------------------------------------------------------ send, relay, settle

    async def _answer(self, run: Run) -> web.StreamResponse:
        """Sends the attempt and passes its answer on. Raises Failure with the hold unresolved."""
        reply = None
        try:
            reply = await self._open(run)
            run.advance(Event.OPENED)
            self._gateway.world.sent(run.attempt, self._exchange.facts)
            answer = self._stream if self._exchange.facts.stream else self._plain
            return await answer(reply, run)
        except (asyncio.CancelledError, ConnectionResetError):
            if not run.over:  # else the answer was complete and only its tail was not taken
                taken = run.advance(Event.CLIENT_GONE)
                gone = self._exchange.settle(run, taken, outcome=Outcome.CLIENT_GONE)
                self._gateway.later(gone)  # this task is being cancelled
            raise
        finally:
            if reply is not None:
                await reply.close()

    async def _open(self, run: Run) -> Reply:
        attempt = run.attempt
        if attempt.site is Site.CLOUD and not await self._mark_sent(run):
            text = "the reservation had lapsed before the request was sent"
            raise Failure(Kind.BUSY, text, fault=Fault.GATEWAY)
        backend, model = self._gateway.backend(attempt, self._exchange.facts.adapter)
        here = attempt.site is Site.LOCAL
        return await backend.open(
            Call(
                request_id=self._exchange.facts.request_id,
                chat=self._exchange.chat_for(model),
                # for the cloud this is what money is held for, and so what can be billed at most
                output_tokens_max=attempt.output_tokens_max
                or self._exchange.facts.output_tokens_max,
                timeouts=self._timeouts(attempt),
                stream=self._exchange.facts.stream,
                permit=attempt.permit,
                cache_salt=self._exchange.cache_salt if here else None,
                priority=_PRIORITY[attempt.slo or self._exchange.facts.slo] if here else None,
            )
        )

    async def _mark_sent(self, run: Run) -> bool:
        """Money is spoken for before the first byte leaves for a place that bills."""
        try:
            return await self._gateway.ledger.mark_sent(run.hold_id)
        except (LedgerUnavailable, LedgerFault):
            return False

    async def _plain(self, reply: Reply, run: Run) -> web.StreamResponse:
        body, usage = await reply.body()
        taken = run.finished(usage)
        await self._settle(run, taken, Outcome.OK)
        return web.Response(
            body=self._dialect.answer(body),
            content_type="application/json",
            headers=self._exchange.headers(),
        )

    async def _stream(self, reply: Reply, run: Run) -> web.StreamResponse:
        choices = self._exchange.facts.choices
        relay = Relay(wants_usage=self._exchange.asked.wants_usage, choices=choices)
        ledger, rules = self._gateway.ledger, self._gateway.rules
        async with TopUp(ledger, rules, run, cut=reply.close, choices=choices) as topup:
            try:
                await self._relay(reply, run, relay)
            except Failure:
                if not topup.cut:
                    raise
                return await self._curtail(run, relay, topup.cut_by)
        taken = run.finished(relay.usage, relay.finish_reason)
        await self._settle(run, taken, Outcome.OK)
        await self._write(relay.tail(self._exchange.note()), run)
        assert self._response is not None
        await self._response.write_eof()
        return self._response

    async def _relay(self, reply: Reply, run: Run, relay: Relay) -> None:
        async for batch in reply.events():
            out = relay.take(batch)
            if relay.deltas:
                run.first_token()
            if out:
                await self._write(out, run)

    async def _curtail(self, run: Run, relay: Relay, found: Exhausted | None) -> web.StreamResponse:
        """The stream is at the end of its money: it ends as at an output limit, and says so."""
        taken = self._exchange.curtailed(run, found)
        await self._settle(run, taken, Outcome.CURTAILED)
        await self._write(relay.curtailed(self._exchange.note()), run)
        assert self._response is not None
        await self._response.write_eof()
        return self._response

    async def _write(self, data: bytes, run: Run) -> None:
        if self._response is None:
            headers = {**self._exchange.stream_headers(run), "cache-control": "no-cache"}
            headers["content-type"] = "text/event-stream; charset=utf-8"
            self._response = web.StreamResponse(headers=headers)
            await self._response.prepare(self._request)
            if not run.over:
                run.advance(Event.DELIVERED)
        await self._response.write(data)

    async def _break(self, error: GatewayError) -> web.StreamResponse:
        """The stream ends with an in-band error, and never with a [DONE]."""
        assert self._response is not None
        await self._response.write(b"data: " + error.body() + b"\n\n")
        await self._response.write_eof()
        return self._response

    async def _settle(self, run: Run, taken: Step, outcome: Outcome) -> None:
        """Closes the books of an attempt, also should the client leave while that is done."""
        await self._gateway.surely(self._exchange.settle(run, taken, outcome=outcome))

    async def _give_up(self, run: Run) -> web.StreamResponse:
        """Ends an attempt for the exception that is being handled, a fault of the gateway's own;
        the cloud may bill it all the same. Raises it again if nothing has reached the client."""
        if not run.over:  # else its settlement is the one that failed
            free = run.attempt.site is Site.LOCAL
            taken = run.advance(Event.REFUSED if free else Event.LOST)
            begun = taken.then is Then.BREAK
            await self._settle(run, taken, Outcome.BROKEN if begun else Outcome.FAILED)
        if self._response is None:
            raise
        _log.exception("unexpected", hold_id=run.hold_id)
        text = "an unexpected error in the gateway; it has been logged"
        return await self._break(GatewayError(500, "internal_error", text))

    def _advance_failed(self, run: Run, failure: Failure, *, more: bool) -> Step:
        world = self._gateway.world
        world.failed(run.attempt, failure, adapter=self._exchange.facts.adapter)
        # nobody sends a bill for what a worker of one's own has not answered
        free = failure.billed is Billed.NO or run.attempt.site is Site.LOCAL
        event = Event.REFUSED if free else Event.LOST
        busy = failure.kind is Kind.BUSY  # it did no work, so that asking again multiplies none
        return run.advance(event, more=more and (busy or world.may_retry()))

    def _timeouts(self, attempt: Attempt) -> Timeouts:
        limits = self._gateway.config.limits
        return limits.local if attempt.site is Site.LOCAL else limits.cloud


def _outcome(failure: Failure) -> Outcome:
    if failure.kind in _TIMEOUTS:
        return Outcome.TIMEOUT
    return Outcome.BROKEN if failure.kind is Kind.BROKEN else Outcome.FAILED
