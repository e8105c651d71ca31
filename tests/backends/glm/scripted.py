"""A model that plays a list of token ids, and can be held at every step."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from backends.glm.types import Constraint, Drawn, Prompt, Sampling

QUEUE_LIMIT = 2


class Script:
    """A `Runner`. With `gated`, each step waits for one `allow()`; `steps` counts those taken."""

    def __init__(self, ids: Sequence[int], *, gated: bool = False, fail_at: int = -1) -> None:
        self.ids = ids
        self.fail_at = fail_at
        self.steps = 0
        self.entered = threading.Semaphore(0)
        self._gate = threading.Semaphore(0) if gated else None

    def allow(self, steps: int = 1) -> None:
        assert self._gate is not None
        self._gate.release(steps)

    def open(
        self, prompt: Prompt, sampling: Sampling, constraint: Constraint | None = None
    ) -> ScriptStepper:
        return ScriptStepper(self, len(prompt.ids))

    def step(self, index: int) -> int:
        self.entered.release()
        if self._gate is not None and not self._gate.acquire(timeout=20):
            raise RuntimeError("the test never allowed this step")
        self.steps += 1
        if index == self.fail_at:
            raise RuntimeError("the device caught fire")
        return self.ids[index % len(self.ids)]


class ScriptStepper:
    """One play of the script; it starts again at its end."""

    def __init__(self, script: Script, prompt_tokens: int) -> None:
        self._script = script
        self._index = 0
        self.kv_tokens = prompt_tokens

    def next_token(self) -> Drawn:
        token_id = self._script.step(self._index)
        self._index += 1
        self.kv_tokens += 1
        return Drawn(token_id)
