"""Background tasks that cannot vanish and cannot fail in silence.

The event loop keeps only a weak reference to a task, so one that nobody holds may be collected
while it waits (the Python documentation of `asyncio.create_task` says so), and its exception is
seen only when the garbage collector gets there. `spawn` holds the task until it is done and logs
what it raised. Everywhere else `asyncio.create_task` is banned by the linter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)
_alive: set[asyncio.Task[Any]] = set()


def spawn(coro: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
    """Start `coro` on the running loop and keep it alive until it ends.

    An exception is logged once, under the task's name, and is still there for whoever awaits the
    task. Being cancelled is not a failure. Raises RuntimeError when no loop is running.
    """
    try:
        task = asyncio.get_running_loop().create_task(coro, name=name)
    except RuntimeError:
        coro.close()  # without this the caller also gets "was never awaited"
        raise
    _alive.add(task)
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[Any]) -> None:
    _alive.discard(task)
    if task.cancelled():
        return
    error = task.exception()  # also marks it as retrieved
    if error is not None:
        _log.error("background task %s failed", task.get_name(), exc_info=error)
