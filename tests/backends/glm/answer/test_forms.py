from __future__ import annotations

import json
from typing import Any

import pytest

from backends.chat import StructuredOutputs
from backends.glm.answer.forms import (
    Form,
    Tools,
    encoded_schema,
    read_form,
    read_tools,
)
from backends.glm.errors import WorkerError
from backends.limits import FORM_BYTES_MAX, TOOLS_MAX

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def schema_of(form: Form | None) -> Any:
    assert form is not None
    assert form.schema is not None
    return json.loads(form.schema)


def test_response_format() -> None:
    assert read_form(None, None) is None
    assert read_form({"type": "text"}, None) is None
    assert schema_of(read_form({"type": "json_object"}, None)) == {"type": "object"}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}
    form = read_form(wanted, None)
    assert schema_of(form) == SCHEMA
    assert form is not None
    assert form.param == "response_format.json_schema.schema"
    form = read_form({"type": "regex", "pattern": "a+"}, None)
    assert form == Form(param="response_format.pattern", regex="a+")


def test_structured_outputs_of_vllm() -> None:
    assert schema_of(read_form(None, StructuredOutputs(json=SCHEMA))) == SCHEMA
    assert schema_of(read_form(None, StructuredOutputs(json=json.dumps(SCHEMA)))) == SCHEMA
    assert schema_of(read_form(None, StructuredOutputs(json_object=True))) == {"type": "object"}
    assert read_form(None, StructuredOutputs(json_object=False)) is None
    form = read_form(None, StructuredOutputs(choice=["a.b", "(c)"]))
    assert form == Form(param="structured_outputs.choice", regex=r"a\.b|\(c\)")
    assert read_form(None, StructuredOutputs(regex="a")) == Form(
        param="structured_outputs.regex", regex="a"
    )


@pytest.mark.parametrize(
    ("response_format", "structured", "param"),
    [
        ({}, None, "response_format.type"),
        ({"type": "grammar"}, None, "response_format.type"),
        ({"type": "json_schema"}, None, "response_format.json_schema.schema"),
        ({"type": "json_schema", "json_schema": {"schema": True}}, None,
         "response_format.json_schema.schema"),
        ({"type": "regex"}, None, "response_format.pattern"),
        (None, StructuredOutputs(), "structured_outputs"),
        (None, StructuredOutputs(regex="a", choice=["b"]), "structured_outputs"),
        (None, StructuredOutputs(choice=[]), "structured_outputs.choice"),
        (None, StructuredOutputs(choice=["a", ""]), "structured_outputs.choice"),
        (None, StructuredOutputs(json="["), "structured_outputs.json"),
        (None, StructuredOutputs(json="[" * 100_000), "structured_outputs.json"),
        (None, StructuredOutputs(regex="a" * (FORM_BYTES_MAX + 1)), "structured_outputs.regex"),
        ({"type": "json_object"}, StructuredOutputs(regex="a"), "structured_outputs"),
    ],
)  # fmt: skip
def test_a_wrong_form_names_its_field(
    response_format: dict[str, Any] | None, structured: StructuredOutputs | None, param: str
) -> None:
    with pytest.raises(WorkerError) as caught:
        read_form(response_format, structured)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_a_schema_is_bounded() -> None:
    assert encoded_schema({"a": 1}, "p") == b'{"a":1}'
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"items": deep}
    for schema in (deep, {"description": "x" * FORM_BYTES_MAX}):
        with pytest.raises(WorkerError) as caught:
            encoded_schema(schema, "p")
        assert caught.value.param == "p"
    while deep:  # taken apart from the outside, or freeing it would recurse as deep
        deep = deep.pop("items")


def tool(name: Any = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def test_tools() -> None:
    parameters = {"type": "object", "properties": {}}
    tools = read_tools([tool("f", parameters=parameters), tool("ns.g-2")], None, None)
    assert [t.name for t in tools.offered] == ["f", "ns.g-2"]
    assert [t.parameters for t in tools.offered] == [parameters, {}]
    assert tools.offered[0].spec == tool("f", parameters=parameters)
    assert (tools.forced, tools.parallel) == ((), True)
    assert read_tools(None, None, None) == read_tools([], "auto", None) == Tools()


def test_tool_choice() -> None:
    both = [tool("f"), tool("g")]
    named = {"type": "function", "function": {"name": "g"}}
    assert read_tools(both, "auto", False).parallel is False
    assert read_tools(both, "required", None).forced == ("f", "g")
    assert read_tools(both, "none", None).offered == ()
    forced = read_tools(both, named, True)
    assert (forced.forced, forced.parallel) == (("g",), False)
    assert len(forced.offered) == 2  # the prompt still shows both


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ([{"type": "function"}], None, "tools[0]"),
        ([tool(), {"type": "retrieval", "function": {"name": "x"}}], None, "tools[1]"),
        ([tool(None)], None, "tools[0].function.name"),
        ([tool("a b")], None, "tools[0].function.name"),
        ([tool("a\n")], None, "tools[0].function.name"),
        ([tool("x" * 129)], None, "tools[0].function.name"),
        ([tool(parameters=[])], None, "tools[0].function.parameters"),
        ([tool(), tool()], None, "tools"),
        ([tool(f"f{i}") for i in range(TOOLS_MAX + 1)], None, "tools"),
        ([], "required", "tool_choice"),
        ([tool()], "sometimes", "tool_choice"),
        ([tool()], {"type": "function"}, "tool_choice"),
        ([tool()], {"type": "allowed_tools", "function": {"name": "f"}}, "tool_choice"),
        ([tool()], {"type": "function", "function": {"name": "g"}}, "tool_choice"),
    ],
)
def test_wrong_tools_name_their_field(tools: list[Any], choice: Any, param: str) -> None:
    with pytest.raises(WorkerError) as caught:
        read_tools(tools, choice, None)
    assert (caught.value.status, caught.value.param) == (400, param)
