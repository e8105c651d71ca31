"""What passes between the layers; apart from them, so that each loads without the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np

_Number = TypeVar("_Number", int, float)

# How the prompt leaves thinking: to the model, opened by the prompt, or closed by the prompt.
Thinking = Literal["model", "open", "closed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pixels:
    """Encoder input. `values`: float32 (patches of all pictures, patch values); `grid`: int64
    (pictures, 3) as frames, rows, columns of patches; `tokens`: prompt tokens of each picture;
    `keys`: a hash of each picture's content."""

    values: np.ndarray[Any, np.dtype[np.float32]]
    grid: np.ndarray[Any, np.dtype[np.int64]]
    tokens: tuple[int, ...]
    keys: tuple[bytes, ...]

    @classmethod
    def joined(cls, parts: Sequence[Pixels]) -> Pixels:
        """Of at least one, in this order."""
        return cls(
            values=np.concatenate([part.values for part in parts]),
            grid=np.concatenate([part.grid for part in parts]),
            tokens=tuple(count for part in parts for count in part.tokens),
            keys=tuple(key for part in parts for key in part.keys),
        )

    @property
    def pictures(self) -> list[Picture]:
        """One by one."""
        ends = self.grid.prod(axis=1).cumsum().tolist()
        return [
            Picture(key=key, values=self.values[start:end], grid=(t, h, w), tokens=tokens)
            for key, start, end, (t, h, w), tokens in zip(
                self.keys, [0, *ends], ends, self.grid.tolist(), self.tokens, strict=False
            )
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One of them: its content's hash, patches, grid as above, and prompt tokens."""

    key: bytes
    values: np.ndarray[Any, np.dtype[np.float32]]
    grid: tuple[int, int, int]
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What the engine prefills. `ids` holds one image token for every merged patch of a picture;
    the last `begun_tokens` of them are the beginning of the answer, which the caller wrote."""

    ids: list[int]
    image_token_id: int
    pixels: Pixels | None
    thinking: Thinking
    begun_tokens: int = 0

    @property
    def image_tokens(self) -> int:
        """Prompt tokens that stand for picture content (without begin and end markers)."""
        return sum(self.pixels.tokens) if self.pixels else 0

    @property
    def token_types(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """`mm_token_type_ids`, shape (len(ids),): 1 at picture tokens, 0 elsewhere."""
        return np.asarray(np.asarray(self.ids) == self.image_token_id, dtype=np.int64)


class Drawn(NamedTuple):
    """A drawn token. `logprob` and `top`, the likeliest (id, log-probability) pairs in falling
    order, are natural logarithms of the model's own distribution; None and () if not asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Constraint(Protocol):
    """What one answer's tokens are held to, e.g. a JSON schema. Used from the engine's thread."""

    def allowed(self) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
        """Shape (V,) of the model's vocabulary: the tokens that may come next, at least one (a stop
        id when nothing else is left). None: any."""
        ...

    def accept(self, token_id: int) -> None:
        """This token came next."""
        ...


class SamplingOverrides(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller set; None leaves the checkpoint's own default in force."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn. top_k 0 or -1: off; temperature 0 or top_k 1: greedy. The defaults are
    OpenAI's; a checkpoint's generation_config.json replaces those it sets. `logit_bias`: (token id,
    amount added to its logit); `logprobs`: how many of the likeliest to name, None: none at all."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None

    def overridden(self, by: SamplingOverrides) -> Sampling:
        """These settings with the caller's own in front."""

        def first(asked: _Number | None, default: _Number) -> _Number:
            return default if asked is None else asked

        return Sampling(
            temperature=first(by.temperature, self.temperature),
            top_p=first(by.top_p, self.top_p),
            top_k=first(by.top_k, self.top_k),
            min_p=first(by.min_p, self.min_p),
            repetition_penalty=first(by.repetition_penalty, self.repetition_penalty),
            frequency_penalty=by.frequency_penalty or 0.0,
            presence_penalty=by.presence_penalty or 0.0,
            seed=by.seed,
            logit_bias=by.logit_bias,
            logprobs=by.logprobs,
        )
