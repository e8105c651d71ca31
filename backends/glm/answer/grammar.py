"""Answers held to a form: JSON Schema, regex or tool calls -> a mask over the vocabulary.

llguidance parses along with the model and says at every step which tokens may follow. What is
compiled holds nothing of a prompt and is shared by all callers, found by the hash of its grammar,
in a bounded cache. Compiling happens where requests are prepared, never on the engine's thread.

With thinking on, the form begins after `</think>`: the thought must be opened (else a model that
leaves `<think>` out would never come under the form) and cannot end the answer.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from backends.glm.answer import lark
from backends.glm.answer.forms import Form, Tools
from backends.glm.answer.toolcalls import MARKERS
from backends.glm.checkpoint.tokenizer import THINK_CLOSE, THINK_OPEN, GlmTokenizer
from backends.glm.errors import WorkerError, bad_request
from backends.glm.types import Thinking

Mask = np.ndarray[Any, np.dtype[np.bool_]]

GRAMMARS_MAX = 64  # compiled ones that are kept; most services use a handful
# A lexer state takes 1-2 kB, so a grammar at most some 40 MB; a schema of 300 fields needs 5,000.
LEXER_STATES_MAX = 20_000
MESSAGE_CHARS_MAX = 300  # of llguidance's reason, which may quote the grammar

_Phase = Literal["open", "thought", "form"]


class AnswerConstraint:
    """The mask of one answer (`types.Constraint`)."""

    def __init__(
        self,
        matcher: LLMatcher,
        *,
        width: int,
        stop_ids: frozenset[int],
        think_ids: tuple[int, int] | None,
        phase: _Phase,
    ) -> None:
        """`matcher`: this answer's own; `width`: of the logits; `phase`: where the prompt ends."""
        self._matcher = matcher
        self._width = width
        self._stop_ids = sorted(stop_ids)
        self._think_ids = think_ids
        self._phase = phase
        self._bits = allocate_token_bitmask(1, width)

    def allowed(self) -> Mask:
        """Shape (width,): what may come next. When the grammar is complete, or cannot go on for
        whatever reason, these are the stop ids."""
        if self._phase == "form":
            fill_next_token_bitmask(self._matcher, self._bits)
            bits = np.unpackbits(self._bits[0].view(np.uint8), bitorder="little")
            mask = bits[: self._width].view(np.bool_)
            if not mask.any():
                mask[self._stop_ids] = True
            return mask
        mask = np.full(self._width, self._phase == "thought")
        mask[self._stop_ids] = False
        if self._phase == "open" and self._think_ids is not None:
            mask[self._think_ids[0]] = True
        return mask

    @property
    def over(self) -> bool:
        """The form is complete and nothing can follow it."""
        return self._phase == "form" and bool(self._matcher.is_stopped())

    def accept(self, token_id: int) -> None:
        """This token came next."""
        if self._phase == "form":
            self._matcher.consume_token(token_id)
        elif self._think_ids is not None and token_id == self._think_ids[1]:
            self._phase = "form"
        else:
            self._phase = "thought"


class StrictCalls:
    """The mask of an answer that may call tools, some of which are strict (`types.Constraint`):
    free text, and from `<tool_call>` to `</tool_call>` what the tool's schema allows."""

    def __init__(
        self,
        inside: LLMatcher,
        *,
        width: int,
        end_ids: frozenset[int],
        call_id: int,
        think_ids: tuple[int, int] | None,
        thinking: Thinking,
    ) -> None:
        """`inside`: the grammar of one call, copied for each; `call_id`: that of `<tool_call>`."""
        self._inside = inside
        self._width = width
        self._end_ids = end_ids
        self._call_id = call_id
        self._think_ids = think_ids
        self._in_thought = thinking == "open"
        self._call: AnswerConstraint | None = None

    def allowed(self) -> Mask | None:
        """None outside a call."""
        return None if self._call is None else self._call.allowed()

    def accept(self, token_id: int) -> None:
        """This token came next."""
        if self._call is not None:
            self._call.accept(token_id)
            if self._call.over:
                self._call = None
        elif self._think_ids is not None and token_id in self._think_ids:
            self._in_thought = token_id == self._think_ids[0]
        elif token_id == self._call_id and not self._in_thought:
            self._call = AnswerConstraint(
                self._inside.deep_copy(),
                width=self._width,
                stop_ids=self._end_ids,
                think_ids=None,
                phase="form",
            )


class Grammars:
    """Compiles and keeps the grammars of one checkpoint. Thread-safe."""

    def __init__(self, tokenizer: GlmTokenizer, *, width: int, stop_ids: frozenset[int]) -> None:
        """`width`: the model's logits per token, which may be more than the tokenizer has words.
        `end_ids` end an answer that has a form."""
        self._tokenizer = tokenizer
        self.width = width
        # A checkpoint whose own stop ids never come still needs one that ends a form.
        known = frozenset(i for i in stop_ids if i < width)
        self.end_ids = known or frozenset({max(i for i in tokenizer.control_ids if i < width)})
        words = TokenizerWrapper(_Words(tokenizer, width, min(self.end_ids)))
        self._words = LLTokenizer(words, n_vocab=width, eos_token=sorted(self.end_ids))
        self._limits = LLParserLimits(max_lexer_states=LEXER_STATES_MAX, verbose_errors=False)
        self._compiled: OrderedDict[bytes, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        markers = [tokenizer.control_id(marker) for marker in MARKERS]
        self._call_ids = None
        if all(marker is not None for marker in markers):
            ids = [marker for marker in markers if marker is not None]
            self._call_ids = lark.CallIds(
                call=(ids[0], ids[1]), key=(ids[2], ids[3]), value=(ids[4], ids[5])
            )

    def constraint(
        self, form: Form | None, tools: Tools, *, thinking: Thinking, begun: Sequence[int] = ()
    ) -> AnswerConstraint | StrictCalls | None:
        """What an answer is held to, None if to nothing. `begun`: ids of the answer's beginning,
        where the prompt contains it already.

        Raises: WorkerError 400 that names the schema or pattern which cannot be followed.
        """
        rules = self._rules(form, tools)
        opened, closed = (self._tokenizer.control_id(t) for t in (THINK_OPEN, THINK_CLOSE))
        think_ids = None if opened is None or closed is None else (opened, closed)
        if rules is None:
            return self._strict_calls(tools, think_ids, thinking)
        phase: _Phase = "form"
        if think_ids is not None:
            phases: dict[Thinking, _Phase] = {"model": "open", "open": "thought", "closed": "form"}
            phase = phases[thinking]
        # After a thought the model begins a line of its own; before the form that is layout.
        lead = "" if phase == "form" else "/\\n?/ "
        matcher = self._matcher(rules.replace("start: ", "start: " + lead, 1), form, tools)
        if begun and phase == "form" and not matcher.consume_tokens(list(begun)):
            raise bad_request(
                "The last message cannot be the beginning of an answer in the form that is asked "
                "for; JSON is written on one line.",
                param="messages",
            )
        return AnswerConstraint(
            matcher,
            width=self.width,
            stop_ids=self.end_ids,
            think_ids=think_ids,
            phase=phase,
        )

    def _strict_calls(
        self, tools: Tools, think_ids: tuple[int, int] | None, thinking: Thinking
    ) -> StrictCalls | None:
        if self._call_ids is None or not any(tool.strict for tool in tools.offered):
            return None
        rules = "start: inside\n" + lark.of_call_inside(tools.offered, self._call_ids)
        return StrictCalls(
            self._matcher(rules, None, tools),
            width=self.width,
            end_ids=self.end_ids,
            call_id=self._call_ids.call[0],
            think_ids=think_ids,
            thinking=thinking,
        )

    def _rules(self, form: Form | None, tools: Tools) -> str | None:
        """The grammar: a form, calls, or either where the model may choose."""
        if tools.offered and self._call_ids is None:
            raise bad_request(
                "This checkpoint has no markers for tool calls: leave `tools` out.", param="tools"
            )
        called = [t for t in tools.offered if not tools.forced or t.name in tools.forced]
        calls = ""
        if called and self._call_ids is not None and (tools.forced or form is not None):
            calls = lark.of_calls(called, self._call_ids, parallel=tools.parallel)
        if tools.forced:
            return "start: calls\n" + calls
        if form is None:
            return None
        either = "form | calls" if calls else "form"
        return f"start: answer\nanswer: {either}\n" + lark.of_form(form) + calls

    def _matcher(self, rules: str, form: Form | None, tools: Tools) -> LLMatcher:
        key = hashlib.sha256(rules.encode()).digest()
        with self._lock:
            kept = self._compiled.get(key)
            if kept is not None:
                self._compiled.move_to_end(key)
                return kept.deep_copy()
        made = self._compile(rules)
        if made.is_error():
            raise self._reason(made.get_error(), form, tools)
        with self._lock:
            self._compiled[key] = made
            while len(self._compiled) > GRAMMARS_MAX:
                self._compiled.popitem(last=False)
        return made.deep_copy()

    def _compile(self, rules: str) -> LLMatcher:
        grammar = LLMatcher.grammar_from_lark(rules)
        return LLMatcher(self._words, grammar, log_level=0, limits=self._limits)

    def _reason(self, text: str, form: Form | None, tools: Tools) -> WorkerError:
        """Which of the parts cannot be compiled, found by compiling each alone."""
        param = "tools"
        if form is not None and not tools.forced:
            alone = self._compile("start: form\n" + lark.of_form(form))
            if alone.is_error():
                text, param = alone.get_error(), form.param
        for index, tool in enumerate(tools.offered):
            if param != "tools" or self._call_ids is None:
                break
            rules = lark.of_calls([tool], self._call_ids, parallel=False)
            alone = self._compile("start: calls\n" + rules)
            if alone.is_error():
                text, param = alone.get_error(), f"tools[{index}].function.parameters"
        reason = " ".join(text.split())[:MESSAGE_CHARS_MAX]
        return bad_request(
            f"`{param}` cannot be followed by this worker: {reason}",
            param=param,
            code="unsupported_schema",
        )


class _Words:
    """The vocabulary as llguidance wants it: bytes by id, control tokens behind 0xFF, so that no
    text ever matches one."""

    bos_token_id = None

    def __init__(self, tokenizer: GlmTokenizer, width: int, eos_id: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_id
        controls = tokenizer.control_ids
        self.tokens = [
            text if (text := tokenizer.bytes_of(i)) and i not in controls else b"\xff<|%d|>" % i
            for i in range(width)
        ]
        self.special_token_ids = [i for i, text in enumerate(self.tokens) if text[:1] == b"\xff"]

    def __call__(self, text: bytes | str) -> list[int]:
        whole = text.decode(errors="replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode_plain(whole)
