from __future__ import annotations

import pytest

from policies.types import BudgetView, Line, SloClass


@pytest.mark.parametrize(
    ("posted", "held", "left"), [(0, 0, 500), (300, 40, 160), (500, 0, 0), (400, 200, -100)]
)
def test_what_is_posted_and_what_is_held_are_both_gone(posted: int, held: int, left: int) -> None:
    view = BudgetView(scope="tenant:a", limit_nano=500, posted_nano=posted, held_nano=held)
    assert view.left_nano == left


def test_batch_waits_behind_both_and_interactive_behind_its_own() -> None:
    line = Line(interactive=3, batch=4, places=4)
    assert (line.ahead(SloClass.INTERACTIVE), line.ahead(SloClass.BATCH)) == (3, 7)
    assert line.has_place(SloClass.INTERACTIVE)
    assert not line.has_place(SloClass.BATCH)
    assert not Line().has_place(SloClass.INTERACTIVE), "nobody waits where there is no place"
