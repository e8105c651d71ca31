from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.glm.deltas import Delta
from backends.glm.output import Output
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
