"""From text to typed values, with every error naming its place.

A file, the environment and the command line all become one tree of `Node`s, each of which knows
where it came from; `build` turns the tree into frozen structs. msgspec alone could convert, but
its errors know neither the line nor the key inside a mapping, and a wrong setting is the first
thing that a newcomer meets.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

FILE_BYTES_MAX = 1_048_576  # a settings file is kilobytes; more is a mistake or an attack
DEPTH_MAX = 16  # `&a [*a]` is a valid and endless document
TEXT_SHOWN_MAX = 80  # a wrong value is repeated in the error, but not a whole certificate

S = TypeVar("S", bound=msgspec.Struct)


class ConfigError(Exception):
    """A setting that cannot be used. The text names the place, the key, the value and the cure."""

    def __init__(self, where: str, key: str, problem: str) -> None:
        super().__init__(": ".join(part for part in (where, key, problem) if part))
        self.where = where
        self.key = key
        self.problem = problem


class Invalid(ValueError):
    """Raised by a struct's own checks: `field` is wrong for the reason in `problem`."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class Secret:
    """A text that prints, logs and compares without giving itself away."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one place that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(("Secret", self._text))


class Node(msgspec.Struct):
    """One value and where it was written.

    value:   a scalar, list[Node] or dict[str, Node]
    where:   `yuzui.yaml:12`, `environment variable YUZUI_PORT`, ...
    base:    the folder that relative paths start from
    textual: the source knows only text, so "8080" may become a number
    """

    value: Any
    where: str
    base: Path = Path()
    textual: bool = False

    def put(self, key: str, node: Node) -> None:
        """Set the dotted `key` below this mapping; what stood there before is replaced."""
        here = self
        *parents, last = key.split(".")
        for name in parents:
            below = here.value.get(name)
            if below is None or not isinstance(below.value, dict):
                below = here.value[name] = Node({}, node.where, node.base)
            here = below
        here.value[last] = node


def text_of(file: Path) -> str:
    """What a settings file says; never more of it than the limit is read, for a device has no end.

    Raises FileNotFoundError, and ConfigError for whatever else is not a text to be read.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(str(file), "", f"cannot be read: {error.strerror}") from None
    if len(content) > FILE_BYTES_MAX:
        raise ConfigError(str(file), "", f"longer than {FILE_BYTES_MAX} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}:{line}", "", "is not UTF-8; save the file as UTF-8") from None


def from_yaml(text: str, file: Path) -> Node:
    """The document as a tree. Raises ConfigError with the line for whatever is not plain YAML."""
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return Node({}, str(file), file.parent)
        return _node(loader, root, file, "", 0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise ConfigError(where, "", f"not valid YAML: {error.problem or error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: 2026-99-99 read as a date
        raise ConfigError(str(file), "", f"not valid YAML: {error}") from None


def _node(loader: yaml.SafeLoader, node: yaml.Node, file: Path, key: str, depth: int) -> Node:
    where = f"{file}:{node.start_mark.line + 1}"
    if depth > DEPTH_MAX:
        raise ConfigError(where, key, f"nested deeper than {DEPTH_MAX} levels")
    if isinstance(node, yaml.SequenceNode):
        items = [
            _node(loader, item, file, f"{key}[{i}]", depth + 1) for i, item in enumerate(node.value)
        ]
        return Node(items, where, file.parent)
    if not isinstance(node, yaml.MappingNode):
        return Node(loader.construct_object(node, deep=True), where, file.parent)
    mapping: dict[str, Node] = {}
    for name_node, value_node in node.value:
        name = loader.construct_object(name_node, deep=True)
        line = f"{file}:{name_node.start_mark.line + 1}"
        if not isinstance(name, str):
            # YAML 1.1 reads `no:` as false and `0123:` as 83; guessing back would hide that.
            raise ConfigError(line, key, f"the key {name!r} is not text; put it in quotes")
        if name in mapping:
            raise ConfigError(line, _join(key, name), "given twice")
        child = _node(loader, value_node, file, _join(key, name), depth + 1)
        child.where = line
        mapping[name] = child
    return Node(mapping, where, file.parent)


def build(node: Node, kind: type[S], key: str = "") -> S:
    """A `kind` from a mapping. Raises ConfigError for the first thing that does not fit."""
    if node.value is None:
        node = Node({}, node.where, node.base)  # `limits:` with nothing under it
    if not isinstance(node.value, dict):
        raise _wrong(node, key, "a section with keys of its own")
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name, child in node.value.items():
        if name not in fields:
            raise ConfigError(child.where, _join(key, name), _unknown(name, list(fields)))
    values = {
        field.name: read(node.value[name], hints[field.name], _join(key, name))
        for name, field in fields.items()
        if name in node.value
    }
    missing = [n for n, f in fields.items() if f.required and f.name not in values]
    if missing:
        raise ConfigError(node.where, _join(key, missing[0]), "is required here")
    try:
        return kind(**values)
    except Invalid as error:
        child = node.value.get(error.field, node)
        raise ConfigError(child.where, _join(key, error.field), error.problem) from None


def read(node: Node, hint: Any, key: str) -> Any:
    """The value of `node` as the annotation `hint` wants it. Raises ConfigError."""
    bare = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    origin, args = typing.get_origin(bare), typing.get_args(bare)
    if origin in (typing.Union, types.UnionType):
        if node.value is None and type(None) in args:
            return None
        # besides None a word may stand for a value, such as `auto` for a number
        words = [arg for arg in args if typing.get_origin(arg) is typing.Literal]
        if any(node.value in typing.get_args(word) for word in words):
            return node.value
        (inner,) = (arg for arg in args if arg is not type(None) and arg not in words)
        return read(node, inner, key)
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct):
        return build(node, bare, key)
    if origin is dict:
        if node.value is None:
            return {}
        if not isinstance(node.value, dict):
            raise _wrong(node, key, _allowed(hint))
        return {n: read(child, args[1], _join(key, n)) for n, child in node.value.items()}
    if origin is tuple:
        return tuple(read(n, args[0], f"{key}[{i}]") for i, n in enumerate(_items(node)))
    return _leaf(node, hint, bare, key)


def _items(node: Node) -> list[Node]:
    """A list; a single value counts as a list of one, and text splits at its commas."""
    if isinstance(node.value, list):
        return node.value
    if node.value is None:
        return []
    if node.textual:
        parts = (part.strip() for part in str(node.value).split(","))
        return [Node(part, node.where, node.base, True) for part in parts if part]
    return [node]


def _leaf(node: Node, hint: Any, bare: Any, key: str) -> Any:
    value = node.value
    if bare is Path or bare is Secret:
        if not isinstance(value, str) or not value or "\0" in value:
            raise _wrong(node, key, _allowed(hint), secret=bare is Secret)
        return node.base / Path(value).expanduser() if bare is Path else Secret(value)
    try:
        result = msgspec.convert(value, hint, strict=not node.textual)
    except msgspec.ValidationError:
        raise _wrong(node, key, _allowed(hint), choices=_choices(bare)) from None
    if isinstance(result, float) and not math.isfinite(result):
        raise _wrong(node, key, _allowed(hint))
    return result


def _wrong(
    node: Node,
    key: str,
    allowed: str,
    *,
    secret: bool = False,
    choices: typing.Sequence[str] = (),
) -> ConfigError:
    if isinstance(node.value, dict | list):
        shown = "a section" if isinstance(node.value, dict) else "a list"
    elif secret:
        shown = "this value (not shown)"
    else:
        shown = "nothing" if node.value is None else repr(node.value)
        if len(shown) > TEXT_SHOWN_MAX:
            shown = shown[:TEXT_SHOWN_MAX] + "..."
    near = difflib.get_close_matches(str(node.value), choices, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return ConfigError(node.where, key, f"{shown} is not allowed; expected {allowed}{hint}")


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; known here: {', '.join(sorted(known))}"


def _choices(bare: Any) -> list[str]:
    if typing.get_origin(bare) is typing.Literal:
        return [str(arg) for arg in typing.get_args(bare)]
    if isinstance(bare, type) and issubclass(bare, Enum):
        return [str(member.value) for member in bare]
    return []


_PLAIN = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text (in quotes, if YAML reads it as something else)",
    Path: "a path",
    Secret: "text",
}


def _allowed(hint: Any) -> str:
    """What a person may write for this annotation."""
    bare, *metas = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    if choices := _choices(bare):
        return "one of " + ", ".join(choices)
    if typing.get_origin(bare) is dict:
        return "a section with keys of its own"
    words = [_PLAIN.get(bare, "a value of another kind")]
    for meta in metas:
        bounds = (
            ("from", meta.ge),
            ("above", meta.gt),
            ("to", meta.le),
            ("below", meta.lt),
            ("of at least this length:", meta.min_length),
            ("of at most this length:", meta.max_length),
        )
        words += [f"{word} {bound}" for word, bound in bounds if bound is not None]
        if meta.description:
            words.append(f"({meta.description})")
    return " ".join(words)


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name
