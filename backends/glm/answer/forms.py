"""What form the caller wants of the answer: free text, JSON, a pattern, or calls of tools. Pure.

`response_format` is OpenAI's spelling, `structured_outputs` vLLM's; both become one `Form`.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from backends.chat import StructuredOutputs
from backends.glm.errors import WorkerError, bad_request
from backends.limits import FORM_BYTES_MAX, TOOLS_MAX

ANSWERS_MAX = 1024  # of a list of allowed ones
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_ANY_OBJECT = b'{"type":"object"}'
_REGEX_META = frozenset(r"\.+*?()|[]{}^$#&-~")  # as in regex_syntax::is_meta_character of Rust


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer's text is held to: exactly one of the two is set.

    `schema`: JSON text of a JSON Schema; `regex`: the whole answer matches it; `param`: the field
    that asked for it.
    """

    param: str
    schema: bytes | None = None
    regex: str | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A function that may be called. `spec` is the caller's whole object, for the prompt;
    `parameters`: the JSON Schema of its arguments; `strict`: calls are held to it."""

    name: str
    spec: dict[str, Any]
    parameters: dict[str, Any]
    strict: bool = False


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """The tools of a request. `forced`: names of which at least one is called, () leaves it to the
    model; `parallel`: more than one call may be made."""

    offered: tuple[Tool, ...] = ()
    forced: tuple[str, ...] = ()
    parallel: bool = True


def read_form(
    response_format: dict[str, Any] | None, structured: StructuredOutputs | None
) -> Form | None:
    """The form of the answer's text; None: any text. Raises: WorkerError 400."""
    form = None if response_format is None else _of_response_format(response_format)
    other = None if structured is None else _of_structured_outputs(structured)
    if form is not None and other is not None:
        raise bad_request(
            "Give either `response_format` or `structured_outputs`, not both.",
            param="structured_outputs",
        )
    return form if other is None else other


def _of_response_format(wanted: dict[str, Any]) -> Form | None:
    match wanted.get("type"):
        case "text":
            return None
        case "json_object":
            return Form(param="response_format", schema=_ANY_OBJECT)
        case "json_schema":
            inner = wanted.get("json_schema")
            schema = inner.get("schema") if isinstance(inner, dict) else None
            if not isinstance(schema, dict):
                raise bad_request(
                    "`response_format.json_schema.schema` must be a JSON Schema object.",
                    param="response_format.json_schema.schema",
                )
            return _of_schema(schema, "response_format.json_schema.schema")
        case "regex":
            return _of_regex(wanted.get("pattern"), "response_format.pattern")
        case _:
            raise bad_request(
                "`response_format.type` must be text, json_object, json_schema or regex.",
                param="response_format.type",
            )


def _of_structured_outputs(wanted: StructuredOutputs) -> Form | None:
    given = [name for name in wanted.__struct_fields__ if getattr(wanted, name) is not None]
    if len(given) != 1:
        raise bad_request(
            "`structured_outputs` takes exactly one of json, regex, choice, json_object.",
            param="structured_outputs",
        )
    param = f"structured_outputs.{given[0]}"
    if wanted.regex is not None:
        return _of_regex(wanted.regex, param)
    if wanted.choice is not None:
        if not 1 <= len(wanted.choice) <= ANSWERS_MAX or not all(wanted.choice):
            raise bad_request(f"`{param}` takes 1 to {ANSWERS_MAX} texts, none empty.", param=param)
        return _of_regex("|".join(_escaped(text) for text in wanted.choice), param)
    if wanted.json_object is not None:
        return Form(param=param, schema=_ANY_OBJECT) if wanted.json_object else None
    schema = wanted.json
    if isinstance(schema, str):
        try:
            schema = msgspec.json.decode(schema)
        except (msgspec.DecodeError, RecursionError):
            schema = None
    if not isinstance(schema, dict):
        raise bad_request(f"`{param}` must be a JSON Schema object.", param=param)
    return _of_schema(schema, param)


def _of_schema(schema: dict[str, Any], param: str) -> Form:
    encoded = encoded_schema(schema, param)
    return Form(param=param, schema=encoded)


def encoded_schema(schema: dict[str, Any], param: str) -> bytes:
    """JSON text of a schema. Raises: WorkerError 400 if it is too long or nested too deep."""
    try:
        encoded = msgspec.json.encode(schema)
    except RecursionError:
        raise bad_request(f"`{param}` is nested too deep.", param=param) from None
    if len(encoded) > FORM_BYTES_MAX:
        raise _too_long(param)
    return encoded


def _of_regex(pattern: object, param: str) -> Form:
    if not isinstance(pattern, str) or not pattern:
        raise bad_request(f"`{param}` must be a regular expression.", param=param)
    if len(pattern.encode(errors="surrogatepass")) > FORM_BYTES_MAX:
        raise _too_long(param)
    return Form(param=param, regex=pattern)


def _escaped(text: str) -> str:
    return "".join("\\" + char if char in _REGEX_META else char for char in text)


def _too_long(param: str) -> WorkerError:
    return bad_request(f"`{param}` must not be longer than {FORM_BYTES_MAX} bytes.", param=param)


def read_tools(
    tools: list[dict[str, Any]] | None,
    tool_choice: str | dict[str, Any] | None,
    parallel: bool | None,
) -> Tools:
    """The tools that count; with `tool_choice` none there are none. Raises: WorkerError 400."""
    if len(tools or ()) > TOOLS_MAX:
        raise bad_request(f"At most {TOOLS_MAX} tools can be offered.", param="tools")
    offered = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools or ()))
    names = tuple(tool.name for tool in offered)
    if len(set(names)) < len(names):
        raise bad_request("Two tools have the same `function.name`.", param="tools")
    forced, single = _forced(tool_choice, names)
    if tool_choice == "none":
        offered = ()
    return Tools(offered=offered, forced=forced, parallel=parallel is not False and not single)


def _tool(tool: dict[str, Any], where: str) -> Tool:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise bad_request("A tool must be of type function, with `function`.", param=where)
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise bad_request(
            "A tool needs `function.name`: 1 to 128 letters, digits, `_`, `-`, `.` or `:`.",
            param=f"{where}.function.name",
        )
    if parameters is not None and not isinstance(parameters, dict):
        raise bad_request(
            "`function.parameters` must be a JSON Schema object.",
            param=f"{where}.function.parameters",
        )
    strict = function.get("strict") is True
    return Tool(name=name, spec=tool, parameters=parameters or {}, strict=strict)


def _forced(
    choice: str | dict[str, Any] | None, names: tuple[str, ...]
) -> tuple[tuple[str, ...], bool]:
    """Names of which one must be called, and whether it is a single call of a single tool."""
    if choice in (None, "auto", "none"):
        return (), False
    if choice == "required":
        if not names:
            raise bad_request("`tool_choice` required needs `tools`.", param="tool_choice")
        return names, False
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(choice, dict) or choice.get("type") != "function" or not name:
        raise bad_request(
            "`tool_choice` must be auto, none, required, or "
            '{"type": "function", "function": {"name": ...}}.',
            param="tool_choice",
        )
    if name not in names:
        raise bad_request(
            "`tool_choice` names a function that is not in `tools`.", param="tool_choice"
        )
    return (name,), True
