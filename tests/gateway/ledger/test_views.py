"""What a process believes of the budgets between two answers of Redis."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest

from gateway.ledger.views import KEEP_FINISHED_S, Budget, BudgetViews, Definition
from policies.budget import BudgetOptions, Period
from policies.types import SoftLimit, Steer
from tests.gateway.ledger.kit import NOW_S, ZONE

DAY_S = 86_400
DAY = "day|tenant:acme"
MIDNIGHT_S = NOW_S + 7 * 3_600  # in Shanghai, the next one
OPTIONS = BudgetOptions(pace=True, soft=(SoftLimit(at_percent=80, steer=Steer.CHEAPER),))


def loaded(limits: Mapping[str, str], *, into: BudgetViews | None = None) -> BudgetViews:
    """limits: budget id -> limit as it stands in Redis, with its mode in front."""
    views = into or BudgetViews()
    more = msgspec.json.encode(OPTIONS).decode()
    names, definitions = [], []
    for name, limit in limits.items():
        names += [name.encode(), limit.encode()]
        definitions += [name.encode(), f"g1\n7\n{ZONE}\n\n1\n{more}".encode()]
    views.load("e", names, definitions, NOW_S)
    return views


def test_a_definition_is_read_as_it_was_written() -> None:
    read = Definition.read("F500", f"g2\n3\n{ZONE}\n\n15\n{{}}")
    assert (read.limit_nano, read.mode, read.generation, read.version) == (500, "F", "g2", 3)
    assert (read.zone, read.start_day, read.options) == (ZONE, 15, BudgetOptions())
    assert Definition.read("S5", f"g\n1\n{ZONE}\n").mode == "S"
    old = Definition.read("5", f"g\n1\n{ZONE}\n")
    assert (old.mode, old.start_day, old.options) == ("", 1, BudgetOptions())
    with pytest.raises(ValueError, match="unpack"):
        Definition.read("5", "what no ledger wrote")


def test_a_budget_knows_its_period_and_its_counter() -> None:
    (day,) = loaded({DAY: "500"}).drawn(["tenant:acme"], NOW_S)
    assert (day.resets_at_s, day.starts_at_s) == (MIDNIGHT_S, MIDNIGHT_S - DAY_S)
    assert day.drop_ms == 1000 * (MIDNIGHT_S + KEEP_FINISHED_S)
    assert day.counter.startswith(f"{DAY}|g1|")
    (total,) = loaded({"total|tenant:acme": "500"}).drawn(["tenant:acme"], NOW_S)
    assert (total.resets_at_s, total.starts_at_s, total.drop_ms) == (None, None, 0)
    assert (day.posted_nano, day.held_nano) == (0, 0)


@pytest.mark.parametrize(("limit", "frozen"), [("500", False), ("F500", True), ("S500", False)])
def test_what_the_plan_and_the_operator_see_of_it(limit: str, frozen: bool) -> None:
    views = loaded({DAY: limit})
    (day,) = views.all(NOW_S)
    views.saw([day], [300, 40])
    (view,) = views.views()["tenant:acme"]
    assert (view.limit_nano, view.posted_nano, view.held_nano, view.left_nano) == (
        500,
        300,
        40,
        160,
    )
    assert (view.frozen, view.soft, view.pace, view.period) == (frozen, OPTIONS.soft, True, "day")
    assert (view.starts_at_s, view.resets_at_s) == (MIDNIGHT_S - DAY_S, MIDNIGHT_S)
    status = day.status()
    assert (status.frozen, status.version, status.period) == (frozen, 7, Period.DAY)
    assert (status.limit_nano, status.posted_nano, status.held_nano) == (500, 300, 40)
    assert (status.starts_at_s, status.resets_at_s) == (MIDNIGHT_S - DAY_S, MIDNIGHT_S)


def test_a_new_period_begins_at_nothing_and_is_seen() -> None:
    views = loaded({DAY: "500"})
    (today,) = views.drawn(["tenant:acme"], NOW_S)
    views.saw([today], [300, 40])
    assert views.views()["tenant:acme"][0].posted_nano == 300
    (tomorrow,) = views.drawn(["tenant:acme"], MIDNIGHT_S)  # its first moment
    assert tomorrow.counter != today.counter
    assert views.known() == [tomorrow]
    assert views.of(DAY) is tomorrow
    assert views.views()["tenant:acme"][0].posted_nano == 0
    today.saw(301, 0)  # a late settlement of yesterday's hold
    assert views.views()["tenant:acme"][0].posted_nano == 0


def test_the_past_is_looked_at_without_going_back_to_it() -> None:
    views = loaded({DAY: "500"})
    (now,) = views.drawn(["tenant:acme"], NOW_S)
    (then,) = views.drawn_then(["tenant:acme", "tenant:acme"], NOW_S - DAY_S)
    assert then.resets_at_s == now.starts_at_s
    assert then.counter != now.counter
    assert views.drawn_then(["tenant:acme"], NOW_S) == [now]
    (next_day,) = views.drawn_then(["tenant:acme"], MIDNIGHT_S)
    assert next_day.starts_at_s == MIDNIGHT_S
    assert views.known() == [now]


def test_a_changed_limit_is_seen_at_once_and_the_count_goes_on() -> None:
    """A view was made before; holds that are open keep their budget."""
    views = loaded({DAY: "500", "day|tenant:b": "9"})
    (day,) = views.drawn(["tenant:acme"], NOW_S)
    views.saw([day], [300, 0])
    assert views.views()["tenant:acme"][0].limit_nano == 500
    loaded({DAY: "F900"}, into=views)
    assert views.drawn(["tenant:acme"], NOW_S) == [day]
    (view,) = views.views()["tenant:acme"]
    assert (view.limit_nano, view.posted_nano, view.frozen) == (900, 300, True)
    assert set(views.views()) == {"tenant:acme"}, "what was removed limits nobody"
    views.saw([Budget("day|tenant:b", day.definition, NOW_S)], [1, 1])  # a late reply
    assert set(views.views()) == {"tenant:acme"}


def test_every_scope_is_drawn_once_and_figures_find_their_budget() -> None:
    views = loaded({DAY: "500", "total|tenant:acme": "600", "day|backend:cloud": "700"})
    drawn = views.drawn(["backend:cloud", "tenant:acme", "backend:cloud", "user:x"], NOW_S)
    assert [budget.id for budget in drawn] == ["day|backend:cloud", DAY, "total|tenant:acme"]
    views.saw(drawn, [1, 2, 3, 4, 5, 6])
    assert [(b.posted_nano, b.held_nano) for b in drawn] == [(1, 2), (3, 4), (5, 6)]
    assert [view.posted_nano for view in views.views()["tenant:acme"]] == [3, 5]
    assert views.of("day|nobody") is None
