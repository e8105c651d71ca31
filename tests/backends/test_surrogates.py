from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.surrogates import half_character


@pytest.mark.parametrize(
    "text",
    [r"\ud800", r"a\uDBFF b", r"\udc00", r"\ude00\ud83d", r"\ud83d\ud83d\ude42", r"\\\udfff"],
)
def test_a_half_is_found(text: str) -> None:
    assert half_character(f'{{"a": "{text}"}}'.encode())


@pytest.mark.parametrize(
    "text", ["", "🙂", r"\ud83d\ude42", r"\\ud800", r"\\\\ude00", r"\u0041\ud7ff\ue000", "ud800"]
)
def test_whole_characters_are_none(text: str) -> None:
    assert not half_character(f'{{"a": "{text}"}}'.encode())


@given(st.text())
def test_no_text_that_can_be_encoded_holds_one(text: str) -> None:
    assert not half_character(json.dumps(text).encode())
