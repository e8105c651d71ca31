"""A stream on its way to the client: bytes in, bytes out, and the books in the last chunk.

Events are relayed as they came. Only the end is held back: what a stream cost is known after the
engine's usage chunk, and the client is told in the last chunk that it expects anyway (the usage
chunk if it asked for one, else the one with the finish reason). `[DONE]` is ours to write, so that
a broken stream can never end with one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from backends import sse
from backends.base import Event
from policies.types import Usage

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
DONE = b"data: [DONE]\n\n"


class Relay:
    """State of one relayed stream.

    wants_usage: the client asked for a usage chunk; otherwise the engine's is not passed on.
    choices:     answers that were asked for
    """

    def __init__(self, *, wants_usage: bool, choices: int = 1) -> None:
        self._wants_usage = wants_usage
        self._open = dict.fromkeys(range(choices))
        self._finish: Event | None = None
        self._usage_event: Event | None = None
        self._last = b""
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.deltas = 0

    def take(self, batch: Sequence[Event]) -> bytes:
        """Bytes to write to the client now, in order; b"" when all of the batch is held back."""
        out: list[bytes] = []
        for event in batch:
            if event.usage is not None:
                self.usage = event.usage
            if event.done:
                continue
            if event.choices_empty:
                if event.usage is not None:
                    self._usage_event = event
                continue
            if self._finish is not None and not _silent(event):  # it was not the last one
                out.append(self._finish.raw)
                self._finish = None
            if event.finish_reason is not None:
                self.finish_reason = event.finish_reason
                for index in event.finished:
                    self._open.pop(index, None)
                self._finish = event
                continue
            self.deltas += event.has_delta
            self._last = event.raw
            out.append(event.raw)
        return b"".join(out)

    def tail(self, note: Mapping[str, object]) -> bytes:
        """The end of a stream that ended well. note: the `yuzui` object of its last chunk."""
        last = [event.raw for event in (self._finish,) if event is not None]
        if self._wants_usage and self._usage_event is not None:
            last.append(self._usage_event.raw)
        if last:
            last[-1] = _with_note(last[-1], note)
        return b"".join(last) + DONE

    def curtailed(self, note: Mapping[str, object]) -> bytes:
        """The end of a stream that we end ourselves: a last chunk with finish_reason length for
        every answer that has not ended yet, made from the last one that came."""
        try:
            chunk = _members.decode(sse.data_of(self._last) or b"{}")
        except msgspec.DecodeError:
            chunk = {}
        chunk.pop("usage", None)
        ends = [{"index": i, "delta": {}, "finish_reason": "length"} for i in self._open]
        chunk["choices"] = msgspec.Raw(msgspec.json.encode(ends))
        chunk["yuzui"] = msgspec.Raw(msgspec.json.encode(note))
        held = b"" if self._finish is None else self._finish.raw
        return held + sse.encode(msgspec.json.encode(chunk)) + DONE


def _silent(event: Event) -> bool:
    """A comment or a blank line, which some engines send to keep a connection alive."""
    return sse.data_of(event.raw) is None


def _with_note(raw: bytes, note: Mapping[str, object]) -> bytes:
    """The event with a `yuzui` member; its other members stay as they were written."""
    chunk = _members.decode(sse.data_of(raw) or b"{}")
    chunk["yuzui"] = msgspec.Raw(msgspec.json.encode(note))
    return sse.encode(msgspec.json.encode(chunk))
