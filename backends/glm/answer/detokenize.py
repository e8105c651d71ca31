"""Bytes of tokens -> text, as it comes; and stop strings, wherever the token borders fall.

Both are incremental and their result does not depend on how the input was cut: pushing
everything at once or byte by byte gives the same text.
"""

from __future__ import annotations

import codecs


class Utf8Stream:
    """Holds back the bytes of a character until it is whole.

    One Chinese character or emoji often spans several byte-level tokens. Bytes that can no longer
    become a character turn into U+FFFD, one per maximal invalid part (Unicode 16, section 3.9),
    which is also what the stock tokenizer's decoder does.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, raw: bytes) -> str:
        """Text that is complete with these bytes, possibly ""."""
        return self._decoder.decode(raw)

    def flush(self) -> str:
        """What the bytes still held amount to (U+FFFD or ""); the stream may go on afterwards."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class StopStrings:
    """Ends a text before the first stop string and never lets a part of one out early.

    "First" is the match that ends first, the longest of those: the only choice that a
    reader of one character at a time could make as well.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        if not all(stops):
            raise ValueError("an empty stop string would match everywhere")
        self._stops = stops
        self._held = ""
        self.matched: str | None = None

    def push(self, text: str) -> str:
        """Text that is certainly not part of a stop string; "" after a match."""
        if self.matched is not None:
            return ""
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self._stops]
        ends = [(at + len(stop), at, stop) for at, stop in found if at >= 0]
        if ends:
            _, at, self.matched = min(ends)
            text, self._held = self._held[:at], ""
            return text
        keep = self._partial_length()
        out = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return out

    def flush(self) -> str:
        """The text held back, once nothing more will come."""
        text, self._held = self._held, ""
        return text

    def _partial_length(self) -> int:
        """Length of the longest tail of the held text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0
