"""Which columns a row has in a file, derived from the row itself.

A field that is added to `Row` becomes a column of its own without a change here; files that were
written before have no such column and read as the field's default. Four columns are not fields:

    stream_id   where the row stood in the stream; empty for a line that sums up forgotten rows
    lines       how many rows it stands for: 1, more for such a sum
    requests    how many exchanges ended in it: 1 for a row with `final`, else 0
    saved_nano  what answering on the premises saved, as `Row.saved_nano` said when it was archived
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import msgspec

from gateway.ledger.entries import Entry
from gateway.ledger.rows import Row

# Plain names of column types; `files` knows what Parquet calls them.
STRING, INT, FLOAT, BOOL, STRINGS, JSON = "string", "int64", "float64", "bool", "strings", "json"
_PLAIN: Final = {str: STRING, int: INT, float: FLOAT, bool: BOOL}

STREAM_ID, LINES, REQUESTS, SAVED = "stream_id", "lines", "requests", "saved_nano"
_OWN: Final = {STREAM_ID: STRING, LINES: INT, REQUESTS: INT, SAVED: INT}


def columns(kind: type[Row] = Row) -> dict[str, str]:
    """Column -> type, in the order of the fields of a row."""
    hints = typing.get_type_hints(kind)
    return {**_OWN, **{name: _type_of(hints[name]) for name in kind.__struct_fields__}}


def _type_of(hint: Any) -> str:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        given = [part for part in typing.get_args(hint) if part is not types.NoneType]
        return _type_of(given[0]) if len(given) == 1 else JSON
    if typing.get_origin(hint) is tuple and typing.get_args(hint) == (str, ...):
        return STRINGS
    if isinstance(hint, type) and issubclass(hint, Enum):
        return STRING if issubclass(hint, str) else JSON
    return _PLAIN.get(hint, JSON)


COLUMNS: Final = columns()
_JSON_COLUMNS: Final = [name for name, kind in COLUMNS.items() if kind == JSON]


def to_line(entry: Entry) -> dict[str, Any]:
    """An entry of the stream as the values of a line."""
    row = entry.row
    line = {name: getattr(row, name) for name in row.__struct_fields__}
    for name, value in line.items():
        if isinstance(value, Enum):
            line[name] = value.value
        elif COLUMNS[name] == STRINGS:
            line[name] = list(value)
    for name in _JSON_COLUMNS:
        line[name] = None if line[name] is None else msgspec.json.encode(line[name]).decode()
    own = {STREAM_ID: entry.id, LINES: 1, REQUESTS: int(row.final), SAVED: row.saved_nano}
    return {**own, **line}


def to_row(line: Mapping[str, Any]) -> Row:
    """A line that was read as a row. What the file did not have is the field's default."""
    given: dict[str, Any] = {}
    for name in Row.__struct_fields__:
        value = line.get(name)
        if value is not None:
            given[name] = msgspec.json.decode(value) if name in _JSON_COLUMNS else value
    return msgspec.convert(given, Row)
