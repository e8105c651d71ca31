"""From options to a model that serves: load, warm up, start the engine. Imports torch."""

from __future__ import annotations

import base64
import io
import logging
import queue
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog
import torch
import transformers
from PIL import Image

from backends.glm import heap
from backends.glm.answer.output import Output
from backends.glm.api.service import Serving
from backends.glm.checkpoint.capacity import Capacity, beside_tokens, capacity, useful_tokens
from backends.glm.checkpoint.files import LoadError
from backends.glm.checkpoint.memory import host_free_bytes
from backends.glm.engine.adapters import Adapters, load_named
from backends.glm.engine.engine import Engine
from backends.glm.engine.events import Event, Failed, Finished, Job
from backends.glm.engine.prefix import BLOCK
from backends.glm.engine.progress import stall_limit_s
from backends.glm.engine.remembered import Remembered, load_remembered
from backends.glm.engine.scheduler import CacheRows, Scheduler
from backends.glm.errors import WorkerError
from backends.glm.model.linears import MatrixMaker
from backends.glm.model.load import Checkpoint, load_checkpoint
from backends.glm.model.runner import Runner, kv_token_bytes
from backends.glm.options import Options
from backends.glm.preflight import ensure_fits
from backends.glm.request.messages import ImagePart, Message, TextPart
from backends.glm.request.protocol import ChatRequest
from backends.glm.types import Sampling

_log = structlog.get_logger("glm.startup")

ONE_THREAD_PARAMETERS = 50_000_000
WARM_UP_TOKENS = 8  # enough to measure a step, short enough for 9 billion parameters on a CPU
WARM_UP_SIDE_PX = 112
# Nothing is measured before it: a 9B whose weights are read from a slow disk takes minutes.
WARM_UP_STALL_S = 1800.0
WARM_UP_TEXT = "one two three " * 30  # some hundred tokens: enough to measure reading


@dataclass(frozen=True, slots=True)
class Assembled:
    """A model in memory, and its engine, which does not run yet."""

    options: Options
    checkpoint: Checkpoint
    engine: Engine
    adapters: Adapters
    remembered: Remembered | None
    step_tokens: int

    def start(self, take_part: Callable[[], None] = lambda: None) -> Serving:
        """Start the engine and measure a short generation with a picture.

        The engine's threads have the priority of the one that calls this. `take_part` is called
        when all is done that need not be measured: from then on this competes with those that
        serve. The generation before it pays for lazy initialisation.

        Raises: LoadError.
        """
        self.engine.start()
        _warm_up(self.engine, self.checkpoint, tenant="warm-up")
        heap.settle()
        take_part()
        self.engine.forget_speeds()
        _warm_up(self.engine, self.checkpoint, tenant="measured")
        speed = self.engine.load().prefill_tokens_per_s
        if not self.options.capacity.step_tokens:
            self.engine.read_beside(beside_tokens(self.step_tokens, speed))
        preparer = self.checkpoint.preparer(self.options.limits)
        limits = self.checkpoint.prompts.vision.limits
        stall_s = self.options.stall_s or stall_limit_s(
            step_tokens=self.step_tokens,
            picture_tokens=limits.max_pixels // limits.factor**2,
            prefill_tokens_per_s=speed,
        )
        return Serving(
            engine=self.engine,
            preparer=preparer,
            adapters=self.adapters,
            remembered=self.remembered,
            stall_s=stall_s,
        )


def set_threads(options: Options) -> None:
    """As many as were asked for. Torch makes some of them now: they outlive loading, so they have
    the priority of the one that calls this."""
    if options.threads:
        torch.set_num_threads(options.threads)


def assemble(options: Options, on_change: Callable[[], None]) -> Assembled:
    """Load the checkpoint and lay it out for serving; no thread that outlives this is started.

    Blocks for as long as loading takes. `on_change` is handed to the engine.

    Raises: LoadError.
    """
    transformers.logging.disable_progress_bar()
    transformers.logging.disable_default_handler()
    transformers.logging.enable_propagation()
    logging.getLogger("transformers").setLevel(logging.WARNING)
    ensure_fits(options)
    checkpoint = load_checkpoint(
        options.model,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        max_model_len=options.max_model_len,
    )
    if not options.threads and _is_small(checkpoint):
        torch.set_num_threads(1)
    room = _room(options, checkpoint)
    longest = min(checkpoint.max_model_len, room.kv_tokens)
    checkpoint = replace(
        checkpoint,
        max_model_len=longest,
        prompts=replace(checkpoint.prompts, max_model_len=longest),
    )
    kept_blocks = room.kept_tokens // BLOCK
    runner = Runner(
        checkpoint.model,
        checkpoint.device,
        rows=room.rows,
        row_tokens=room.row_tokens,
        make=MatrixMaker(consume=True),
        kept_blocks=kept_blocks,
        kept_bytes=room.kept_bytes,
    )
    adapters = Adapters(runner.read_adapter, options.adapter_dir)
    load_named(adapters, options.adapters)
    remembered = None
    if options.adapter_dir is not None:
        remembered = Remembered(options.adapter_dir, options.worker)
        load_remembered(adapters, remembered, _not_loaded_again)
    engine = Engine(
        runner,
        scheduler=Scheduler(
            rows=CacheRows(room.rows, room.row_tokens),
            slots=room.slots,
            step_tokens=room.step_tokens,
            beside_tokens=room.step_tokens,
        ),
        queue_limit=options.queue,
        kept_blocks=kept_blocks,
        on_change=on_change,
    )
    return Assembled(options, checkpoint, engine, adapters, remembered, room.step_tokens)


def _not_loaded_again(name: str, why: str) -> None:
    _log.warning("adapter_not_loaded_again", adapter=name, why=why)


def _is_small(checkpoint: Checkpoint) -> bool:
    """Products of a small model are over before a second thread has woken, and the cores have
    pictures to decode and replies to write."""
    parameters: int = sum(p.numel() for p in checkpoint.model.parameters())
    return parameters < ONE_THREAD_PARAMETERS


def _room(options: Options, checkpoint: Checkpoint) -> Capacity:
    """Measured once the weights are there: what the cache may have of what is left."""
    cuda = checkpoint.device.type == "cuda"
    free_bytes = torch.cuda.mem_get_info(checkpoint.device)[0] if cuda else host_free_bytes()
    return capacity(
        options.capacity,
        cuda=cuda,
        free_bytes=free_bytes,
        token_bytes=kv_token_bytes(checkpoint.model),
        max_model_len=checkpoint.max_model_len,
        least_tokens=useful_tokens(
            checkpoint.max_model_len, asked_for=options.max_model_len is not None
        ),
    )


def _warm_up(engine: Engine, checkpoint: Checkpoint, *, tenant: str) -> None:
    """A real generation with a picture: proves that the checkpoint works, and is measured.

    `tenant`: another one each time, or the second would be remembered and not measured.
    """
    try:
        prompt = checkpoint.prompts.build(_warm_up_chat(checkpoint.max_model_len))
    except WorkerError as error:
        raise _cannot_answer(error) from error
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    job = Job(
        prompt=prompt,
        sampling=Sampling(temperature=0.0),
        stop_ids=frozenset(),
        max_tokens=min(WARM_UP_TOKENS, checkpoint.prompts.max_model_len - len(prompt.ids)),
        output=Output(checkpoint.tokenizer.bytes_of, think_ids=(None, None), thinking="closed"),
        emit=events.put,
        tenant=tenant,
    )
    engine.submit(engine.admit(), job)
    try:
        while not isinstance(event := events.get(timeout=WARM_UP_STALL_S), Finished | Failed):
            pass
    except queue.Empty:
        raise _cannot_answer(f"no word came for {WARM_UP_STALL_S:.0f} s") from None
    if isinstance(event, Failed):
        raise _cannot_answer(event.detail)


def _cannot_answer(why: object) -> LoadError:
    return LoadError(f"The checkpoint loads but cannot answer a picture: {why}")


def _warm_up_chat(max_model_len: int) -> ChatRequest:
    buffer = io.BytesIO()
    Image.new("RGB", (WARM_UP_SIDE_PX, WARM_UP_SIDE_PX), "grey").save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    parts = (ImagePart(url), TextPart("What is this? " + WARM_UP_TEXT[: max_model_len // 8]))
    return ChatRequest(model="", messages=(Message(role="user", parts=parts),))
