from __future__ import annotations

import pytest

from gateway.ledger.entries import UNREADABLE, entry
from gateway.ledger.rows import encode
from tests.gateway.ledger.kit import row


def test_an_entry_is_its_row_under_its_id() -> None:
    one = row("yz-1.0", 0, tenant="t")
    found = entry(b"1795338000123-4", [b"p", b"7", b"h", b"9", b"r", encode(one)])
    assert found.id == "1795338000123-4"
    assert (found.row.request_id, found.row.posted_nano, found.row.held_nano) == ("yz-1", 7, 9)


@pytest.mark.parametrize(
    "flat",
    [
        [b"p", b"7", b"h", b"9", b"r", b"{}"],
        [b"p", b"7", b"h", b"9", b"r", b"not json"],
        [b"p", b"7", b"h", b"9"],
    ],
)
def test_money_is_kept_when_the_description_is_lost(flat: list[bytes]) -> None:
    found = entry(b"1795338000123-4", flat).row
    assert (found.posted_nano, found.held_nano, found.at_ms) == (7, 9, 1_795_338_000_123)
    assert found.flags == (UNREADABLE,)
    assert found.state == "unreconciled"


def test_nothing_at_all_is_a_row_of_nothing() -> None:
    assert entry(b"5-0", [b"x", b"y"]).row.posted_nano == 0
