from __future__ import annotations

import pytest

from backends.origins import is_inside


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.1", True), ("10.1.2.3", True), ("192.168.0.1", True), ("172.16.0.1", True),
        ("100.64.3.4", True), ("::1", True), ("fd00::1", True),
        ("8.8.8.8", False), ("169.254.169.254", False), ("0.0.0.0", False),  # noqa: S104
         ("224.0.0.1", False),
        ("2606:4700::1", False), ("::ffff:8.8.8.8", False), ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False), ("2002:a00:1::", False), ("fe80::1", False),
        ("240.0.0.1", False),
        ("localhost", False), ("", False), ("10.0.0.1:80", False),
    ],
)  # fmt: skip
def test_what_finds_workers_may_find_them_only_inside(address: str, inside: bool) -> None:
    assert is_inside(address) is inside
