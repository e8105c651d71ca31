from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.exchange import Event, Phase, Resolve, Step, Then, step

R, O, D = Phase.RESERVED, Phase.OPEN, Phase.DELIVERING  # noqa: E741
OVER = Phase.OVER

# Every pair that can happen, with and without another attempt to make.
# phase, event -> next phase, resolve, then | resolve, then without another attempt
TABLE = {
    (R, Event.OPENED): (O, None, Then.CONTINUE, None, Then.CONTINUE),
    (R, Event.REFUSED): (OVER, Resolve.VOID, Then.NEXT, Resolve.NOTHING, Then.FAIL),
    (R, Event.LOST): (OVER, Resolve.BOUND, Then.NEXT, Resolve.BOUND, Then.FAIL),
    (R, Event.CLIENT_GONE): (OVER, Resolve.BOUND, Then.END, Resolve.BOUND, Then.END),
    (O, Event.DELIVERED): (D, None, Then.CONTINUE, None, Then.CONTINUE),
    (O, Event.FINISHED): (OVER, Resolve.METER, Then.END, Resolve.METER, Then.END),
    (O, Event.UNMETERED): (OVER, Resolve.BOUND, Then.END, Resolve.BOUND, Then.END),
    (O, Event.REFUSED): (OVER, Resolve.VOID, Then.NEXT, Resolve.NOTHING, Then.FAIL),
    (O, Event.LOST): (OVER, Resolve.BOUND, Then.NEXT, Resolve.BOUND, Then.FAIL),
    (O, Event.CLIENT_GONE): (OVER, Resolve.BOUND, Then.END, Resolve.BOUND, Then.END),
    (D, Event.FINISHED): (OVER, Resolve.METER, Then.END, Resolve.METER, Then.END),
    (D, Event.UNMETERED): (OVER, Resolve.BOUND, Then.END, Resolve.BOUND, Then.END),
    (D, Event.REFUSED): (OVER, Resolve.BOUND, Then.BREAK, Resolve.BOUND, Then.BREAK),
    (D, Event.LOST): (OVER, Resolve.BOUND, Then.BREAK, Resolve.BOUND, Then.BREAK),
    (D, Event.CLIENT_GONE): (OVER, Resolve.BOUND, Then.END, Resolve.BOUND, Then.END),
    (O, Event.CURTAILED): (OVER, Resolve.BOUND, Then.END, Resolve.BOUND, Then.END),
    (D, Event.CURTAILED): (OVER, Resolve.BOUND, Then.END, Resolve.BOUND, Then.END),
}


@pytest.mark.parametrize(("phase", "event"), list(product(Phase, Event)))
def test_every_pair_is_in_the_table_or_raises(phase: Phase, event: Event) -> None:
    expected = TABLE.get((phase, event))
    if expected is None:
        for more in (True, False):
            with pytest.raises(ValueError, match=event.value):
                step(phase, event, more=more)
        return
    to, resolve, then, last_resolve, last_then = expected
    assert step(phase, event, more=True) == Step(phase=to, resolve=resolve, then=then)
    assert step(phase, event, more=False) == Step(phase=to, resolve=last_resolve, then=last_then)


def test_nothing_happens_after_the_end() -> None:
    assert not [event for phase, event in TABLE if phase is OVER]


@given(st.lists(st.sampled_from(Event), max_size=12), st.booleans())
def test_a_hold_is_resolved_once_and_exactly_when_its_attempt_is_over(
    events: list[Event], more: bool
) -> None:
    phase = Phase.RESERVED
    resolved: list[Resolve] = []
    for event in events:
        try:
            taken = step(phase, event, more=more)
        except ValueError:
            continue  # what cannot happen changes nothing
        assert (taken.resolve is not None) == (taken.phase is OVER)
        if taken.resolve is not None:
            resolved.append(taken.resolve)
            if phase is D or event in (Event.LOST, Event.CLIENT_GONE):
                assert taken.resolve in (Resolve.METER, Resolve.BOUND), "it may have been billed"
        phase = taken.phase
    assert len(resolved) == (phase is OVER)


@pytest.mark.parametrize("phase", [R, O, D])
def test_every_phase_leads_to_the_end(phase: Phase) -> None:
    """The client can leave at any moment, and then the books are closed at once."""
    assert step(phase, Event.CLIENT_GONE, more=True).phase is OVER


def test_an_exchange_always_leaves_a_final_row() -> None:
    """Voiding writes none, so only an attempt that another one follows may be voided."""
    for phase, event in TABLE:
        taken = step(phase, event, more=False)
        assert taken.resolve is not Resolve.VOID
        assert taken.then is not Then.NEXT
        if step(phase, event, more=True).resolve is Resolve.VOID:
            assert step(phase, event, more=True).then is Then.NEXT


def test_only_before_the_first_byte_another_attempt_takes_over() -> None:
    for phase, event in TABLE:
        then = step(phase, event, more=True).then
        assert then is not Then.NEXT or phase is not D
        assert then is not Then.BREAK or phase is D
