"""From options to a model that serves: load, warm up, start the engine. Imports torch."""

from __future__ import annotations

import base64
import io
import logging
import time
from collections.abc import Callable

import torch
import transformers
from PIL import Image

from backends.glm.engine import Engine
from backends.glm.errors import WorkerError
from backends.glm.files import LoadError
from backends.glm.load import Checkpoint, load_checkpoint
from backends.glm.messages import ImagePart, Message, TextPart
from backends.glm.options import Options
from backends.glm.protocol import ChatRequest
from backends.glm.runner import Runner
from backends.glm.service import Serving
from backends.glm.types import Sampling

WARM_UP_ROUNDS = 2  # the first one pays for lazy initialisation and is not measured
WARM_UP_TOKENS = 8  # enough to measure a step, short enough for 9 billion parameters on a CPU
WARM_UP_SIDE_PX = 112


def bring_up(options: Options, on_change: Callable[[], None]) -> Serving:
    """Load the checkpoint, measure one short generation with a picture, start the engine.

    Blocks for as long as loading takes. `on_change` is handed to the engine.

    Raises: LoadError.
    """
    transformers.logging.disable_progress_bar()
    transformers.logging.disable_default_handler()
    transformers.logging.enable_propagation()
    logging.getLogger("transformers").setLevel(logging.WARNING)
    if options.threads:
        torch.set_num_threads(options.threads)
    checkpoint = load_checkpoint(
        options.model,
        device=options.device,
        dtype=options.dtype,
        max_model_len=options.max_model_len,
    )
    runner = Runner(checkpoint.model, checkpoint.device)
    engine = Engine(
        runner,
        queue_limit=options.queue,
        kv_tokens_total=checkpoint.max_model_len,
        on_change=on_change,
    )
    _warm_up(runner, engine, checkpoint)
    engine.start()
    return Serving(engine=engine, preparer=checkpoint.preparer(options.limits))


def _warm_up(runner: Runner, engine: Engine, checkpoint: Checkpoint) -> None:
    """One real generation with a picture: proves that the checkpoint works, and measures it."""
    try:
        prompt = checkpoint.prompts.build(_warm_up_chat())
        tokens = min(WARM_UP_TOKENS, checkpoint.max_model_len - len(prompt.ids))
        for measured in [False] * (WARM_UP_ROUNDS - 1) + [True]:
            started_s = time.perf_counter()
            generation = runner.open(prompt, Sampling(temperature=0.0))
            generation.next_token()
            first_s = time.perf_counter()
            for _ in range(tokens - 1):
                generation.next_token()
            if measured:
                ended_s = time.perf_counter()
                engine.observe(
                    prompt_tokens=len(prompt.ids),
                    prefill_s=first_s - started_s,
                    completion_tokens=tokens,
                    decode_s=ended_s - first_s,
                )
    except (WorkerError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise LoadError(
            f"The checkpoint loads but cannot answer a picture: {type(error).__name__}: {error}"
        ) from error


def _warm_up_chat() -> ChatRequest:
    buffer = io.BytesIO()
    Image.new("RGB", (WARM_UP_SIDE_PX, WARM_UP_SIDE_PX), "grey").save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    parts = (ImagePart(url), TextPart("What is this?"))
    return ChatRequest(model="", messages=(Message(role="user", parts=parts),))
