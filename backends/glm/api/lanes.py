"""Threads that prepare requests, in which the tenants take turns.

A job is a generator of steps: decoding one picture, rendering a prompt, compiling a grammar. After
each step the next tenant has his turn, so that whoever sends much at once waits for himself. A job
whose caller has left does no further step.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from backends.glm.request.prompt import Steps

T = TypeVar("T")


class Turns(Generic[T]):
    """Who is next: the tenants in turn, and each tenant's own in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()

    def add(self, tenant: str, item: T) -> None:
        """At the end of this tenant's line; who had none is last to have a turn."""
        self._waiting.setdefault(tenant, deque()).append(item)

    def put_back(self, tenant: str, item: T) -> None:
        """At the head of this tenant's line: what was begun is finished first."""
        self._waiting.setdefault(tenant, deque()).appendleft(item)

    def next(self) -> tuple[str, T] | None:
        """Take the next one and whose it is; None: nobody waits."""
        if not self._waiting:
            return None
        tenant, line = self._waiting.popitem(last=False)
        item = line.popleft()
        if line:
            self._waiting[tenant] = line
        return tenant, item

    def remove(self, tenant: str, item: T) -> bool:
        """Take it out of the line; whether it was there."""
        line = self._waiting.get(tenant, deque())
        if item not in line:
            return False
        line.remove(item)
        if not line:
            del self._waiting[tenant]
        return True


class _Job:
    def __init__(self, tenant: str, steps: Steps[Any]) -> None:
        self.tenant = tenant
        self.steps = steps
        self.result: Future[Any] = Future()


class Lane:
    """Some threads, and who has his turn in them. May be used from any thread."""

    def __init__(self, name: str, threads: int) -> None:
        """`threads`: steps that are done at once, of different jobs."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._turns: Turns[_Job] = Turns()
        self._closed = False

    def submit(self, tenant: str, steps: Steps[T]) -> Future[T]:
        """Do these steps in this tenant's turns; the result is what the generator returns.

        Cancelling the result takes the job out of the line, or ends it after the step that runs.
        A lane that was closed cancels.
        """
        job = _Job(tenant, steps)
        job.result.add_done_callback(lambda result: self._drop(job))
        self._wait(job, self._turns.add)
        return job.result

    def close(self) -> None:
        """Cancel what waits; the steps that run are not waited for."""
        with self._lock:
            self._closed = True
            waiting = []
            while (taken := self._turns.next()) is not None:
                waiting.append(taken[1])
        for job in waiting:
            job.result.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _wait(self, job: _Job, line_up: Callable[[str, _Job], None]) -> None:
        """One turn is called for each job that waits; it may meet another's, and that one this."""
        with self._lock:
            refused = self._closed
            if not refused and not job.result.cancelled():
                line_up(job.tenant, job)
                self._pool.submit(self._turn)
        if refused:
            job.result.cancel()

    def _drop(self, job: _Job) -> None:
        """It has ended; if it was cancelled while it waited, that is over."""
        with self._lock:
            waited = self._turns.remove(job.tenant, job)
        if waited:  # not while a step of it runs
            job.steps.close()

    def _turn(self) -> None:
        with self._lock:
            taken = self._turns.next()
        if taken is None:  # the one whose turn it was has left
            return
        job = taken[1]
        try:
            next(job.steps)
        except StopIteration as end:
            if job.result.set_running_or_notify_cancel():
                job.result.set_result(end.value)
        except BaseException as error:  # told to the one who waits for the result
            if job.result.set_running_or_notify_cancel():
                job.result.set_exception(error)
        else:
            self._wait(job, self._turns.put_back)
