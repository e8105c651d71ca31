"""Forms and tool calls as grammars in llguidance's Lark dialect. Pure text; nothing is compiled.

A tool call is written as GLM's chat template writes it, see `toolcalls`. Arguments come in the
order of the schema, required ones always. Control tokens stand as `<[id]>`, which no text matches,
so a string argument is any text up to `</arg_value>`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.glm.answer.forms import Form, Tool
from backends.glm.answer.schemas import REFERENCES_MAX, is_text, resolved, types_in

# JSON comes on one line, as OpenAI's structured outputs do, with or without a space after `,` and
# `:`. Free white space costs tokens, and a model that has lost the thread writes nothing else:
# glm-4.6v-nano filled 60 tokens with it after the first brace. The separators are patterns.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
_TEXT = "/(?s:.)*/"


@dataclass(frozen=True, kw_only=True, slots=True)
class CallIds:
    """Token ids of the markers of a call."""

    call: tuple[int, int]
    key: tuple[int, int]
    value: tuple[int, int]


def of_form(form: Form) -> str:
    """The rule `form`."""
    if form.schema is not None:
        return f"form: {_json(json.loads(form.schema))}\n"
    return f"form: {_regex(form.regex or '')}\n"


def of_calls(tools: Sequence[Tool], ids: CallIds, *, parallel: bool) -> str:
    """The rule `calls`: one call of one of the tools, or several after one another."""
    more = ' ("\\n" call)*' if parallel else ""
    lines = [f"calls: call{more}", f"call: <[{ids.call[0]}]> inside", *_of_tools(tools, ids)]
    return "\n".join(lines) + "\n"


def of_call_inside(tools: Sequence[Tool], ids: CallIds) -> str:
    """The rule `inside`: what follows `<tool_call>`. Arguments of a tool that is not strict are
    free."""
    return "\n".join(_of_tools(tools, ids, free=True)) + "\n"


def _of_tools(tools: Sequence[Tool], ids: CallIds, *, free: bool = False) -> Iterator[str]:
    names = [f"call_{i}" for i in range(len(tools))]
    yield "inside: " + " | ".join(names)
    for name, tool in zip(names, tools, strict=True):
        if tool.strict or not free:
            yield from _of_tool(name, tool, ids)
        else:
            head = json.dumps(tool.name)
            yield f'{name}: {head} "\\n"? {name}_argument* <[{ids.call[1]}]>'
            yield (
                f'{name}_argument: <[{ids.key[0]}]> /(?s:.)+/ <[{ids.key[1]}]> "\\n"? '
                f'<[{ids.value[0]}]> /(?s:.)*/ <[{ids.value[1]}]> "\\n"?'
            )


def _of_tool(name: str, tool: Tool, ids: CallIds) -> Iterator[str]:
    root = tool.parameters
    parameters = resolved(root["$ref"], root) if isinstance(root.get("$ref"), str) else root
    parameters = parameters if isinstance(parameters, dict) else {}
    properties = parameters.get("properties")
    properties = dict(properties) if isinstance(properties, dict) else {}
    required = parameters.get("required")
    required = (
        [key for key in required if isinstance(key, str)] if isinstance(required, list) else []
    )
    for key in required:
        properties.setdefault(key, True)
    # The definitions that arguments refer to are the root's, whatever part of it describes them.
    whole = {**root, "properties": properties}
    arguments, rules = "", []
    for index, (key, schema) in enumerate(properties.items()):
        rule = f"{name}_{index}"
        value = _value(schema, key, whole)
        if value is None:
            continue
        rules.append(f"{rule}: {value}")
        written = (
            f'<[{ids.key[0]}]> {json.dumps(key)} <[{ids.key[1]}]> "\\n" '
            f'<[{ids.value[0]}]> {rule} <[{ids.value[1]}]> "\\n"'
        )
        arguments += f" {written}" if key in required else f" ({written})?"
    head = json.dumps(tool.name + "\n")
    yield f"{name}: {head}{arguments} <[{ids.call[1]}]>"
    yield from rules


def _value(schema: Any, key: str, root: Mapping[str, Any]) -> str | None:
    """An argument's text. None: the schema allows no value."""
    if schema is False:
        return None
    if is_text(root, key):
        return _text(_flat(schema, root))
    kinds = types_in(schema, root)
    if not kinds or "string" in kinds:
        return _TEXT  # read as JSON where it is JSON of an allowed type, else as a string
    definitions = {word: root[word] for word in ("$defs", "definitions") if word in root}
    return _json({**definitions, **schema})


def _flat(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a chain of references ends in."""
    for _ in range(REFERENCES_MAX):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            break
        schema = resolved(schema["$ref"], root)
    return schema if isinstance(schema, dict) else {}


def _text(schema: Mapping[str, Any]) -> str:
    """A string argument, which GLM writes without quotes."""
    allowed = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(allowed, list):
        return " | ".join(json.dumps(value) for value in allowed if isinstance(value, str))
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        head = "" if pattern.startswith("^") else "(?s:.)*"
        tail = "" if pattern.endswith("$") and not pattern.endswith("\\$") else "(?s:.)*"
        return _regex(f"{head}({pattern}){tail}")
    low, high = schema.get("minLength"), schema.get("maxLength")
    if isinstance(low, int) or isinstance(high, int):
        return f"/(?s:.){{{low or 0},{'' if high is None else high}}}/"
    return _TEXT


def _json(schema: Any) -> str:
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": _LAYOUT}
    return f"%json {json.dumps(schema)}"


def _regex(pattern: str) -> str:
    """A pattern between slashes; a slash in it that is not escaped yet is."""
    written, escaped = "", False
    for char in pattern:
        written += "\\/" if char == "/" and not escaped else "\\n" if char == "\n" else char
        escaped = char == "\\" and not escaped
    return f"/{written}/"
