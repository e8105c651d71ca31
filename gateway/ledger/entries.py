"""Rows as they stand in the stream: under the id that says when each was booked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from gateway.ledger.rows import Outcome, Row, RowState, decode
from policies.types import Site, Value

UNREADABLE: Final = "unreadable"  # the reason and flag of a row whose description is lost


class Entry(Value, frozen=True, kw_only=True):
    """A row and its place. id: "<ms when it was booked>-<number within that ms>"."""

    id: str
    row: Row


def entry(stream_id: bytes, flat: Sequence[bytes]) -> Entry:
    """An entry as XRANGE answers it: its id, and its fields and values in turn.

    Never raises for what stands there: one row that cannot be read must not hide the others, and
    its money is in the till all the same. It comes back with the flag `unreadable`.
    """
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    name = stream_id.decode()
    try:
        return Entry(id=name, row=decode(fields))
    except (msgspec.DecodeError, KeyError, ValueError):
        return Entry(id=name, row=_unreadable(name, fields))


def _unreadable(name: str, fields: Mapping[bytes, bytes]) -> Row:
    """A row that keeps the books adding up when its description is lost."""

    def whole(field: bytes) -> int:
        text = fields.get(field, b"0")
        return int(text) if text.lstrip(b"-").isdigit() else 0

    return Row(
        request_id=f"unreadable-{name}",
        attempt=0,
        at_ms=int(name.partition("-")[0]),
        tenant="",
        model="",
        site=Site.CLOUD,
        target="",
        reason=UNREADABLE,
        posted_nano=whole(b"p"),
        held_nano=whole(b"h"),
        state=RowState.UNRECONCILED,
        outcome=Outcome.EXPIRED,
        flags=(UNREADABLE,),
    )
