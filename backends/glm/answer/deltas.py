"""The pieces of an answer, as they pass from the tokens to the reply."""

from __future__ import annotations

from typing import Literal, NamedTuple

from backends.glm.types import Drawn

# "call": the name of a tool, which begins a call; "arguments": more of its JSON text.
Channel = Literal["reasoning", "content", "call", "arguments"]


class Delta(NamedTuple):
    """A piece of text for one channel of the answer.

    `call`: which of the answer's tool calls it belongs to; `tokens`: the tokens of the answer that
    became text with it, kept only where log-probabilities were asked for.
    """

    channel: Channel
    text: str
    call: int = 0
    tokens: tuple[Drawn, ...] = ()
