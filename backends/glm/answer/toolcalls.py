"""GLM's tool calls -> OpenAI's, as they form: text and markers in, deltas out. Sans IO.

    <tool_call>get_weather
    <arg_key>city</arg_key>
    <arg_value>Beijing</arg_value>
    </tool_call>

The markers are control tokens and arrive as such; what the model spells out in ordinary letters is
text. Argument values are untyped text: the tool's JSON Schema says whether `5` is a string or a
number. A string is passed on while it is being written; any other value when it is whole, because
only then it is known to be JSON. Several calls may follow each other, also after text; a tool
without arguments may have neither line breaks nor argument markers.

A call that the model ends without `</tool_call>` is closed if it was between two arguments. One cut
in the middle of a value is left open, so that its arguments do not parse: nobody shall act on half
an order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from backends.glm.answer.deltas import Delta
from backends.glm.answer.schemas import is_text, types_of

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
KEY_OPEN, KEY_CLOSE = "<arg_key>", "</arg_key>"
VALUE_OPEN, VALUE_CLOSE = "<arg_value>", "</arg_value>"
MARKERS = (CALL_OPEN, CALL_CLOSE, KEY_OPEN, KEY_CLOSE, VALUE_OPEN, VALUE_CLOSE)

_State = Literal["content", "name", "between", "key", "after_key", "value"]
# What models write when they think in Python instead of JSON.
_PYTHON = {"True": "true", "False": "false", "None": "null"}


class ToolCallParser:
    """One answer's calls. `push` text, `mark` markers, `finish` at the end."""

    def __init__(self, parameters: Mapping[str, Mapping[str, Any]]) -> None:
        """`parameters`: each offered tool's JSON Schema of its arguments, by the tool's name."""
        self._parameters = parameters
        self._state: _State = "content"
        self._space = ""  # trailing white space of the content: layout, if a call follows
        self._text = ""  # of the name, the key or the value that is being read
        self._schema: Mapping[str, Any] = {}
        self._key = ""
        self._keys: set[str] = set()
        self._streams = False  # the value is a string and is passed on as it comes
        self.calls = 0  # calls whose name is known
        self.closed = 0  # calls that are complete

    @property
    def in_content(self) -> bool:
        """The text that comes next is text of the answer."""
        return self._state == "content"

    @property
    def held(self) -> int:
        """Characters of the content that are held back."""
        return len(self._space)

    def push(self, text: str) -> list[Delta]:
        """Ordinary text of the answer."""
        if not text:
            return []
        if self._state == "content":
            text = self._space + text
            whole = text.rstrip()
            self._space = text[len(whole) :]
            return [Delta("content", whole)] if whole else []
        if self._state == "value" and self._streams:
            return [self._arguments(_escaped(text))]
        if self._state in ("name", "key", "value"):
            self._text += text
            if self._state == "name" and "\n" in self._text.lstrip():
                return self._named()
        return []  # between the markers stands only layout

    def mark(self, marker: str) -> list[Delta]:
        """One of MARKERS. Where it has no meaning it is text, as in an answer about markup."""
        state = self._state
        if state == "content":
            if marker != CALL_OPEN:
                return self.push(marker)
            self._space, self._text, self._state = "", "", "name"
            return []
        if marker == CALL_CLOSE:
            return self._close()
        if state == "name" and marker == KEY_OPEN:
            deltas = self._named()
            self._state, self._text = "key", ""
            return deltas
        if state == "between" and marker == KEY_OPEN:
            self._state, self._text = "key", ""
        elif state == "key" and marker in (KEY_CLOSE, VALUE_OPEN):
            self._key, self._text, self._state = self._text.strip(), "", "after_key"
            return self._begin_value() if marker == VALUE_OPEN else []
        elif state == "after_key" and marker == VALUE_OPEN:
            return self._begin_value()
        elif state == "value":
            return self._end_value() if marker == VALUE_CLOSE else self.push(marker)
        return []

    def finish(self, *, cut: bool) -> list[Delta]:
        """No more will come. `cut`: the length limit ended it, not the model."""
        if self._state == "content":
            text, self._space = self._space, ""
            return [Delta("content", text)] if text else []
        if cut or self._state in ("key", "after_key", "value"):
            return []
        return self._close()

    def _named(self) -> list[Delta]:
        name, self._text, self._state = self._text.strip(), "", "between"
        self._schema = self._parameters.get(name, {})
        self._keys = set()
        self.calls += 1
        return [Delta("call", name, self.calls - 1), self._arguments("{")]

    def _begin_value(self) -> list[Delta]:
        self._state, self._text = "value", ""
        self._streams = False
        if self._key in self._keys:
            return []  # said twice: the first value counts, it is out already
        if not is_text(self._schema, self._key):
            return []
        self._streams = True
        return [self._arguments(self._label() + '"')]

    def _end_value(self) -> list[Delta]:
        self._state = "between"
        if self._streams:
            self._streams = False
            return [self._arguments('"')]
        if self._key in self._keys:
            return []
        value = _json_of(self._text, types_of(self._schema, self._key))
        return [self._arguments(self._label() + value)]

    def _label(self) -> str:
        comma = ", " if self._keys else ""
        self._keys.add(self._key)
        return f'{comma}"{_escaped(self._key)}": '

    def _close(self) -> list[Delta]:
        deltas = self._named() if self._state == "name" else []
        if self._state == "value":
            deltas += self._end_value()
        self._state = "content"
        self.closed += 1
        return [*deltas, self._arguments("}")]

    def _arguments(self, text: str) -> Delta:
        return Delta("arguments", text, self.calls - 1)


def _escaped(text: str) -> str:
    """The inside of a JSON string."""
    return msgspec.json.encode(text).decode()[1:-1]


def _json_of(text: str, types: Sequence[str]) -> str:
    """JSON text of a value that is not simply a string. `types`: what its schema allows, () for
    anything. What is not JSON, or JSON of a type that is not allowed, is a string."""
    found = text.strip()
    found = _PYTHON.get(found, found)
    try:
        value = msgspec.json.decode(found)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return msgspec.json.encode(text).decode()
    if types and not _allowed(value, types) and "string" in types:
        return msgspec.json.encode(text).decode()
    return found


def _allowed(value: object, types: Sequence[str]) -> bool:
    match value:
        case None:
            return "null" in types
        case bool():
            return "boolean" in types
        case int():
            return "integer" in types or "number" in types
        case float():
            return "number" in types
        case str():
            return "string" in types
        case list():
            return "array" in types
        case _:
            return "object" in types
