"""Server-sent events: bytes <-> events, without a socket.

    parser = SseParser()
    for raw in parser.feed(data): ...      # complete events, each with its blank line

The bytes are kept: what `feed` returns, joined, is what was fed, less the unfinished rest. So an
event can be relayed as it came. How the bytes were cut into reads makes no difference.

An event ends with a blank line; a line ends with LF, CR LF or CR. A blank line where an event would
begin is an event of its own without data. A lone CR at the very end of a read may be half of a
CR LF, so it waits for the next byte, unless another CR stands before it.
"""

from __future__ import annotations

import re

# One event is held in memory until its blank line comes. An event of a chat stream is some hundred
# bytes; tool arguments or logprobs sent in one piece reach some hundred kilobytes.
EVENT_BYTES_MAX = 1024 * 1024

_END = re.compile(rb"\n\n|\r\r|\n\r\n|\n\r(?=[^\n])")
_LEADING = re.compile(rb"\n|\r\n|\r(?=[^\n])")
_LINE = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class SseError(Exception):
    """The bytes are not a stream of events that we can hold: an event is longer than the limit."""


class SseParser:
    """Cuts a byte stream into raw events. One instance per stream."""

    def __init__(self, *, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._limit = event_bytes_max
        self._rest = bytearray()
        self._searched = 0  # no event ends before this offset of the rest

    @property
    def pending(self) -> bool:
        """At the end of the input: an event has begun and its blank line never came."""
        return bool(self._rest.strip(b"\r\n"))

    def feed(self, data: bytes) -> list[bytes]:
        """The events that `data` completes. Raises SseError; the parser is useless afterwards."""
        if not self._rest and b"\r" not in data:
            return self._feed_lines(data)
        self._rest += data
        return self._cut()

    def _feed_lines(self, data: bytes) -> list[bytes]:
        """The common dialect: only LF, nothing left from the read before."""
        events: list[bytes] = []
        begin = 0
        while (at := data.find(b"\n\n", begin)) >= 0:
            if data[begin] == 0x0A:  # a blank line of its own
                events.append(b"\n")
                begin += 1
                continue
            events.append(data[begin : at + 2] if begin or at + 2 < len(data) else data)
            self._check(at + 2 - begin)
            begin = at + 2
        if begin < len(data):
            self._rest += data[begin:]
            if data[begin] == 0x0A:
                return events + self._cut()
            self._searched = len(self._rest)
            self._check(len(self._rest))
        return events

    def _cut(self) -> list[bytes]:
        rest = self._rest
        events: list[bytes] = []
        begin = 0
        searched = self._searched
        while begin < len(rest):
            if lead := _LEADING.match(rest, begin):
                events.append(bytes(lead[0]))
                begin = lead.end()
                continue
            # An end may have begun up to three bytes before the part that is new.
            end = _END.search(rest, max(begin, searched - 3))
            if end is None:
                break
            events.append(bytes(rest[begin : end.end()]))
            self._check(end.end() - begin)
            begin = end.end()
        if begin:
            del rest[:begin]
        self._searched = len(rest)
        self._check(len(rest))
        return events

    def _check(self, length: int) -> None:
        if length > self._limit:
            raise SseError(f"an event is longer than {self._limit} bytes")


def data_of(raw: bytes) -> bytes | None:
    """The joined `data:` lines of one raw event; None when it has none (a comment)."""
    if raw.startswith(b"data: ") and raw.endswith(b"\n\n"):
        value = raw[6:-2]
        if b"\n" not in value and b"\r" not in value:
            return value
    found: list[bytes] = []
    for line in _LINE.split(raw.removeprefix(_BOM)):
        name, _, value = line.partition(b":")
        if name == b"data":
            found.append(value.removeprefix(b" "))
    return b"\n".join(found) if found else None


def encode(data: bytes) -> bytes:
    """One event that carries `data`, as many `data:` lines as it has lines."""
    if b"\n" in data or b"\r" in data:
        return b"".join(b"data: " + line + b"\n" for line in _LINE.split(data)) + b"\n"
    return b"data: " + data + b"\n\n"
