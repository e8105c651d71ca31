from __future__ import annotations

from backends.pool.members import Member, members_of


def test_urls_alone_are_numbered() -> None:
    assert [(m.name, m.url) for m in members_of(["a", "b"])] == [("w1", "a"), ("w2", "b")]


def test_a_key_is_not_shown() -> None:
    assert "secret" not in f"{Member(name='a', url='u', api_key='secret')!r}"
    assert "secret" not in f"{Member(name='a', url='u', api_key='secret')}"
