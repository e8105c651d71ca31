"""A request's bytes -> its prompt and one plan for each answer that is wanted.

Everything that costs time before the engine: parse, check, render, decode pictures, tokenise,
compile a grammar. Runs in threads of its own, never on the event loop or the engine's thread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from backends.glm.answer.grammar import Grammars
from backends.glm.answer.output import Output, ToolReading
from backends.glm.answer.toolcalls import MARKERS
from backends.glm.checkpoint.tokenizer import THINK_CLOSE, THINK_OPEN, GlmTokenizer
from backends.glm.errors import bad_request, model_not_found
from backends.glm.request.limits import Limits
from backends.glm.request.prompt import PromptBuilder, Steps
from backends.glm.request.protocol import DEFAULT_MAX_TOKENS, ChatRequest, parse_chat
from backends.glm.types import Constraint, Prompt, Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How one answer is made."""

    sampling: Sampling
    stop_ids: frozenset[int]
    max_tokens: int
    output: Output
    constraint: Constraint | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A request that is ready for the engine, without its messages; one plan for each answer."""

    request: ChatRequest
    prompt: Prompt
    plans: tuple[Plan, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparer:
    """What of a loaded checkpoint preparing depends on. `sampling`: the checkpoint's defaults."""

    prompts: PromptBuilder
    grammars: Grammars
    stop_ids: frozenset[int]
    sampling: Sampling
    limits: Limits

    def read(self, raw: bytes | bytearray, names: Sequence[str]) -> ChatRequest:
        """Parse and check. `names`: model names that are answered to; who asks for another is told
        the first.

        Raises: WorkerError 400 or 404.
        """
        request = parse_chat(raw)
        if request.model not in names:
            raise model_not_found(request.model, served=names[0])
        self._check(request)
        return request

    def steps(self, request: ChatRequest) -> Steps[Prepared]:
        """Make its prompt and plans; a step ends after each picture and before each grammar.

        Raises: WorkerError 400.
        """
        prompt = yield from self.prompts.steps(request)
        # A limit that is larger than what is left of the context is still only a limit: many
        # clients send the same one with every request. At the worst the answer ends with `length`.
        room = self.prompts.max_model_len - len(prompt.ids)
        max_tokens = min(request.max_tokens or DEFAULT_MAX_TOKENS, room)
        plans = []
        for index in range(request.n):
            yield
            plans.append(self._plan(request, prompt, max_tokens, index))
        # The messages hold the pictures as text, and nobody asks for them any more.
        slim = msgspec.structs.replace(request, messages=())
        return Prepared(request=slim, prompt=prompt, plans=tuple(plans))

    def _check(self, request: ChatRequest) -> None:
        """What depends on this worker's limits and vocabulary. Raises: WorkerError 400."""
        most = self.limits.choices_max
        if request.n > most:
            raise bad_request(f"`n` may be at most {most} on this worker.", param="n")
        words = self.grammars.width
        for name, ids in (
            ("stop_token_ids", request.stop_ids),
            ("logit_bias", [token_id for token_id, _ in request.sampling.logit_bias]),
        ):
            if any(token_id >= words for token_id in ids):
                raise bad_request(
                    f"`{name}` names a token id that this model does not have; it has {words}.",
                    param=name,
                )
        if request.ignore_eos and (request.form is not None or request.tools.forced):
            raise bad_request(
                "`ignore_eos` cannot be combined with a form of the answer.", param="ignore_eos"
            )

    def _plan(self, request: ChatRequest, prompt: Prompt, max_tokens: int, index: int) -> Plan:
        sampling = self.sampling.overridden(request.sampling)
        if sampling.seed is not None:  # each answer its own, or all of them were the same
            sampling = dataclasses.replace(sampling, seed=sampling.seed + index)
        begun = prompt.ids[len(prompt.ids) - prompt.begun_tokens :]
        constraint = self.grammars.constraint(
            request.form, request.tools, thinking=prompt.thinking, begun=begun
        )
        stop_ids = frozenset(request.stop_ids)
        if not request.ignore_eos:
            stop_ids |= self.stop_ids
        return Plan(
            sampling=sampling,
            stop_ids=stop_ids if constraint is None else stop_ids | self.grammars.end_ids,
            max_tokens=max_tokens,
            output=new_output(self.prompts.tokenizer, prompt, request),
            constraint=constraint,
        )


def new_output(tokenizer: GlmTokenizer, prompt: Prompt, request: ChatRequest) -> Output:
    """The output chain for one answer to this request."""
    tools = None
    if request.tools.offered:
        markers = {tokenizer.control_id(marker): marker for marker in MARKERS}
        tools = ToolReading(
            markers={i: marker for i, marker in markers.items() if i is not None},
            parameters={tool.name: tool.parameters for tool in request.tools.offered},
            single=not request.tools.parallel,
        )
    return Output(
        tokenizer.bytes_of,
        think_ids=(tokenizer.control_id(THINK_OPEN), tokenizer.control_id(THINK_CLOSE)),
        thinking=prompt.thinking,
        stops=request.stop,
        tools=tools,
        continued=request.continues,
        keeps_tokens=request.sampling.logprobs is not None,
    )
