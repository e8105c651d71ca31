from __future__ import annotations

import asyncio
import gc
import logging

import pytest

from gateway import tasks
from gateway.tasks import spawn


async def test_a_task_nobody_holds_survives_the_garbage_collector() -> None:
    reached = asyncio.Event()

    async def wait_on_something_only_the_task_holds() -> None:
        await asyncio.sleep(0.01)
        reached.set()

    spawn(wait_on_something_only_the_task_holds(), name="orphan")
    await asyncio.sleep(0)
    gc.collect()
    await asyncio.wait_for(reached.wait(), 20)


async def test_a_failure_is_logged_once_under_its_name_and_can_still_be_awaited(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    task = spawn(fail(), name="sweeper")
    with pytest.raises(ValueError, match="broken"):
        await task
    await asyncio.sleep(0)
    lines = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert [r.getMessage() for r in lines] == ["background task sweeper failed"]
    assert lines[0].exc_info is not None


async def test_being_cancelled_is_not_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    task = spawn(asyncio.sleep(10), name="sleeper")
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert not caplog.records


async def test_a_finished_task_is_forgotten() -> None:
    async def answer() -> int:
        return 7

    task = spawn(answer(), name="short")
    assert task in tasks._alive
    assert await task == 7
    await asyncio.sleep(0)
    assert task not in tasks._alive


def test_outside_a_loop_it_raises_and_leaves_no_unawaited_coroutine() -> None:
    with pytest.raises(RuntimeError):
        spawn(asyncio.sleep(0), name="nowhere")
    gc.collect()
