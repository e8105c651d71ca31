"""Width and height from the first bytes of a picture file, in a bounded number of steps.

An imaging library reads more than the size when it opens a file: compressed texts of a PNG are
inflated, every marker of a JPEG is looked at. A file of 80 KB can keep it busy for a third of a
second, which an event loop cannot spare. So the size is read here, and strictly: a file that could
be read in two ways (two headers, bytes between the segments) is refused. The tests hold that the
library which the engines use finds the same size in whatever is accepted here.

Each reader takes the head of a file and returns (width, height), or None when the head is not of
that type, is damaged, or is not complete.
"""

from __future__ import annotations

from collections.abc import Callable

# Segments before the pixels. A photograph with camera data, a preview and a colour profile has some
# twenty; a PNG with texts as many.
SEGMENTS_MAX = 256
# Pieces of at most 255 bytes that the comments of a GIF consist of: a megabyte of comments.
PIECES_MAX = 4096

Size = tuple[int, int]

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# Tables, application data, comments: they have a length and are passed over.
_JPEG_SKIPPED = frozenset({0xC4, 0xCC, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, *range(0xE0, 0xF0), 0xFE})
_BMP_LONG_HEADERS = (40, 52, 56, 64, 108, 124)


def png(head: bytes) -> Size | None:
    """The header is the first chunk and the only one of its kind before the pixels."""
    if head[:8] != b"\x89PNG\r\n\x1a\n" or head[8:16] != b"\0\0\0\rIHDR" or len(head) < 33:
        return None
    at = 33
    for _ in range(SEGMENTS_MAX):
        kind = head[at + 4 : at + 8]
        if kind == b"IDAT":
            return _big(head, 16, 4), _big(head, 20, 4)
        if len(kind) < 4 or kind == b"IHDR":
            return None
        at += 12 + _big(head, at, 4)
    return None


def jpeg(head: bytes) -> Size | None:
    """The frame header is the only one before the first scan."""
    if head[:2] != b"\xff\xd8":
        return None
    size: Size | None = None
    at = 2
    for _ in range(SEGMENTS_MAX):
        if at + 4 > len(head) or head[at] != 0xFF:
            return None
        marker, length = head[at + 1], _big(head, at + 2, 2)
        if marker == 0xDA:
            return size
        if marker in _JPEG_FRAMES:
            if size is not None or length < 8 or at + 9 > len(head):
                return None
            size = _big(head, at + 7, 2), _big(head, at + 5, 2)
        elif marker not in _JPEG_SKIPPED or length < 2:
            return None
        at += 2 + length
    return None


def gif(head: bytes) -> Size | None:
    """The screen, made larger if the first frame reaches beyond it."""
    if head[:6] not in (b"GIF87a", b"GIF89a") or len(head) < 13:
        return None
    flags = head[10]
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    pieces = 0
    for _ in range(SEGMENTS_MAX):
        kind = head[at : at + 1]
        if kind == b",":
            if at + 9 > len(head):
                return None
            left, top, width, height = (_little(head, at + o, 2) for o in (1, 3, 5, 7))
            return (
                max(_little(head, 6, 2), left + width),
                max(_little(head, 8, 2), top + height),
            )
        if kind != b"!":
            return None
        at += 2
        while at < len(head) and head[at]:
            at += 1 + head[at]
            pieces += 1
            if pieces > PIECES_MAX:
                return None
        at += 1
    return None


def bmp(head: bytes) -> Size | None:
    """The old header has two bytes for each side, the others four; a negative height is a picture
    that is stored from the top."""
    if head[:2] != b"BM" or len(head) < 30:
        return None
    length = _little(head, 14, 4)
    if length == 12:
        return _little(head, 18, 2), _little(head, 20, 2)
    if length not in _BMP_LONG_HEADERS:
        return None
    height = _little(head, 22, 4)
    return _little(head, 18, 4), 2**32 - height if head[25] == 0xFF else height


def webp(head: bytes) -> Size | None:
    """RIFF, and a first chunk of one of three kinds: extended, lossless, lossy."""
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return None
    kind = head[12:16]
    if kind == b"VP8X":
        return _little(head, 24, 3) + 1, _little(head, 27, 3) + 1
    if kind == b"VP8L" and head[20] == 0x2F:
        bits = _little(head, 21, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        return _little(head, 26, 2) & 0x3FFF, _little(head, 28, 2) & 0x3FFF
    return None


READERS: dict[str, Callable[[bytes], Size | None]] = {
    "png": png,
    "jpeg": jpeg,
    "webp": webp,
    "gif": gif,
    "bmp": bmp,
}


def _big(data: bytes, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "big")


def _little(data: bytes, at: int, length: int) -> int:
    return int.from_bytes(data[at : at + length], "little")
