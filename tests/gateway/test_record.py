from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.chat import ChatRequest, Message
from gateway.errors import GatewayError
from gateway.history import History
from gateway.ledger.ledger import Exhausted, LedgerUnavailable, Settled
from gateway.ledger.rows import Outcome, Row, RowState
from gateway.record import Exchange
from gateway.reports.drift import DriftWatch
from gateway.run import Run
from gateway.wire.base import Asked
from policies.budget import Period, cny, posted_of
from policies.exchange import Event
from policies.types import (
    MONEY_NANO_MAX,
    Attempt,
    BudgetView,
    Facts,
    Label,
    Plan,
    Reason,
    Refusal,
    Usage,
    Why,
)
from tests.policies.builders import (
    SENSITIVE,
    cloud,
    decide,
    facts,
    principal,
    rules,
    snapshot,
    worker,
)

# 100 tokens in at 100, 20 out at 1,000: what "small" charges; one second of an eighth of a server
USAGE = Usage(prompt_tokens=100, completion_tokens=20, reasoning_tokens=5, slot_ms=1_000)
CLOUD_NANO, LOCAL_NANO = 30_000, 100_000
RULES = rules(cloud_models=("small",))


class Books:
    """A ledger in a list. `down`: how many calls fail before it can be reached again."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.voided: list[str] = []
        self.down = 0

    def _reach(self) -> None:
        if self.down:
            self.down -= 1
            raise LedgerUnavailable("down", ambiguous=True)

    async def settle(self, hold_id: str, row: Row) -> Settled:
        self._reach()
        assert hold_id not in self.rows
        self.rows[hold_id] = row
        return Settled(posted_nano=posted_of(row.posted_nano, row.held_nano), already=False)

    async def void(self, hold_id: str) -> None:
        self._reach()
        self.voided.append(hold_id)


class Kit:
    """One exchange with everything around it that it talks to."""

    def __init__(self, asked: Facts | None = None) -> None:
        self.books = Books()
        self.later: list[Coroutine[Any, Any, None]] = []
        self.learned: list[dict[str, Any]] = []
        world = SimpleNamespace(
            succeeded=lambda attempt, model, **kw: self.learned.append({"model": model, **kw})
        )
        gateway: Any = SimpleNamespace(
            rules=RULES,
            world=world,
            ledger=self.books,
            later=self.later.append,
            history=History(4_096),
            spool=None,
            drift=DriftWatch(lambda: 0.0),
        )
        self.facts = asked or facts()
        decision = decide(self.facts, snapshot(worker(), clouds=(cloud("small"),)), RULES)
        assert isinstance(decision, Plan)
        self.attempts = decision.attempts  # local, then cloud, as far as the label permits
        chat = ChatRequest(model="glm", messages=[Message(role="user", content="hi")])
        self.exchange = Exchange(
            gateway, principal(org="group"), self.facts, Asked(chat=chat), decision.why
        )

    def run(self, number: int = 0, *, elapsed_s: float = 0.0) -> Run:
        run = Run(number, self.attempts[number], hold_id=f"{self.facts.request_id}.{number}")
        run._started_s -= elapsed_s
        self.exchange.draft(run)
        return run

    async def finish(self, run: Run, usage: Usage | None = USAGE) -> None:
        run.advance(Event.OPENED)
        await self.exchange.settle(run, run.finished(usage, "stop"), outcome=Outcome.OK)

    async def fail(self, run: Run, event: Event, *, more: bool, outcome: Outcome) -> None:
        await self.exchange.settle(run, run.advance(event, more=more), outcome=outcome)

    def money(self) -> tuple[str, str]:
        headers = self.exchange.headers()
        note = msgspec.json.encode(self.exchange.note()).decode()
        for kind in ("cost", "saved"):  # the same digits, not the nearest float
            assert f'"{kind}_cny":{headers[f"x-yuzui-{kind}-cny"]},' in note.replace("}", ",")
        return headers["x-yuzui-cost-cny"], headers["x-yuzui-saved-cny"]


def the_row(kit: Kit) -> Row:
    (row,) = kit.books.rows.values()
    return row


# ------------------------------------------------------------------ endings


async def test_a_local_answer() -> None:
    kit = Kit()
    await kit.finish(kit.run())
    assert kit.exchange.headers() == {
        "x-yuzui-request-id": "yz-1",
        "x-yuzui-reason": "local_fits",
        "x-yuzui-attempts": "1",
        "x-yuzui-sensitivity": "internal",
        "x-yuzui-route": "local:w1",
        "x-yuzui-cost-cny": "0.0001",
        "x-yuzui-saved-cny": "-0.00007",  # this server is dear, and the books do not hide it
    }
    assert msgspec.json.decode(msgspec.json.encode(kit.exchange.note())) == {
        "request_id": "yz-1",
        "route": "local:w1",
        "reason": "local_fits",
        "attempts": 1,
        "cost_cny": 0.0001,
        "saved_cny": -0.00007,
    }
    row = the_row(kit)
    assert (row.posted_nano, row.cloud_nano, row.final) == (LOCAL_NANO, CLOUD_NANO, True)
    assert (row.prompt_tokens, row.completion_tokens, row.reasoning_tokens) == (100, 20, 5)
    assert (row.tenant, row.org, row.subject, row.key_id) == ("acme", "group", "app", "k1")
    assert (row.outcome, row.state, row.finish_reason) == ("ok", "final", "stop")
    assert (row.label, row.label_source, row.card_version) == ("internal", "header", "test")
    assert row.held_nano == kit.attempts[0].hold_nano
    assert row.total_ms is not None


async def test_a_cloud_answer_after_a_worker_that_was_busy() -> None:
    kit = Kit()
    await kit.fail(kit.run(0), Event.REFUSED, more=True, outcome=Outcome.FAILED)
    assert kit.books.voided == ["yz-1.0"]
    assert not kit.books.rows, "what was given back leaves no row"
    await kit.finish(kit.run(1))
    row = the_row(kit)
    assert (row.attempt, row.attempts, row.reason, row.final) == (1, 2, "fallback", True)
    assert kit.money() == ("0.00003", "0.0")
    headers = kit.exchange.headers()
    assert headers["x-yuzui-route"] == "cloud:small"
    assert headers["x-yuzui-attempts"] == "2"
    assert headers["x-yuzui-reason"] == "fallback"


async def test_a_lost_attempt_is_paid_for_together_with_the_one_that_took_over() -> None:
    """The caller is told what the request cost, not only its last attempt."""
    kit = Kit()
    await kit.fail(kit.run(0, elapsed_s=1.0), Event.LOST, more=True, outcome=Outcome.BROKEN)
    await kit.finish(kit.run(1))
    lost, answered = kit.books.rows.values()
    assert (lost.final, answered.final) == (False, True)
    assert (lost.cloud_nano, lost.outcome) == (None, "broken")
    assert lost.posted_nano >= LOCAL_NANO  # a second has passed
    assert kit.money() == (cny(lost.posted_nano + answered.posted_nano), "0.0")


async def test_when_nothing_is_left_to_try_a_row_of_zero_says_so() -> None:
    kit = Kit()
    await kit.fail(kit.run(), Event.REFUSED, more=False, outcome=Outcome.FAILED)
    row = the_row(kit)
    assert (row.posted_nano, row.final, row.outcome) == (0, True, "failed")
    assert kit.money() == ("0.0", "0.0")
    assert not kit.books.voided


async def test_a_client_that_left_the_cloud_pays_the_hold_until_the_bill_is_read() -> None:
    kit = Kit()
    await kit.fail(kit.run(1), Event.CLIENT_GONE, more=False, outcome=Outcome.CLIENT_GONE)
    row = the_row(kit)
    assert row.posted_nano == row.held_nano == kit.attempts[1].hold_nano
    assert (row.state, row.flags, row.outcome) == (
        RowState.UNRECONCILED, ("bound",), "client_gone",
    )  # fmt: skip
    assert not kit.learned


async def test_an_engine_that_reports_no_usage() -> None:
    kit = Kit()
    await kit.finish(kit.run(1), usage=None)
    assert the_row(kit).posted_nano == kit.attempts[1].hold_nano
    assert [found["output_tokens"] for found in kit.learned] == [None], "and it did answer"


async def test_what_was_claimed_above_the_hold_is_neither_booked_nor_told() -> None:
    kit = Kit()
    await kit.finish(kit.run(), Usage(prompt_tokens=1, completion_tokens=1, slot_ms=10**9))
    hold_nano = kit.attempts[0].hold_nano
    assert the_row(kit).posted_nano > hold_nano
    assert kit.money()[0] == cny(hold_nano)


@pytest.mark.parametrize("stream", [True, False])
async def test_only_a_stream_tells_when_its_first_token_came(stream: bool) -> None:
    kit = Kit(facts(stream=stream))
    await kit.finish(kit.run(elapsed_s=2.0))
    (found,) = kit.learned
    assert found["model"] == "glm"
    assert found["output_tokens"] == 20
    assert found["total_ms"] >= 2_000
    assert (found["ttft_ms"] is not None) == stream


# ------------------------------------------------------------------ when Redis is away


async def test_a_settlement_that_did_not_arrive_is_repeated_and_told_all_the_same() -> None:
    kit = Kit()
    kit.books.down = 2
    await kit.finish(kit.run(), Usage(prompt_tokens=1, completion_tokens=1, slot_ms=10**9))
    assert not kit.books.rows
    assert kit.money()[0] == cny(kit.attempts[0].hold_nano)
    (again,) = kit.later
    await asyncio.wait_for(again, timeout=20)
    assert the_row(kit).final


async def test_a_hold_that_cannot_be_given_back_now_is_the_ledgers_to_repeat() -> None:
    kit = Kit()
    kit.books.down = 1
    await kit.fail(kit.run(), Event.REFUSED, more=True, outcome=Outcome.FAILED)
    assert not kit.books.voided
    assert not kit.later


# ------------------------------------------------------------------ refusals


def exhausted(resets_at_s: float | None = 1_795_276_800.0) -> Exhausted:
    view = BudgetView(
        scope="backend:cloud",
        limit_nano=50_000_000,
        posted_nano=49_000_000,
        held_nano=999_999,
        period="day",
        resets_at_s=resets_at_s,
    )
    return Exhausted(budget=view, period=Period.DAY, amount_nano=2_000)


def test_an_exhausted_budget_is_named_with_its_figures_and_its_end() -> None:
    kit = Kit()
    kit.run()
    error = kit.exchange.explain(kit.exchange.over_budget(exhausted()))
    assert (error.status, error.code) == (429, "insufficient_quota")
    assert error.message == (
        "the budget backend:cloud (day) is exhausted: limit 0.05 CNY, posted 0.049, "
        "held 0.000999999, asked for 0.000002; it starts anew at 2026-11-21T16:00:00+00:00"
    )
    assert error.headers == {
        "x-should-retry": "false",
        "x-yuzui-request-id": "yz-1",
        "x-yuzui-reason": "budget_exhausted",
        "x-yuzui-attempts": "0",  # nothing was sent
        "x-yuzui-sensitivity": "internal",
        "x-yuzui-cost-cny": "0.0",
        "x-yuzui-saved-cny": "0.0",
    }


def test_a_budget_that_never_starts_anew_does_not_say_when() -> None:
    kit = Kit()
    kit.run()
    message = kit.exchange.over_budget(exhausted(None)).message
    assert message.endswith("held 0.000999999, asked for 0.000002")


@pytest.mark.parametrize("why", ["no_money", "no_books"])
async def test_a_target_without_money_leaves_no_trace_when_the_next_one_answers(why: str) -> None:
    kit = Kit()
    kit.run(0)
    if why == "no_money":
        kit.exchange.over_budget(exhausted())
    else:
        assert kit.exchange.no_books().code == "ledger_unavailable"
    await kit.finish(kit.run(1))
    headers = kit.exchange.headers()
    assert headers["x-yuzui-reason"] == "fallback"
    assert headers["x-yuzui-attempts"] == "1"
    assert the_row(kit).attempts == 1


def test_a_refused_plan_shows_its_reason() -> None:
    kit = Kit()
    why = Why(reason=Reason.NO_CAPACITY, label=kit.facts.label)
    kit.exchange.refused(Refusal(reason=Reason.NO_CAPACITY, message="", why=why))
    error = kit.exchange.explain(GatewayError(503, "no_capacity", "full", retry_after_s=1))
    assert error.headers["x-yuzui-reason"] == "no_capacity"
    assert error.headers["retry-after"] == "1"
    assert "x-yuzui-route" not in error.headers


def test_what_had_to_stay_and_could_not_be_answered_says_so_as_its_reason() -> None:
    kit = Kit(facts(level=SENSITIVE))
    assert kit.exchange.pinned
    error = kit.exchange.explain(GatewayError(503, "sensitive_local_unavailable", "no"))
    assert error.headers["x-yuzui-reason"] == "sensitive_local_unavailable"


# ------------------------------------------------------------------ what else the client is told


async def test_a_label_that_was_not_understood_is_said_everywhere() -> None:
    note = "the sensitivity label in the header is not known; it counts as sensitive"
    kit = Kit(facts(label=Label(level=SENSITIVE, source="header", note=note)))
    run = kit.run()
    await kit.finish(run)
    for headers in (kit.exchange.headers(), kit.exchange.stream_headers(run)):
        assert headers["x-yuzui-sensitivity-note"] == note
        assert headers["x-yuzui-sensitivity"] == "sensitive"
        assert headers["x-yuzui-reason"] == "sensitive_pinned"
    assert kit.exchange.note()["sensitivity_note"] == note


def test_a_stream_that_begins_does_not_know_yet_what_it_costs() -> None:
    kit = Kit()
    headers = kit.exchange.stream_headers(kit.run())
    assert headers["x-yuzui-route"] == "local:w1"
    assert not [name for name in headers if name.endswith("-cny")]


def test_each_engine_is_asked_by_its_own_name() -> None:
    kit = Kit()
    assert kit.exchange.chat_for("glm-4.6v-nano").model == "glm-4.6v-nano"
    assert kit.exchange.asked.chat.model == "glm"
    assert kit.exchange.chat_for("x").messages == kit.exchange.asked.chat.messages


# ------------------------------------------------------------------ an attempt


def test_the_first_token_is_timed_once() -> None:
    run = Kit().run(elapsed_s=1.0)
    run.first_token()
    first = run.ttft_ms
    run._started_s -= 5.0
    run.first_token()
    assert first is not None
    assert first >= 1_000.0
    assert run.ttft_ms == first


def test_an_attempt_cannot_end_twice() -> None:
    run = Kit().run()
    run.advance(Event.LOST)
    assert run.over
    with pytest.raises(ValueError, match="client_gone"):
        run.advance(Event.CLIENT_GONE)


# ------------------------------------------------------------------ money as text


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "0.0"), (1, "0.000000001"), (324_000, "0.000324"), (10**9, "1.0"),
        (-70_000, "-0.00007"), (1_500_000_000, "1.5"), (MONEY_NANO_MAX, "9007199.254740991"),
    ],
)  # fmt: skip
def test_money_is_written_exactly(nano: int, text: str) -> None:
    assert cny(nano) == text


@given(st.integers(-MONEY_NANO_MAX, MONEY_NANO_MAX))
def test_money_is_read_back_to_the_last_unit(nano: int) -> None:
    text = cny(nano)
    assert Decimal(text) * 10**9 == nano
    assert msgspec.json.decode(text) == nano / 10**9, "it is a number of JSON as well"


def test_the_kit_has_a_local_and_a_cloud_attempt() -> None:
    attempts: tuple[Attempt, ...] = Kit().attempts
    assert [attempt.target for attempt in attempts] == ["w1", "small"]
