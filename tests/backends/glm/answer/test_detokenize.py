from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.glm.answer.detokenize import StopStrings, Utf8Stream
from backends.glm.model.load import Checkpoint

TEXTS = st.text(max_size=40) | st.text(alphabet="你好🙂👩‍👩‍👧e\u0301 <|/\n", max_size=40)


def decoded(pieces: list[bytes]) -> str:
    stream = Utf8Stream()
    return "".join([*(stream.push(piece) for piece in pieces), stream.flush()])


@given(TEXTS.map(str.encode) | st.binary(max_size=40))
def test_utf8_whole_and_byte_by_byte(raw: bytes) -> None:
    whole = decoded([raw])
    assert whole == raw.decode(errors="replace")
    assert decoded([raw[i : i + 1] for i in range(len(raw))]) == whole


@given(TEXTS)
def test_no_replacement_character_is_ever_invented(text: str) -> None:
    stream = Utf8Stream()
    shown = ""
    for byte in text.encode():
        shown += stream.push(bytes([byte]))
        assert text.startswith(shown)
    assert (shown, stream.flush()) == (text, "")


@given(st.lists(st.integers(26, 439), max_size=30))
def test_the_same_text_as_the_stock_tokenizer(checkpoint: Checkpoint, ids: list[int]) -> None:
    """Any sequence of ordinary ids, also ones that end or begin in the middle of a character."""
    tokenizer = checkpoint.tokenizer
    stock = tokenizer._fast.decode(ids, clean_up_tokenization_spaces=False)
    assert decoded([tokenizer.bytes_of(i) for i in ids]) == stock


STOPS = st.lists(st.text(alphabet="ab你", min_size=1, max_size=4), max_size=4).map(tuple)


def run_stops(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, str | None]:
    matcher = StopStrings(stops)
    shown = "".join(matcher.push(piece) for piece in pieces) + matcher.flush()
    return shown, matcher.matched


@given(STOPS, st.text(alphabet="ab你", max_size=20))
def test_stop_strings_do_not_depend_on_token_borders(stops: tuple[str, ...], text: str) -> None:
    """The reference reads one character at a time and stops as soon as a stop string is there."""
    expected: tuple[str, str | None] = (text, None)
    for end in range(len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            longest = max(hits, key=len)
            expected = (text[: end - len(longest)], longest)
            break
    assert run_stops(stops, [text]) == expected
    assert run_stops(stops, list(text)) == expected


@given(STOPS, st.lists(st.text(alphabet="ab你", max_size=4), max_size=8))
def test_nothing_of_a_stop_string_is_shown_early(stops: tuple[str, ...], pieces: list[str]) -> None:
    final, _ = run_stops(stops, pieces)
    matcher = StopStrings(stops)
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        assert final.startswith(shown)


def test_text_without_a_stop_string_is_not_delayed() -> None:
    matcher = StopStrings(("END",))
    assert matcher.push("all of it") == "all of it"
    assert matcher.push(" E") == " "
    assert matcher.push("x") == "Ex"


def test_an_empty_stop_string_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(("",))
