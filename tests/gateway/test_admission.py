from __future__ import annotations

import asyncio

import pytest

from gateway.admission import Admission
from gateway.errors import GatewayError


def refused(admission: Admission) -> GatewayError:
    with pytest.raises(GatewayError) as caught, admission.enter():
        raise AssertionError("it was let in")
    return caught.value


def test_more_than_the_bound_is_shed_and_told_when_to_come_back() -> None:
    admission = Admission(2)
    with admission.enter(), admission.enter():
        error = refused(admission)
        assert admission.in_flight == 2, "what was shed does not count"
    assert (error.status, error.code, error.headers) == (503, "overloaded", {"retry-after": "1"})
    with admission.enter():
        assert admission.in_flight == 1


def test_a_place_is_free_again_however_it_was_left() -> None:
    admission = Admission(1)
    for error in (ValueError, asyncio.CancelledError):
        with pytest.raises(error), admission.enter():
            raise error
        assert admission.in_flight == 0


async def test_draining_waits_for_those_inside_and_lets_nobody_in() -> None:
    admission = Admission(5)
    async with asyncio.TaskGroup() as group:
        with admission.enter():
            draining = group.create_task(admission.drained(patience_s=60))
            await asyncio.sleep(0)
            assert refused(admission).code == "draining"
            assert not draining.done()
    assert draining.done()
    assert admission.in_flight == 0


async def test_an_empty_gateway_is_drained_at_once() -> None:
    admission = Admission(5)
    with admission.enter():
        pass
    await asyncio.wait_for(admission.drained(patience_s=60), timeout=20)


async def test_patience_ends() -> None:
    admission = Admission(5)
    with admission.enter():
        await admission.drained(patience_s=0)
        assert admission.in_flight == 1
