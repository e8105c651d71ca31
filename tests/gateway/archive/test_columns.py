from __future__ import annotations

import msgspec

from gateway.archive.columns import COLUMNS, columns, to_line, to_row
from gateway.ledger.entries import Entry
from gateway.ledger.rows import Row
from policies.types import Site
from tests.gateway.ledger.kit import row


class Later(Row, frozen=True, kw_only=True):
    """A row of a later version, with a field of every kind."""

    carbon_g: int | None = None
    notes: dict[str, str] = msgspec.field(default_factory=dict)
    parts: tuple[int, ...] = ()
    share: float = 0.0
    other_site: Site = Site.CLOUD


def test_every_field_of_a_row_is_a_column() -> None:
    assert set(Row.__struct_fields__) <= set(COLUMNS)
    assert COLUMNS["posted_nano"] == COLUMNS["claimed_nano"] == "int64"
    assert (COLUMNS["site"], COLUMNS["flags"], COLUMNS["stream"]) == ("string", "strings", "bool")
    assert COLUMNS["ttft_ms"] == "float64"


def test_a_new_field_becomes_a_column_by_itself() -> None:
    found = columns(Later)
    assert {name: found[name] for name in Later.__struct_fields__[-5:]} == {
        "carbon_g": "int64",
        "notes": "json",
        "parts": "json",
        "share": "float64",
        "other_site": "string",
    }


def test_a_line_stands_for_one_row() -> None:
    one = row("yz-1.0", 7, site=Site.LOCAL, cloud_nano=9, final=False, flags=("a",))
    line = to_line(Entry(id="5-1", row=one))
    assert (line["stream_id"], line["lines"], line["requests"]) == ("5-1", 1, 0)
    assert (line["saved_nano"], line["site"], line["flags"]) == (2, "local", ["a"])
    assert to_row(line) == one
