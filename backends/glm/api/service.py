"""What the worker does with a chat request, apart from HTTP: the bridge to the engine's thread."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from backends.glm.api.lanes import Lane
from backends.glm.engine.adapters import Adapters
from backends.glm.engine.engine import Engine
from backends.glm.engine.events import Event, Job, Ticket
from backends.glm.engine.progress import STALL_MIN_S
from backends.glm.engine.remembered import Remembered
from backends.glm.errors import WorkerUnavailable, worker_draining
from backends.glm.request.prepare import Prepared, Preparer
from backends.glm.request.prompt import PromptBuilder, Steps
from backends.glm.request.protocol import ChatRequest
from backends.glm.types import Prompt

# Decoding pictures and tokenising release the interpreter lock for most of their time; more threads
# would take cores from the model. One decodes pictures, so one is in memory decoded at a time.
TEXT_THREADS, PICTURE_THREADS = 2, 1
# Of a body: parsing a larger one takes long enough to be felt by who waits for it.
LARGE_BYTES = 256 * 1024

State = Literal["loading", "ok", "draining", "failed"]
Events = asyncio.Queue[tuple[int, Event]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """A model that is up: everything a chat request needs. `engine` runs already; `stall_s`: for
    how long it may make no progress."""

    engine: Engine
    preparer: Preparer
    adapters: Adapters
    remembered: Remembered | None = None
    stall_s: float = STALL_MIN_S

    @property
    def prompts(self) -> PromptBuilder:
        """What prompts are made with."""
        return self.preparer.prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """One admitted and prepared request. Its events come with the number of their answer, in order
    for each answer, a Finished or Failed last. `spelled`: the bytes of a token id."""

    request: ChatRequest
    prompt: Prompt
    events: Events
    spelled: Callable[[int], bytes]


class Mail:
    """Carries events from the engine's thread to the event loop.

    A step of the engine ends with an event for each of many requests; they cross together, because
    waking the loop costs more than all of them.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._posted: deque[tuple[Events, int, Event]] = deque()
        self._called = False  # a delivery is on its way that will look at what is posted now

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver on this loop."""
        self._loop = loop

    def post(self, queue: Events, choice: int, event: Event) -> None:
        """An event of this answer, from any thread."""
        self._posted.append((queue, choice, event))
        # Posted first and asked then, the other way round than in `_deliver`: of several threads
        # that post at once, at least one calls. Two calls instead of one do no harm.
        if not self._called and self._loop is not None:
            self._called = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: the process ends, nobody listens
                return

    def _deliver(self) -> None:
        self._called = False
        while self._posted:
            queue, choice, event = self._posted.popleft()
            queue.put_nowait((choice, event))


class Service:
    """The worker's state and its one operation. Lives on the event loop."""

    def __init__(
        self,
        *,
        names: tuple[str, ...],
        worker: str,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`names`: model names answered to, the first is the one listed; `worker`: its own name."""
        self.names = names
        self.worker = worker
        self.serving: Serving | None = None
        self.ready_s = 0  # Unix time since which it serves
        self._draining = False
        self._inside = 0
        self._on_change = on_change
        self._mail = Mail()
        # Apart, so that a request without pictures never waits for one with, and nobody is kept
        # from having his turn because it is not known yet whose request it is.
        self._texts = Lane("glm-texts", TEXT_THREADS)
        self._large = Lane("glm-large", 1)
        self._pictures = Lane("glm-pictures", PICTURE_THREADS)

    @property
    def state(self) -> State:
        """What /health says."""
        if self.trouble is not None:
            return "failed"
        if self._draining:
            return "draining"
        return "loading" if self.serving is None else "ok"

    @property
    def trouble(self) -> str | None:
        """Why the engine is over and the process has to end; None: it is not."""
        return None if self.serving is None else self.serving.engine.trouble

    def ready(self, serving: Serving) -> None:
        """The model is up."""
        self.serving = serving
        self.ready_s = int(time.time())
        self._on_change()

    def drain(self) -> None:
        """Take no further requests; those inside are finished."""
        self._draining = True
        if self.serving is not None:
            self.serving.engine.drain()
        self._on_change()

    def changed(self) -> None:
        """Something that reports tell has changed."""
        self._on_change()

    @property
    def idle(self) -> bool:
        """No request is inside, also none whose last bytes are still being written."""
        return self._inside == 0

    def close(self, timeout_s: float) -> None:
        """End the engine; blocks until the step that runs is over."""
        if self.serving is not None:
            self.serving.engine.stop(timeout_s)
        for lane in (self._texts, self._large, self._pictures):
            lane.close()

    @asynccontextmanager
    async def converse(
        self, body: AbstractAsyncContextManager[bytearray]
    ) -> AsyncIterator[Conversation]:
        """Admit a request, then read its body, prepare it off the loop, submit it; leaving the
        block frees its place. `body` is left once the request is prepared.

        Raises: WorkerError (400, 404, 503, or as the body does) before the block is entered.
        """
        serving = self._require_serving()
        tickets: list[Ticket] = [serving.engine.admit()]
        self._inside += 1
        try:
            # bounded by the request's max_tokens
            events: Events = asyncio.Queue()
            self._mail.bind(asyncio.get_running_loop())
            async with body as raw:
                prepared = await self._prepare(serving, raw)
            adapter = serving.adapters.find(prepared.request.model, self.names)
            jobs = [
                Job(
                    prompt=prepared.prompt,
                    sampling=plan.sampling,
                    stop_ids=plan.stop_ids,
                    max_tokens=plan.max_tokens,
                    output=plan.output,
                    emit=partial(self._mail.post, events, choice),
                    tenant=prepared.request.cache_salt,
                    priority=prepared.request.priority,
                    constraint=plan.constraint,
                    adapter=adapter,
                )
                for choice, plan in enumerate(prepared.plans)
            ]
            tickets = serving.engine.submit(tickets[0], *jobs)
            yield Conversation(
                request=prepared.request,
                prompt=prepared.prompt,
                events=events,
                spelled=serving.prompts.tokenizer.spelled,
            )
        finally:
            self._inside -= 1
            for ticket in tickets:
                serving.engine.abort(ticket)
            self._on_change()

    async def _prepare(self, serving: Serving, raw: bytearray) -> Prepared:
        """All before the engine, off the loop. Whose request it is is known once it is read."""
        preparer = serving.preparer
        names = serving.adapters.served(self.names)  # they change on the loop only

        def read() -> Steps[ChatRequest]:
            return preparer.read(raw, names)
            yield

        lane = self._large if len(raw) > LARGE_BYTES else self._texts
        request = await asyncio.wrap_future(lane.submit("", read()))
        lane = self._pictures if request.has_pictures else self._texts
        steps = preparer.steps(request)
        return await asyncio.wrap_future(lane.submit(request.cache_salt, steps))

    def _require_serving(self) -> Serving:
        if self._draining:
            raise worker_draining()
        if self.serving is None:
            raise WorkerUnavailable(
                code="worker_loading", message="This worker is still loading its model."
            )
        return self.serving
