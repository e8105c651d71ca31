from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.glm.answer.deltas import Delta
from backends.glm.answer.reasoning import HOLD_CHARS, ReasoningSplitter
from backends.glm.types import Thinking

OPEN, CLOSE = "\0open", "\0close"


def play(thinking: Thinking, events: list[str]) -> tuple[ReasoningSplitter, list[Delta]]:
    splitter = ReasoningSplitter(thinking)
    deltas: list[Delta] = []
    for event in events:
        if event == OPEN:
            deltas += splitter.open()
        elif event == CLOSE:
            deltas += splitter.close()
        else:
            splitter.count_token()
            deltas += splitter.push(event)
    return splitter, deltas + splitter.finish()


def texts(deltas: list[Delta]) -> tuple[str, str]:
    def of(channel: str) -> str:
        return "".join(d.text for d in deltas if d.channel == channel)

    return of("reasoning"), of("content")


@pytest.mark.parametrize(
    ("thinking", "events", "expected"),
    [
        ("model", [OPEN, "\nhm \n", CLOSE, "\n Yes"], ("hm", "Yes")),
        ("model", ["\n", OPEN, "hm", CLOSE, "Yes"], ("hm", "Yes")),
        ("model", ["hm", CLOSE, "\nYes"], ("hm", "Yes")),  # the opening marker left out
        ("model", [OPEN, CLOSE, "\nYes"], ("", "Yes")),
        ("model", ["Yes"], ("", "Yes")),  # no thought at all
        ("model", [OPEN, "hm, and cut off"], ("hm, and cut off", "")),
        ("open", ["hm", CLOSE, "\nYes"], ("hm", "Yes")),
        ("open", [OPEN, "hm", CLOSE, "Yes"], ("hm", "Yes")),
        ("closed", ["Yes"], ("", "Yes")),
        ("closed", ["Yes", CLOSE, "No"], ("", "YesNo")),
        ("model", [OPEN, "a", CLOSE, "b", OPEN, "c", CLOSE, "d"], ("a", "bcd")),
        ("model", [], ("", "")),
    ],
)
def test_where_a_text_belongs(
    thinking: Thinking, events: list[str], expected: tuple[str, str]
) -> None:
    assert texts(play(thinking, events)[1]) == expected


@given(
    st.sampled_from(["model", "open", "closed"]),
    st.lists(st.text(alphabet="ab \n", max_size=6) | st.sampled_from([OPEN, CLOSE]), max_size=12),
)
def test_streamed_as_whole(thinking: Thinking, events: list[str]) -> None:
    """Character by character gives the same two texts as piece by piece."""
    single = [e for event in events for e in ([event] if event in (OPEN, CLOSE) else event)]
    assert texts(play(thinking, events)[1]) == texts(play(thinking, single)[1])


@given(st.lists(st.text(alphabet="ab \n", max_size=6), max_size=12))
def test_a_shown_delta_is_never_empty_and_thoughts_end_in_no_space(pieces: list[str]) -> None:
    _, deltas = play("model", [OPEN, *pieces, CLOSE, *pieces])
    assert all(delta.text for delta in deltas)
    reasoning, content = texts(deltas)
    assert reasoning == "".join(pieces).strip()
    assert content == "".join(pieces).lstrip()


def test_a_direct_answer_is_held_only_so_long() -> None:
    splitter = ReasoningSplitter("model")
    assert splitter.push("x" * HOLD_CHARS) == []
    assert splitter.push("y") == [Delta("content", "x" * HOLD_CHARS + "y")]
    assert splitter.push("z") == [Delta("content", "z")]


@pytest.mark.parametrize(
    ("events", "tokens"),
    [
        ([OPEN, "a", "b", CLOSE, "c"], 2),
        (["a", "b", CLOSE, "c"], 2),
        (["a", "b"], 0),
        ([OPEN, "a", "b"], 2),
        ([OPEN, CLOSE, "c"], 0),
    ],
)
def test_reasoning_tokens_leave_out_the_markers(events: list[str], tokens: int) -> None:
    assert play("model", events)[0].reasoning_tokens == tokens
