"""What the worker does with a chat request, apart from HTTP: the bridge to the engine's thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from backends.glm.engine import Engine, Event, Job
from backends.glm.errors import WorkerError, WorkerUnavailable
from backends.glm.output import Output
from backends.glm.prompt import PromptBuilder
from backends.glm.protocol import DEFAULT_MAX_TOKENS, ChatRequest, parse_chat
from backends.glm.tokenizer import THINK_CLOSE, THINK_OPEN
from backends.glm.types import Prompt, Sampling

# Decoding pictures and tokenising release the interpreter lock for most of their time; more than
# two at once would take cores from the model.
PREPARE_THREADS = 2

State = Literal["loading", "ok", "draining"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """A model that is up: everything a chat request needs. `engine` runs already."""

    engine: Engine
    prompts: PromptBuilder
    stop_ids: frozenset[int]
    sampling: Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversation:
    """One admitted and prepared request; its events arrive in order, a Finished or Failed last."""

    request: ChatRequest
    prompt: Prompt
    events: asyncio.Queue[Event]


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
        self._draining = False
        self._inside = 0
        self._on_change = on_change
        self._prepare_pool = ThreadPoolExecutor(PREPARE_THREADS, thread_name_prefix="glm-prepare")

    @property
    def state(self) -> State:
        """What /health says."""
        if self._draining:
            return "draining"
        return "loading" if self.serving is None else "ok"

    def ready(self, serving: Serving) -> None:
        """The model is up."""
        self.serving = serving
        self._on_change()

    def drain(self) -> None:
        """Take no further requests; those inside are finished."""
        self._draining = True
        if self.serving is not None:
            self.serving.engine.drain()
        self._on_change()

    @property
    def idle(self) -> bool:
        """No request is inside, also none whose last bytes are still being written."""
        return self._inside == 0

    def close(self, timeout_s: float) -> None:
        """End the engine; blocks until the step that runs is over."""
        if self.serving is not None:
            self.serving.engine.stop(timeout_s)
        self._prepare_pool.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def converse(self, raw: bytes) -> AsyncIterator[Conversation]:
        """Admit a request, prepare it off the loop, submit it; leaving the block frees its place.

        Raises: WorkerError (400, 404, 503) before the block is entered.
        """
        serving = self._require_serving()
        ticket = serving.engine.admit()
        self._inside += 1
        try:
            loop = asyncio.get_running_loop()
            events: asyncio.Queue[Event] = asyncio.Queue()  # bounded by the request's max_tokens

            def emit(event: Event) -> None:
                try:
                    loop.call_soon_threadsafe(events.put_nowait, event)
                except RuntimeError:  # the loop is closed: the process ends, nobody listens
                    return

            request, prompt, max_tokens = await loop.run_in_executor(
                self._prepare_pool, self._prepare, serving, raw
            )
            job = Job(
                prompt=prompt,
                sampling=serving.sampling.overridden(request.sampling),
                stop_ids=serving.stop_ids,
                max_tokens=max_tokens,
                output=new_output(serving, prompt, stops=request.stop),
                emit=emit,
            )
            serving.engine.submit(ticket, job)
            yield Conversation(request=request, prompt=prompt, events=events)
        finally:
            self._inside -= 1
            serving.engine.abort(ticket)
            self._on_change()

    def _require_serving(self) -> Serving:
        if self._draining:
            raise WorkerUnavailable(code="worker_draining", message="This worker is shutting down.")
        if self.serving is None:
            raise WorkerUnavailable(
                code="worker_loading", message="This worker is still loading its model."
            )
        return self.serving

    def _prepare(self, serving: Serving, raw: bytes) -> tuple[ChatRequest, Prompt, int]:
        """All before the engine: parse, check, render, decode, tokenise. Runs in a thread."""
        request = parse_chat(raw)
        if request.model not in self.names:
            raise WorkerError(
                f"The model `{request.model[:80]}` does not exist here; this worker serves "
                f"`{self.names[0]}`.",
                status=404,
                kind="invalid_request_error",
                code="model_not_found",
                param="model",
            )
        prompt = serving.prompts.build(request)
        # A limit that is larger than what is left of the context is still only a limit: many
        # clients send the same one with every request. At the worst the answer ends with `length`.
        room = serving.prompts.max_model_len - len(prompt.ids)
        return request, prompt, min(request.max_tokens or DEFAULT_MAX_TOKENS, room)


def new_output(serving: Serving, prompt: Prompt, *, stops: tuple[str, ...]) -> Output:
    """The output chain for one generation on this prompt."""
    tokenizer = serving.prompts.tokenizer
    return Output(
        tokenizer.bytes_of,
        think_ids=(tokenizer.control_id(THINK_OPEN), tokenizer.control_id(THINK_CLOSE)),
        thinking=prompt.thinking,
        stops=stops,
    )
