"""Text <-> ids for GLM's byte-level BPE, with one hard rule: only the template writes control ids.

The stock tokenizer turns the literal `<|assistant|>` into its control id wherever it stands, also
in a user's message, and with it a user could speak for the assistant. Here control literals are
matched only where the chat template wrote them; every other character goes through a second
encoder that was built without those literals and so cannot produce their ids at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

# Characters that stand in for hidden ones while a template is rendered; private use, never text.
_STAND_INS = range(0x100000, 0x10FFFE)

# Control tokens that are part of an answer. All others that a model may emit are not text.
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_ANSWER_MARKUP = frozenset(
    {
        "<tool_call>",
        "</tool_call>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
    }
)
_BOX_MARKERS = frozenset({"<|begin_of_box|>", "<|end_of_box|>"})


class UnsupportedTokenizer(Exception):
    """The checkpoint's tokenizer is not a byte-level BPE, which this worker relies on."""


class Guard:
    """Hides, in one request's strings, every character that could help to spell a control token.

    The strings are hidden before the template is rendered and revealed after the template's own
    control tokens have been cut out. So a literal cannot come from one string, nor from two
    strings that end up side by side. Stand-ins are characters that this request does not use.
    """

    def __init__(self, hidden: Iterable[str], strings: Iterable[str]) -> None:
        """Raises: ValueError if the request uses the whole private plane (no honest one does)."""
        used = set().union(*strings) if strings else set()
        free = (chr(code) for code in _STAND_INS if chr(code) not in used)
        try:
            table = {char: next(free) for char in sorted(hidden)}
        except StopIteration:
            raise ValueError("the text uses every private-use character") from None
        mark = next(free, None)
        if mark is None:
            raise ValueError("the text uses every private-use character")
        self.mark = mark  # a character that stands for a place in the prompt
        self._hide = str.maketrans(table)
        self._reveal = str.maketrans({stand_in: char for char, stand_in in table.items()})

    def hide(self, value: Any) -> Any:
        """A copy of a JSON-like value with every string in it (keys as well) made harmless."""
        if isinstance(value, str):
            return value.translate(self._hide)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(item) for item in value]
        return value

    def reveal(self, text: str) -> str:
        """The original characters again."""
        return text.translate(self._reveal)


def strings_of(value: Any) -> list[str]:
    """Every string inside a JSON-like value, keys included: what a `Guard` has to know."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for item in pair for text in strings_of(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in strings_of(item)]
    return []


class GlmTokenizer:
    """Wraps the checkpoint's fast tokenizer; safe to use from several threads at once."""

    def __init__(self, fast: Any) -> None:
        """`fast`: a transformers tokenizer with a `tokenizers` backend.

        Raises: UnsupportedTokenizer.
        """
        self._fast = fast
        spec = json.loads(fast.backend_tokenizer.to_str())
        if spec["model"].get("type") != "BPE" or _decoder_type(spec) != "ByteLevel":
            raise UnsupportedTokenizer("the tokenizer is not a byte-level BPE")
        added = {int(i): token for i, token in fast.added_tokens_decoder.items()}
        # Whitespace tokens are ordinary text to a template, whatever list they are in.
        self._controls = {t.content: i for i, t in added.items() if not t.content.isspace()}
        self._literals = {i: literal.encode() for literal, i in self._controls.items()}
        self._control_pattern = _pattern(added.values())
        self.guarded = frozenset(
            char for text in self._controls for char in re.sub(r"\w", "", text) + text[0]
        )
        self._plain = _without(spec, frozenset(self._controls))
        self._bytes = _byte_table(fast, spec, added)

    def control_id(self, literal: str) -> int | None:
        """The id of a control literal such as `<think>`, None if this tokenizer has none."""
        return self._controls.get(literal)

    @property
    def control_ids(self) -> frozenset[int]:
        """All ids that only the template may write."""
        return frozenset(self._controls.values())

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[Any] | None,
        variables: dict[str, Any],
        add_generation_prompt: bool = True,
    ) -> str:
        """The chat template's text, ending in the generation prompt unless that is left out.

        Raises: whatever the template raises (jinja2.TemplateError and plain Python errors).
        """
        text: str = self._fast.apply_chat_template(
            messages,
            tools=tools,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        return text

    def encode(self, rendered: str, reveal: Callable[[str], str] = str) -> list[int]:
        """Ids of a rendered prompt: control literals as control ids, all between as plain text.

        Equal to the stock tokenizer's ids when no string of the request spells a control literal,
        because the stock one cuts out control literals first and encodes what lies between, too.
        """
        ids: list[int] = []
        end = 0
        for match in self._control_pattern.finditer(rendered):
            ids += self.encode_plain(reveal(rendered[end : match.start()]))
            ids.append(self._controls[match.group(match.lastindex or 0)])
            end = match.end()
        return ids + self.encode_plain(reveal(rendered[end:]))

    def encode_plain(self, text: str) -> list[int]:
        """Ids of text that holds no control token, whatever it spells."""
        if not text:
            return []
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def bytes_of(self, token_id: int) -> bytes:
        """The UTF-8 bytes a token adds to the text; b"" for what is not text (or unknown ids)."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def spelled(self, token_id: int) -> bytes:
        """A token's bytes as log-probabilities name it: a control token by its literal."""
        return self._literals.get(token_id) or self.bytes_of(token_id)


def _decoder_type(spec: Mapping[str, Any]) -> str | None:
    decoder = spec.get("decoder") or {}
    kind = decoder.get("type")
    return kind if isinstance(kind, str) else None


def _pattern(tokens: Iterable[Any]) -> re.Pattern[str]:
    """Leftmost-longest match of the control literals, as the stock tokenizer matches them.

    Group 1.. holds the literal; spaces that a token with `lstrip`/`rstrip` swallows lie outside it.
    """
    branches = [
        ("\\s*" if token.lstrip else "")
        + f"({re.escape(token.content)})"
        + ("\\s*" if token.rstrip else "")
        for token in sorted(tokens, key=lambda token: len(token.content), reverse=True)
        if not token.content.isspace()
    ]
    return re.compile("|".join(branches) or "(?!)")


def _without(spec: Mapping[str, Any], literals: frozenset[str]) -> Tokenizer:
    """The same tokenizer without the control literals: neither as added tokens nor as words."""
    model = dict(spec["model"])
    model["vocab"] = {text: i for text, i in model["vocab"].items() if text not in literals}
    plain = {
        **spec,
        "model": model,
        "added_tokens": [t for t in spec["added_tokens"] if t["content"] not in literals],
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    return Tokenizer.from_str(json.dumps(plain))


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-in of each byte in a byte-level BPE (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return table


def _byte_table(fast: Any, spec: Mapping[str, Any], added: Mapping[int, Any]) -> list[bytes]:
    alphabet = _byte_alphabet()
    vocab: dict[str, int] = spec["model"]["vocab"]
    table = [b""] * (max([*vocab.values(), *added]) + 1)
    for text, token_id in vocab.items():
        if token_id not in added:
            table[token_id] = bytes(alphabet[char] for char in text)
    for token_id, token in added.items():
        visible = not token.special or token.content in _ANSWER_MARKUP
        if visible and token.content not in _BOX_MARKERS | {THINK_OPEN, THINK_CLOSE}:
            table[token_id] = token.content.encode()
    return table
