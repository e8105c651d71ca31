from __future__ import annotations

import pytest
from msgspec.structs import replace

from policies.bill import PERIOD_MS, Billed, Booked, Counted, Finding, Open, Reconciled, Three
from policies.reconcile import reconcile
from tests.policies.bill_builders import (
    HOUR,
    Prices,
    billed,
    booked,
    counted,
    hold,
    options,
)

ONE, TWO = (500, 20, 30), (700, 0, 8)


def settle(
    holds: list[Open],
    items: list[Billed],
    count: list[Counted] | None,
    *rows: Booked,
) -> Reconciled:
    return reconcile(
        rows, holds, items, count or [], prices=Prices(), options=options(counted=count is not None)
    )


def plus(a: Three, b: Three) -> Three:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def resolved(found: Reconciled) -> dict[str, tuple[Three, str]]:
    return {each.hold.hold_id: (each.tokens, each.by) for each in found.resolved}


def seen(found: Reconciled) -> list[tuple[str, str]]:
    return [(each.status.value, each.kind) for each in found.findings]


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_one_hold_is_what_the_count_has_left_whatever_the_bill_lacks(missing: int) -> None:
    items = billed(ONE)
    del items[missing]
    found = settle([hold("h")], [*items], [counted(ONE)])
    assert resolved(found) == {"h": (ONE, "usage")}
    assert seen(found) == [("missing", ("input", "cached", "output")[missing])]


def test_rows_of_the_same_hour_are_taken_off_first() -> None:
    other = booked("b", TWO)
    items = [*billed(ONE), *billed(TWO)]
    found = settle([hold("h")], items, [counted(plus(ONE, TWO))], other)
    assert resolved(found) == {"h": (ONE, "usage")}
    assert seen(found) == []


def test_without_a_count_the_bill_is_believed() -> None:
    found = settle([hold("h")], billed(ONE), None)
    assert resolved(found) == {"h": (ONE, "bill")}
    assert seen(found) == []


def test_a_hold_may_be_billed_on_the_other_side_of_a_boundary() -> None:
    found = settle(
        [hold("h", HOUR + PERIOD_MS - 10)], billed(ONE, HOUR + PERIOD_MS), [counted(ONE)]
    )
    assert resolved(found) == {"h": (ONE, "usage")}
    assert found.resolved[0].period_ms == HOUR + PERIOD_MS
    assert seen(found) == []


def test_a_dead_gateways_hold_is_looked_for_until_it_must_have_ended() -> None:
    lost = hold("h", HOUR, HOUR + 3 * PERIOD_MS)
    for late in (0, 2, 3):
        found = settle([lost], billed(ONE, HOUR + late * PERIOD_MS), [counted(ONE)])
        assert resolved(found) == {"h": (ONE, "usage")}
        assert seen(found) == []


def test_nothing_billed_and_nothing_counted_is_nothing() -> None:
    found = settle([hold("h")], [], [])
    assert resolved(found) == {"h": ((0, 0, 0), "nothing")}
    assert found.resolved[0].difference_nano == -(10**9)


def test_billed_and_not_counted_is_given_back_and_found() -> None:
    found = settle([hold("h")], billed(ONE), [])
    assert resolved(found)["h"][1] == "nothing"
    assert seen(found) == [("extra", "cached"), ("extra", "input"), ("extra", "output")]


@pytest.mark.parametrize("count", [True, False])
def test_two_holds_in_their_own_periods_are_told_apart(count: bool) -> None:
    items = [*billed(ONE), *billed(TWO, HOUR + PERIOD_MS)]
    holds = [hold("a", HOUR + 60_000), hold("b", HOUR + PERIOD_MS + 60_000)]
    found = settle(holds, items, [counted(plus(ONE, TWO))] if count else None)
    assert resolved(found) == {"a": (ONE, "bill"), "b": (TWO, "bill")}
    assert seen(found) == []


def test_two_holds_in_one_cell_share_it_and_the_sum_is_exact() -> None:
    """Nobody can tell them apart: each takes its part of what was held."""
    small, total = (100, 0, 10), (400, 0, 40)
    holds = [hold("a", nano=3 * 10**8), hold("b", nano=10**8)]
    found = settle(holds, billed(total), [counted(total)])
    shares = resolved(found)
    assert shares == {"a": ((300, 0, 30), "share"), "b": (small, "share")}
    assert seen(found) == []
    assert sum(sum(each.nano) for each in found.resolved) == found.sums.billed


def test_a_wrong_item_between_two_holds_is_put_right_when_only_one_can_be_meant() -> None:
    """The input of one is not billed at all: without input it cannot have been a request."""
    items = [*billed(ONE), *billed(TWO, HOUR + PERIOD_MS)[1:]]
    holds = [hold("a", HOUR + 60_000), hold("b", HOUR + PERIOD_MS + 60_000)]
    found = settle(holds, items, [counted(plus(ONE, TWO))])
    assert {name: tokens for name, (tokens, _) in resolved(found).items()} == {"a": ONE, "b": TWO}
    assert seen(found) == [("missing", "input")]


def test_a_wrong_item_that_may_be_either_ones_is_left_to_a_person() -> None:
    wrong = (TWO[0], TWO[1], TWO[2] + 5)
    items = [*billed(ONE), *billed(wrong, HOUR + PERIOD_MS)]
    holds = [hold("a", HOUR + 60_000), hold("b", HOUR + PERIOD_MS + 60_000)]
    found = settle(holds, items, [counted(plus(ONE, TWO))])
    assert resolved(found) == {}
    assert [each.hold_id for each in found.disputed] == ["a", "b"]
    (finding,) = found.findings
    assert isinstance(finding, Finding)
    assert (finding.status.value, finding.kind) == ("disputed", "output")
    assert (finding.booked_tokens, finding.billed_tokens) == (38, 43)
    assert found.sums.disputed == found.sums.billed


@pytest.mark.parametrize(
    "open_one",
    [hold("h", nano=1_000), replace(hold("h"), card="none")],
    ids=["dearer than was held", "no card"],
)
def test_what_a_hold_cannot_have_been_is_disputed(open_one: Open) -> None:
    found = settle([open_one], billed(ONE), [counted(ONE)])
    assert (len(found.resolved), len(found.disputed)) == (0, 1)


def test_holds_of_another_hour_do_not_disturb() -> None:
    there = HOUR + 3_600_000
    found = settle(
        [hold("a", HOUR + 60_000), hold("b", there + 60_000)],
        [*billed(ONE), *billed(TWO, there)],
        [counted(ONE), counted(TWO, there)],
    )
    assert resolved(found) == {"a": (ONE, "usage"), "b": (TWO, "usage")}


def test_a_group_outside_of_what_is_looked_at_is_left_alone() -> None:
    found = settle([hold("h", HOUR - 3_600_000)], [], [])
    assert not found.resolved
    assert not found.disputed
