"""The experiments of `make proof-budget` in their shortest form, and that they can fail."""

from __future__ import annotations

import json

import pytest

from tests.gateway.ledger.kit import hold, row
from tests.gateway.redis_servers import VALKEY, RealServer
from tests.proof import budget, flows, traffic
from tests.proof.crash import Crashes, crash
from tests.proof.failover import failover
from tests.proof.traffic import Found

SEED = 20_261  # a red build is red for whoever looks; `make proof-budget` draws another each time


def good(found: Found | Crashes) -> None:
    assert found.wrong == []
    assert (found.overspend, found.drift, found.leaked) == (0, 0, 0)


async def test_gateways_killed_at_each_point_on_both_sides() -> None:
    found = Crashes()
    await crash(1, found=found, first_seed=SEED)
    good(found)
    assert found.runs + found.missed == 16
    assert found.runs >= 14
    assert found.resolved_s_max <= 5.0


async def test_a_crowd_on_one_budget() -> None:
    found = Found()
    await traffic.crowd(50, 600, processes=2, seed=SEED, found=found)
    good(found)
    assert found.figures["refused"] > 0
    assert found.figures["operations_replayed"] > 600


async def test_a_network_that_repeats_and_loses() -> None:
    found = Found()
    await traffic.network(20, 600, delay_s=0.1, seed=SEED, found=found)
    good(found)
    assert found.figures["network"]["twice"] > 0


async def test_eight_processes_that_start_on_full_books() -> None:
    found = Found()
    await flows.cold_start(8, found)
    good(found)


async def test_a_server_that_dies_and_a_replica_that_takes_over() -> None:
    found = Found()
    await failover(1, seed=SEED, found=found, seconds=1.0)
    good(found)
    assert found.figures["restart_lost_nano"] == 0


async def test_callers_that_leave() -> None:
    found = Found()
    await flows.callers_leave(40, seed=SEED, found=found)
    good(found)
    assert found.figures["left"] > 0


async def test_settlements_after_the_end_of_a_period() -> None:
    found = Found()
    await traffic.rollover(200, found)
    good(found)


async def test_usage_that_cannot_be_true() -> None:
    found = Found()
    await flows.nonsense(found)
    good(found)


async def test_all_of_a_budget_can_be_used() -> None:
    found = Found()
    await traffic.precision(20, 10, found)
    good(found)


# ------------------------------------------------------------------ the judges can say no


async def test_the_replay_sees_a_counter_above_its_limit() -> None:
    server = RealServer(VALKEY, "--appendonly", "yes")
    try:
        with server.client() as client:
            counter = "day|backend:cloud|1|2026-11-22"
            with client.pipeline(transaction=True) as effects:
                effects.hincrby("yuzui:{main}:counters", f"{counter}|h", 70)
                effects.hincrby("yuzui:{main}:counters", f"{counter}|p", 40)
                effects.execute()
            client.execute_command("WAITAOF", 1, 0, 1000)
        found = Found()
        traffic._replay(server.folder, 100, found)
        assert found.overspend == 10
    finally:
        server.close()


async def test_the_audit_sees_a_row_too_many() -> None:
    server = RealServer(VALKEY)
    try:
        ledger = await traffic.Ledger.connect(server.url, instance="gw")
        await ledger.reserve(hold("a.0", 10, now_s=0.0), 0.0)
        await ledger.settle("a.0", row("a.0", 7))
        with server.client() as client:
            entry = client.xrange("yuzui:{main}:rows")[0][1]
            client.xadd("yuzui:{main}:rows", entry)
            client.hincrby("yuzui:{main}:till", "held", 3)
        found = Found()
        await traffic._quiet(ledger, found)
        assert (found.drift, found.leaked) == (7, 3)
        assert found.wrong
        await ledger.close()
    finally:
        server.close()


def test_the_last_line_is_json_and_the_exit_code_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def parts(size: object, seed: int, processes: int, report: budget.Report) -> object:
        return {
            "fine": lambda: report.add("fine", Found()),
            "bad": lambda: report.add("bad", Found(overspend=1)),
            "stopped": stop,
        }

    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(budget, "parts", parts)
    for only, code in (("fine", 0), ("fine,bad", 1), ("fine,stopped", 130)):
        assert budget.main(["--quick", "--only", only]) == code
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert {
            "sequences", "crash_runs", "overspend", "drift", "leaked", "hold_settle_p99_ms",
        } <= last.keys()  # fmt: skip
        assert last["overspend"] == (only == "fine,bad")
