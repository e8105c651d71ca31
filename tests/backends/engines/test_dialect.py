from __future__ import annotations

import json

import pytest

from backends.chat import Message
from backends.engines.dialect import continues, rename, with_members
from tests.backends.engines.kit import chat


def test_members_are_added_to_an_object() -> None:
    assert json.loads(with_members(b'{"a":[1,{"b":"}"}]}', {"c": "\u00e9"})) == {
        "a": [1, {"b": "}"}],
        "c": "\u00e9",
    }
    assert with_members(b'{"a":1}', {}) == b'{"a":1}'


@pytest.mark.parametrize(("role", "expected"), [("assistant", True), ("user", False)])
def test_a_last_message_of_the_assistant_is_a_beginning(role: str, expected: bool) -> None:
    messages = [Message(role="user", content="a"), Message(role=role, content="b")]  # type: ignore[arg-type]
    assert continues(chat(messages=messages)) is expected


def test_a_name_that_is_taken_stays() -> None:
    value: dict[str, object] = {"old": 1, "new": 2}
    rename(value, "old", "new")
    assert value == {"new": 2}
    rename(None, "old", "new")
