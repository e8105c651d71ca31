from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Event
from backends.chunks import read_event
from backends.sse import SseParser, data_of
from gateway.relay import DONE, Relay

NOTE = {"request_id": "yz-1", "cost_cny": 0.000324}
USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def chunk(content: str | None = None, finish: str | None = None, index: int = 0) -> bytes:
    delta = {} if content is None else {"content": content}
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return _event({"id": "c1", "object": "chat.completion.chunk", "choices": [choice]})


def usage_chunk(**more: Any) -> bytes:
    return _event({"id": "c1", "choices": [], "usage": USAGE, **more})


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


OPENING = _event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
A, B = chunk("a"), chunk("b")
STOP = chunk(finish="stop")
KEEP_ALIVE = b": still there\n\n"
STREAM = [OPENING, A, B, STOP, usage_chunk(), DONE]


def relayed(events: list[bytes], *, wants_usage: bool = False) -> tuple[bytes, bytes, Relay]:
    """What is written while the stream runs, what ends it, and the relay."""
    relay = Relay(wants_usage=wants_usage)
    written = b"".join(relay.take([read_event(raw)]) for raw in events)
    return written, relay.tail(NOTE), relay


def last_chunk(tail: bytes) -> Any:
    """The JSON of the only chunk of a tail; what follows it is [DONE]."""
    assert tail.endswith(DONE)
    return json.loads(data_of(tail.removesuffix(DONE)) or b"null")


def test_the_end_is_held_back_until_the_books_are_closed() -> None:
    written, tail, relay = relayed(STREAM)
    assert written == OPENING + A + B
    assert last_chunk(tail) == {**json.loads(STOP[6:]), "yuzui": NOTE}
    assert (relay.finish_reason, relay.deltas) == ("stop", 2)
    assert relay.usage is not None
    assert relay.usage.completion_tokens == 2


def test_who_asked_for_a_usage_chunk_finds_the_note_in_it() -> None:
    written, tail, _ = relayed(STREAM, wants_usage=True)
    assert written == OPENING + A + B
    assert tail.startswith(STOP), "the chunk before it is left alone"
    assert last_chunk(tail.removeprefix(STOP)) == {**json.loads(usage_chunk()[6:]), "yuzui": NOTE}


def test_who_did_not_ask_for_a_usage_chunk_gets_none() -> None:
    written, tail, _ = relayed(STREAM)
    assert b"prompt_tokens" not in written + tail


def test_a_usage_in_the_last_chunk_stays_there() -> None:
    """Some engines send no chunk of its own for it."""
    both = _event({"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": USAGE})
    _, tail, relay = relayed([A, both, DONE])
    assert last_chunk(tail)["usage"] == USAGE
    assert relay.usage is not None


def test_each_of_several_choices_has_its_end_and_only_the_last_is_held() -> None:
    ends = [chunk(finish="stop", index=0), chunk(finish="length", index=1)]
    written, tail, relay = relayed([A, ends[0], B, ends[1], usage_chunk(), DONE])
    assert written == A + ends[0] + B
    assert last_chunk(tail)["choices"][0]["index"] == 1
    assert relay.finish_reason == "length"


def test_two_ends_in_one_read() -> None:
    relay = Relay(wants_usage=False)
    ends = [chunk(finish="stop", index=0), chunk(finish="stop", index=1)]
    assert relay.take([read_event(raw) for raw in ends]) == ends[0]


def test_what_follows_the_end_is_passed_on_in_order() -> None:
    written, tail, _ = relayed([A, STOP, B, DONE])
    assert written == A + STOP + B
    assert tail == DONE, "the last chunk is gone already: the books are in the ledger"


@pytest.mark.parametrize("silent", [KEEP_ALIVE, b"\n", b"event: ping\n\n"])
def test_a_sign_of_life_after_the_end_does_not_cost_the_note(silent: bytes) -> None:
    written, tail, _ = relayed([A, silent, STOP, silent, usage_chunk(), DONE])
    assert written == A + silent + silent
    assert last_chunk(tail)["yuzui"] == NOTE


def test_an_empty_chunk_is_not_passed_on() -> None:
    """Azure opens with one that has no choices; there is nothing in it for the client."""
    assert relayed([_event({"choices": [], "prompt_filter_results": []}), A])[0] == A


def test_a_note_takes_the_place_of_the_workers_own() -> None:
    timed = _event({"choices": [], "usage": USAGE, "yuzui": {"slot_ms": 12.4}})
    written, tail, relay = relayed([A, STOP, timed], wants_usage=True)
    assert written == A
    assert last_chunk(tail.removeprefix(STOP))["yuzui"] == NOTE
    assert tail.count(b'"yuzui"') == 1
    assert relay.usage is not None
    assert relay.usage.slot_ms == 12


def test_everything_else_in_the_last_chunk_is_as_the_engine_wrote_it() -> None:
    """Numbers that no float holds, spacing, and escapes in what nobody reads."""
    odd = (
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}], "big": 1%s, "x": "\\u00ff"}\n\n'
        % (b"0" * 40)
    )
    tail = relayed([A, odd])[1]
    for member in (b'"finish_reason":"stop"', b"1" + b"0" * 40, rb'"\u00ff"'):
        assert member in tail


def test_a_stream_that_said_nothing_still_ends() -> None:
    assert relayed([])[:2] == (b"", DONE)
    assert relayed([DONE], wants_usage=True)[:2] == (b"", DONE)


@pytest.mark.parametrize("wants_usage", [True, False])
def test_the_end_of_the_stream_is_never_the_engines_to_say(wants_usage: bool) -> None:
    relay = Relay(wants_usage=wants_usage)
    for events in (STREAM, [DONE, DONE], [A, DONE, B]):
        assert b"[DONE]" not in relay.take([read_event(raw) for raw in events])
    assert relay.tail(NOTE).count(b"[DONE]") == 1


RAW_EVENTS = st.lists(
    st.sampled_from(
        [OPENING, A, B, STOP, chunk("x", "length", 1), usage_chunk(), KEEP_ALIVE, DONE]
    ),
    max_size=8,
)


@given(RAW_EVENTS, st.lists(st.integers(0, 400), max_size=6), st.booleans())
def test_how_the_bytes_were_cut_makes_no_difference(
    raws: list[bytes], cuts: list[int], wants_usage: bool
) -> None:
    whole = b"".join(raws)
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    results = []
    for reads in ([whole], [whole[a:b] for a, b in pairwise(edges)], raws):
        parser, relay = SseParser(), Relay(wants_usage=wants_usage)
        written = b"".join(relay.take(list(map(read_event, parser.feed(data)))) for data in reads)
        results.append((written, relay.tail(NOTE), relay.usage, relay.finish_reason, relay.deltas))
    assert results[0] == results[1] == results[2]


@given(RAW_EVENTS, st.booleans())
def test_nothing_is_lost_and_nothing_is_added(raws: list[bytes], wants_usage: bool) -> None:
    """Every chunk with content reaches the client, in order and unchanged but for the note."""
    written, tail, _ = relayed(raws, wants_usage=wants_usage)

    def contents(events: list[bytes]) -> list[Any]:
        read: list[Event] = [read_event(raw) for raw in events]
        chosen = [event.raw for event in read if not event.choices_empty and not event.done]
        return [json.loads(data)["choices"] for raw in chosen if (data := data_of(raw))]

    assert contents(SseParser().feed(written + tail)) == contents(raws)


def test_a_stream_that_we_end_ends_every_answer_that_has_not_ended() -> None:
    relay = Relay(wants_usage=True, choices=3)
    events = [chunk("a", index=0), chunk("b", index=2), chunk(finish="stop", index=1)]
    written = b"".join(relay.take([read_event(raw)]) for raw in events)
    assert written == events[0] + events[1]
    tail = relay.curtailed(NOTE)
    assert tail.startswith(events[2])
    last = last_chunk(tail.removeprefix(events[2]))
    ends = [(choice["index"], choice["finish_reason"]) for choice in last["choices"]]
    assert ends == [(0, "length"), (2, "length")]
    assert last["yuzui"] == NOTE


def test_the_end_of_one_answer_of_several_is_passed_on_in_its_place() -> None:
    events = [chunk("a"), chunk(finish="stop"), chunk("b", index=1), chunk(finish="stop", index=1)]
    written, tail, _ = relayed([*events, DONE])
    assert written == b"".join(events[:3])
    assert last_chunk(tail)["choices"][0]["index"] == 1
