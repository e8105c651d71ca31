"""Halves of characters in JSON: what to say about `"\\ud800"`, which is valid JSON and no text.

Decoders refuse it, some by saying that the JSON is broken or cut off, and a caller who looks for
that finds nothing. It comes from cutting text between the two halves of an emoji.
"""

from __future__ import annotations

import re

# An escape of a half that stands alone; an escaped backslash before `ud800` is none.
_HALF = re.compile(
    rb"(?<!\\)(?:\\\\)*\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})(?<!\\)(?:\\\\)*\\u[dD][c-fC-F]"
)
HALF_CHARACTER = (
    "escapes half of a character (one of \\ud800 to \\udfff without its partner): send text as "
    "UTF-8, and cut it between characters"
)


def half_character(raw: bytes | bytearray) -> bool:
    """Whether JSON that a decoder has refused holds half of a surrogate pair. It is valid JSON, and
    text in no encoding: no model can read it."""
    return _HALF.search(raw) is not None
