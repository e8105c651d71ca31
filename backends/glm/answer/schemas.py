"""What a tool's JSON Schema says of one argument: a string, or which other types it may have.

Only as far as it decides how GLM's untyped text becomes JSON; the schema as a whole is enforced by
the grammar, and checked by whoever runs the tool.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

REFERENCES_MAX = 16  # followed one after the other; a schema that refers to itself ends here
_OF_VALUE: tuple[tuple[type, str], ...] = (
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
    (type(None), "null"),
)


def is_text(parameters: Mapping[str, Any], name: str) -> bool:
    """Whether the argument `name` can only be a string."""
    return types_of(parameters, name) == ("string",)


def types_of(parameters: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """JSON types that the argument `name` may have, in alphabetic order; () if any."""
    return types_in(argument(parameters, name), parameters)


def argument(parameters: Mapping[str, Any], name: str) -> Any:
    """The schema of the argument `name`; one that is not described has none."""
    properties = parameters.get("properties")
    if isinstance(properties, dict) and name in properties:
        return properties[name]
    return parameters.get("additionalProperties")


def types_in(schema: Any, root: Mapping[str, Any]) -> tuple[str, ...]:
    """JSON types that `schema` allows, in alphabetic order; () if it does not say, or if any."""
    found = _types(schema, root, REFERENCES_MAX)
    return tuple(sorted(found)) if found is not None else ()


def _types(schema: Any, root: Mapping[str, Any], left: int) -> set[str] | None:
    """None: any."""
    if not isinstance(schema, dict) or left == 0:
        return None
    if "type" in schema:
        kind = schema["type"]
        kinds = kind if isinstance(kind, list) else [kind]
        return {k for k in kinds if isinstance(k, str)} or None
    if "const" in schema:
        return {_type_of(schema["const"])}
    if isinstance(schema.get("enum"), list):
        return {_type_of(value) for value in schema["enum"]} or None
    if isinstance(schema.get("$ref"), str):
        return _types(resolved(schema["$ref"], root), root, left - 1)
    for word in ("anyOf", "oneOf"):
        if isinstance(schema.get(word), list):
            return _union(_types(inner, root, left - 1) for inner in schema[word])
    if isinstance(schema.get("allOf"), list):
        for inner in schema["allOf"]:
            if (found := _types(inner, root, left - 1)) is not None:
                return found
    return None


def _union(kinds: Iterator[set[str] | None]) -> set[str] | None:
    found: set[str] = set()
    for kind in kinds:
        if kind is None:
            return None
        found |= kind
    return found or None


def _type_of(value: object) -> str:
    return next(name for kind, name in _OF_VALUE if isinstance(value, kind))


def resolved(reference: str, root: Mapping[str, Any]) -> Any:
    """What a reference of the form `#/$defs/name` points to; None if it points to nothing."""
    if not reference.startswith("#"):
        return None
    node: Any = root
    for step in reference[1:].split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        node = node.get(key) if isinstance(node, dict) else None
    return node
