from __future__ import annotations

from typing import Any

import pytest

from backends.glm.answer.schemas import argument, is_text, resolved, types_in, types_of

ROOT = {
    "properties": {"a": {"type": "string"}, "b": {"type": ["null", "integer"]}},
    "additionalProperties": {"type": "number"},
    "$defs": {"x": {"type": "array"}, "self": {"$ref": "#/$defs/self"}, "a/b~c": {"const": 1}},
}


def test_of_an_argument() -> None:
    assert is_text(ROOT, "a")
    assert not is_text(ROOT, "b")
    assert types_of(ROOT, "b") == ("integer", "null")
    assert types_of(ROOT, "unheard_of") == ("number",)
    assert types_of({}, "a") == ()
    assert argument(ROOT, "a") == {"type": "string"}
    assert argument({"properties": []}, "a") is None


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"const": True}, ("boolean",)),
        ({"const": 1.5}, ("number",)),
        ({"enum": ["a", None, "b"]}, ("null", "string")),
        ({"enum": []}, ()),
        ({"$ref": "#/$defs/x"}, ("array",)),
        ({"$ref": "#/$defs/self"}, ()),
        ({"$ref": "http://x/y"}, ()),
        ({"anyOf": [{"type": "string"}, {"$ref": "#/$defs/x"}]}, ("array", "string")),
        ({"oneOf": [{"type": "string"}, {}]}, ()),
        ({"allOf": [{"description": "x"}, {"type": "object"}]}, ("object",)),
        ({"type": 7}, ()),
        (True, ()),
        (None, ()),
    ],
)
def test_types(schema: Any, types: tuple[str, ...]) -> None:
    assert types_in(schema, ROOT) == types


def test_references() -> None:
    assert resolved("#/$defs/a~1b~0c", ROOT) == {"const": 1}
    assert resolved("#", ROOT) == ROOT
    assert resolved("#/$defs/none/such", ROOT) is None
    assert resolved("other.json", ROOT) is None
