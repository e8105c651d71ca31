"""The event parser: lossless, and blind to how the bytes were cut into reads."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.sse import SseError, SseParser, data_of, encode

STREAM = b'data: {"a":1}\n\n: ping\n\ndata: one\ndata: two\n\nevent: x\ndata: 3\n\ndata: [DONE]\n\n'
DIALECTS = [b"\n", b"\r\n", b"\r"]

lines = st.sampled_from([b"data: x", b"data:", b": c", b"data: y", b"", b"", b"event: e"])
endings = st.sampled_from([b"\n", b"\r\n", b"\r"])
streams = st.lists(st.tuples(lines, endings), max_size=12).map(
    lambda rows: b"".join(a + b for a, b in rows)
)
noise = st.lists(st.sampled_from([b"\n", b"\r", b"d", b"data: "]), max_size=30).map(b"".join)


def parse(*reads: bytes) -> tuple[list[bytes], bool]:
    parser = SseParser()
    events = [event for read in reads for event in parser.feed(read)]
    return events, parser.pending


def test_a_stream_is_cut_into_events_and_keeps_every_byte() -> None:
    events, pending = parse(STREAM)
    assert b"".join(events) == STREAM
    assert [data_of(e) for e in events] == [b'{"a":1}', None, b"one\ntwo", b"3", b"[DONE]"]
    assert not pending


@pytest.mark.parametrize("ending", DIALECTS)
def test_every_line_ending_gives_the_same_data(ending: bytes) -> None:
    stream = STREAM.replace(b"\n", ending)
    whole, _ = parse(stream)
    bytewise, _ = parse(*(stream[i : i + 1] for i in range(len(stream))))
    expected = [b'{"a":1}', None, b"one\ntwo", b"3", b"[DONE]"]
    assert [data_of(e) for e in whole] == expected
    assert bytewise == whole


@given(stream=st.one_of(streams, noise), data=st.data())
def test_cuts_do_not_matter_and_nothing_is_lost(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    edges = [0, *cuts, len(stream)]
    reads = [stream[a:b] for a, b in itertools.pairwise(edges)]
    whole, pending = parse(stream)
    assert parse(*reads) == (whole, pending)
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == (whole, pending)
    assert stream.startswith(b"".join(whole))


@given(st.binary(max_size=200))
def test_any_bytes_are_parsed(raw: bytes) -> None:
    events, _ = parse(raw)
    for event in events:
        data_of(event)


def test_an_event_without_its_blank_line_is_pending() -> None:
    assert parse(b"data: x\n")[1]
    assert parse(b"data: x\n\nda")[1]
    assert not parse(b"data: x\n\n")[1]
    assert not parse(b"\r\n\r")[1]


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_endless_event_is_refused_within_its_limit(size: int) -> None:
    parser = SseParser(event_bytes_max=5000)
    for _ in range(5000 // size):
        assert parser.feed(b"x" * size) == []
    with pytest.raises(SseError):
        parser.feed(b"x" * size)


def test_a_complete_event_above_the_limit_is_refused_too() -> None:
    with pytest.raises(SseError):
        SseParser(event_bytes_max=10).feed(b"data: 0123456789\n\n")
    with pytest.raises(SseError):
        SseParser(event_bytes_max=10).feed(b"data: 0123456789\r\n\r\n")


@pytest.mark.parametrize(
    ("raw", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data:  x\n\n", b" x"),
        (b"data\n\n", b""),
        (b"data: \n\n", b""),
        (b"id: 7\ndata: x\nretry: 1\n\n", b"x"),
        (b"\xef\xbb\xbfdata: x\n\n", b"x"),
        (b": data: x\n\n", None),
        (b"\n", None),
        (b"datax: y\n\n", None),
    ],
)
def test_data_of(raw: bytes, data: bytes | None) -> None:
    assert data_of(raw) == data


@given(st.binary(max_size=60))
def test_what_is_encoded_reads_back_as_one_event(value: bytes) -> None:
    events, pending = parse(encode(value))
    assert not pending
    normal = value.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert [data_of(e) for e in events] == [normal]
