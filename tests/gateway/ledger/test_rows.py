from __future__ import annotations

import msgspec
import pytest

from gateway.ledger.rows import CLAMPED, Outcome, RowState, decode, encode
from policies.types import Site
from tests.gateway.ledger.kit import row

ONE = row("yz-1.2", 70, cloud_nano=100, flags=("a",))


def test_what_the_books_decided_wins_over_what_a_writer_said() -> None:
    fields = {b"r": encode(ONE), b"p": b"60", b"h": b"90"}
    read = decode(fields)
    assert (read.posted_nano, read.held_nano, read.hold_id) == (60, 90, "yz-1.2")
    assert (read.claimed_nano, read.flags, read.state, read.drawn) == (None, ("a",), "final", ())
    above = decode({**fields, b"c": b"95"})
    assert (above.claimed_nano, above.flags) == (95, ("a", CLAMPED))
    lost = decode({**fields, b"s": b"x", b"k": b"day|tenant:a|g|1\nday|org:b|g|1"})
    assert (lost.state, lost.outcome) == (RowState.UNRECONCILED, Outcome.EXPIRED)
    assert lost.drawn == ("day|tenant:a|g|1", "day|org:b|g|1")


def test_a_row_of_a_later_version_is_read_and_one_that_is_none_is_not() -> None:
    later = msgspec.json.decode(encode(ONE)) | {"carbon_g": 3, "state": "heavenly"}
    read = decode({b"r": msgspec.json.encode(later), b"p": b"1", b"h": b"1"})
    assert (read.state, read.request_id) == ("heavenly", "yz-1")
    with pytest.raises(msgspec.ValidationError):
        decode({b"r": b"{}", b"p": b"1", b"h": b"1"})
    with pytest.raises(KeyError):
        decode({b"r": encode(ONE), b"p": b"1"})


@pytest.mark.parametrize(
    ("site", "cloud_nano", "saved"),
    [(Site.LOCAL, 100, 30), (Site.LOCAL, 50, -20), (Site.LOCAL, None, 0), (Site.CLOUD, 100, 0),
     (Site.CLOUD, None, 0)],
)  # fmt: skip
def test_only_what_stayed_and_has_a_price_to_compare_has_saved(
    site: Site, cloud_nano: int | None, saved: int
) -> None:
    assert row("yz-1.0", 70, site=site, cloud_nano=cloud_nano).saved_nano == saved
