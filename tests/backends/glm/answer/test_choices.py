from __future__ import annotations

from backends.glm.answer.choices import LOGPROB_MIN, Choice, Naming, delta_of
from backends.glm.answer.deltas import Delta
from backends.glm.types import Drawn

NAMING = Naming(reply_id="chatcmpl-" + "0123456789abcdef" * 2, spelled=lambda i: b"\xe5\xa5"[i:])
DELTAS = [
    Delta("reasoning", "hm"),
    Delta("content", "Let me "),
    Delta("content", "look", tokens=(Drawn(0, -0.5, ((0, -0.5), (1, -1.0))),)),
    Delta("call", "f", 0),
    Delta("arguments", "{", 0),
    Delta("call", "g", 1),
    Delta("arguments", "{}", 1),
]


def test_a_message_of_everything() -> None:
    choice = Choice(1)
    for delta in DELTAS:
        choice.take([delta])
    message = choice.message(NAMING)
    assert (message["content"], message["reasoning_content"]) == ("Let me look", "hm")
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "f", "arguments": "{"},
        {"name": "g", "arguments": "{}"},
    ]
    assert [drawn.token_id for drawn in choice.tokens] == [0]
    ids = [call["id"] for call in message["tool_calls"]]
    assert len(set(ids)) == 2
    assert all(call_id.startswith("call_") for call_id in ids)


def test_content_is_null_beside_calls_only() -> None:
    choice, silent = Choice(0), Choice(0)
    choice.take(DELTAS[3:5])
    assert choice.message(NAMING)["content"] is None
    assert silent.message(NAMING) == {"role": "assistant", "content": ""}


def test_streamed_calls_have_the_ids_of_the_whole_message() -> None:
    choice = Choice(1)
    choice.take(DELTAS)
    streamed = [delta_of(delta, 1, NAMING) for delta in DELTAS]
    assert streamed[:2] == [{"reasoning_content": "hm"}, {"content": "Let me "}]
    calls = [delta["tool_calls"][0] for delta in streamed[3:]]
    assert [call["index"] for call in calls] == [0, 0, 1, 1]
    whole = [call["id"] for call in choice.message(NAMING)["tool_calls"]]
    assert [call["id"] for call in calls if "id" in call] == whole
    assert calls[0]["function"] == {"name": "f", "arguments": ""}
    assert calls[1] == {"index": 0, "function": {"arguments": "{"}}


def test_half_a_character_has_bytes_and_no_infinite_logprob() -> None:
    (named,) = NAMING.logprobs([Drawn(0, float("-inf"), ((1, -2.0),))])
    assert named["token"] == "\ufffd"
    assert named["bytes"] == [0xE5, 0xA5]
    assert named["logprob"] == LOGPROB_MIN
    assert named["top_logprobs"] == [{"token": "\ufffd", "logprob": -2.0, "bytes": [0xA5]}]
