from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.glm.answer.deltas import Delta
from backends.glm.answer.output import Output, ToolReading
from backends.glm.answer.toolcalls import MARKERS
from backends.glm.types import Drawn, Thinking

# A toy vocabulary: ids 0..255 are bytes, two markers, and a control token without text.
OPEN, CLOSE, HIDDEN = 256, 257, 258


def bytes_of(token_id: int) -> bytes:
    return bytes([token_id]) if token_id < 256 else b""


def new(thinking: Thinking = "model", stops: tuple[str, ...] = (), close: int | None = CLOSE
        ) -> Output:  # fmt: skip
    return Output(bytes_of, think_ids=(OPEN, close), thinking=thinking, stops=stops)


def run(output: Output, ids: list[int]) -> tuple[str, str]:
    deltas: list[Delta] = []
    for token_id in ids:
        deltas += output.push(Drawn(token_id))
        if output.stopped:
            break
    deltas += output.finish()
    reasoning = "".join(d.text for d in deltas if d.channel == "reasoning")
    return reasoning, "".join(d.text for d in deltas if d.channel == "content")


def test_thought_then_answer() -> None:
    ids = [OPEN, *"想".encode(), CLOSE, *"\n答案🙂".encode()]
    assert run(new(), ids) == ("想", "答案🙂")


def test_stop_strings_end_the_answer_but_not_the_thought() -> None:
    output = new(stops=("END",))
    assert run(output, [OPEN, *b"the END of it", CLOSE, *b"one END two"]) == (
        "the END of it",
        "one ",
    )
    assert output.stopped
    assert output.reasoning_tokens == len(b"the END of it")


def test_a_held_tail_is_shown_at_the_end() -> None:
    assert run(new("closed", stops=("END",)), list(b"at the EN")) == ("", "at the EN")


def test_control_tokens_are_not_text() -> None:
    assert run(new("closed"), [*b"a", HIDDEN, *b"b", 10**9]) == ("", "ab")


def test_half_a_character_at_the_end_or_before_a_marker() -> None:
    half = list("好".encode())[:2]
    assert run(new("closed"), half) == ("", "\ufffd")
    assert run(new(), [OPEN, *half, CLOSE, *b"x"]) == ("\ufffd", "x")


def test_without_a_closing_marker_in_the_vocabulary_all_is_answer() -> None:
    output = Output(bytes_of, think_ids=(None, None), thinking="model")
    assert output.push(Drawn(ord("a"))) == [Delta("content", "a")]


@given(st.text(max_size=30), st.text(max_size=30), st.sampled_from([(), ("ab",), ("。", "\n\n")]))
def test_deltas_add_up(thought: str, answer: str, stops: tuple[str, ...]) -> None:
    ids = [OPEN, *thought.encode(), CLOSE, *answer.encode()]
    reasoning, content = run(new(stops=stops), ids)
    assert reasoning == thought.strip()
    expected = answer.lstrip()
    ends = [(expected.find(stop) + len(stop), stop) for stop in stops if stop in expected]
    assert content == (expected[: min(ends)[0] - len(min(ends)[1])] if ends else expected)


# ------------------------------------------------------------------ tool calls, and whose token

CALL_IDS = {300 + i: marker for i, marker in enumerate(MARKERS)}
READING = ToolReading(markers=CALL_IDS, parameters={"f": {"properties": {"a": {"type": "string"}}}})


def marked(text: str) -> list[int]:
    """Ids of a text, its markers as control tokens."""
    ids: list[int] = []
    while text:
        at, found = min(((text.find(m), m) for m in MARKERS if m in text), default=(len(text), ""))
        ids += text[:at].encode()
        ids += [i for i, marker in CALL_IDS.items() if marker == found]
        text = text[at + len(found) :]
    return ids


CALL = "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>x STOP</arg_value>\n</tool_call>"


def deltas_of(output: Output, ids: list[int], *, cut: bool = False) -> list[Delta]:
    deltas: list[Delta] = []
    for token_id in ids:
        deltas += output.push(Drawn(token_id, -float(len(deltas))))
        if output.stopped:
            break
    return deltas + output.finish(cut=cut)


def calling(thinking: Thinking = "closed", **more: Any) -> Output:
    return Output(bytes_of, think_ids=(OPEN, CLOSE), thinking=thinking, tools=READING, **more)


def test_a_call_after_a_text_is_no_text_and_no_stop_string_looks_into_it() -> None:
    output = calling(stops=("STOP",))
    deltas = deltas_of(output, marked("Well.\n" + CALL + "STOP"))
    assert "".join(d.text for d in deltas if d.channel == "content") == "Well."
    assert [d.text for d in deltas if d.channel == "call"] == ["f"]
    arguments = "".join(d.text for d in deltas if d.channel == "arguments")
    assert json.loads(arguments) == {"a": "x STOP"}
    assert output.called
    assert output.stopped


def test_a_call_without_a_thought_before_it_is_seen_at_once() -> None:
    """With thinking on, a text is held back until it is known what it is: a call is an answer."""
    deltas = deltas_of(calling("model"), marked("Well. " + CALL))
    assert [(d.channel, d.text) for d in deltas[:2]] == [("content", "Well."), ("call", "f")]


def test_in_a_thought_a_marker_is_text() -> None:
    deltas = deltas_of(calling("open"), marked("<tool_call>"))
    assert not any(d.channel == "call" for d in deltas)


def test_one_call_is_enough_where_only_one_is_wanted() -> None:
    output = Output(
        bytes_of,
        think_ids=(OPEN, CLOSE),
        thinking="closed",
        tools=dataclasses.replace(READING, single=True),
    )
    deltas = deltas_of(output, marked(CALL + CALL))
    assert output.stopped
    assert len([d for d in deltas if d.channel == "call"]) == 1


@given(
    st.text(alphabet="ab \n好", max_size=20),
    st.text(alphabet="ab \n好.", max_size=20),
    st.sampled_from([(), ("b.",), ("好", "aa")]),
    st.booleans(),
)
def test_the_tokens_of_the_deltas_are_those_of_the_content(
    thought: str, answer: str, stops: tuple[str, ...], called: bool
) -> None:
    """Each once, in order, none of the thought, of the call or of what a stop string cut off."""
    ids = [OPEN, *thought.encode(), CLOSE, *answer.encode(), *(marked(CALL) if called else [])]
    deltas = deltas_of(calling("model", stops=stops, keeps_tokens=True), ids)
    assert all(not d.tokens for d in deltas if d.channel != "content")
    content = "".join(d.text for d in deltas if d.channel == "content")
    told = bytes(drawn.token_id for d in deltas for drawn in d.tokens)
    # Of a character whose first byte was shown, the other bytes are its tokens, too.
    assert told.decode(errors="ignore").strip() == content.strip()


@pytest.mark.parametrize("whole", [0, 1, 2])
@pytest.mark.parametrize("held", [1, 2, 3])
def test_half_a_character_at_the_limit_is_left_out(whole: int, held: int) -> None:
    """What is sent back to be continued must be a beginning of the answer."""
    said = "🙂" * whole
    for cut, end in ((True, ""), (False, "\ufffd")):
        output = new("closed")
        shown = ""
        for byte in [*said.encode(), *"🙃".encode()[:held]]:
            shown += "".join(delta.text for delta in output.push(Drawn(byte)))
        shown += "".join(delta.text for delta in output.finish(cut=cut))
        assert shown == said + end
