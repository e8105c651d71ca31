"""Type and size of a picture, read from its first bytes and never decoded.

Only what the header says is needed to count tokens, and a header cannot be a decompression bomb.
Read are JPEG, PNG, GIF, WebP and BMP; the rarer types that Ark also takes are refused here.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct

from backends.ark.emulator.faults import Refused

PICTURE_BYTES_MAX = 10 * 1000 * 1000  # one picture, docs 82379/1362931
SIDE_PX_MIN = 15  # "both sides > 14 px"
AREA_PX_MIN, AREA_PX_MAX = 196, 36_000_000
ASPECT_MAX = 150

_DATA_URL = re.compile(r"data:image/([a-z0-9.+-]+);base64,", re.ASCII)
# JPEG markers that start a frame and so carry the size: SOF0..SOF15 without DHT, JPG and DAC.
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def size_of_data_url(url: str) -> tuple[int, int]:
    """Width and height in pixels of a base64 data URL. Raises Refused."""
    match = _DATA_URL.match(url)
    if match is None:
        raise Refused("InvalidImageURL.InvalidFormat", "Expected data:image/<type>;base64,<data>.")
    try:
        data = base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused("InvalidImageURL.InvalidFormat", "The base64 text is not valid.") from error
    if len(data) >= PICTURE_BYTES_MAX:
        raise Refused("InvalidParameter", "An image must be smaller than 10 MB.")
    kind, width, height = sniff(data)
    declared = match.group(1)
    if kind != ("jpeg" if declared == "jpg" else declared):
        raise Refused(
            "InvalidImageURL.InvalidFormat", f"Declared image/{declared}, the bytes are {kind}."
        )
    check_geometry(width, height)
    return width, height


def check_geometry(width: int, height: int) -> None:
    """Raises Refused when a picture is too small, too large or too long."""
    area_fits = AREA_PX_MIN <= width * height <= AREA_PX_MAX
    if min(width, height) < SIDE_PX_MIN or not area_fits:
        raise Refused("InvalidParameter", f"An image of {width}x{height} px is out of range.")
    if max(width, height) > ASPECT_MAX * min(width, height):
        raise Refused("InvalidParameter", f"An image of {width}x{height} px is too long.")


def sniff(data: bytes) -> tuple[str, int, int]:
    """Bytes -> (type, width, height). Raises Refused for anything that is not understood."""
    try:
        found = _sniff(data)
    except (struct.error, IndexError):
        found = None  # the header is cut short
    if found is None:
        raise Refused("InvalidImageURL.InvalidFormat", "The image is not of a readable type.")
    return found


def _sniff(data: bytes) -> tuple[str, int, int] | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return ("png", *struct.unpack_from(">II", data, 16))
    if data.startswith((b"GIF87a", b"GIF89a")):
        return ("gif", *struct.unpack_from("<HH", data, 6))
    if data.startswith(b"BM"):
        width, height = struct.unpack_from("<ii", data, 18)
        return ("bmp", width, abs(height))  # a negative height means top to bottom
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    return None


def _webp(data: bytes) -> tuple[str, int, int] | None:
    """The three forms of WebP: lossy, lossless, extended."""
    chunk = data[12:16]
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return ("webp", width & 0x3FFF, height & 0x3FFF)
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return ("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if chunk == b"VP8X" and len(data) >= 30:
        width = int.from_bytes(data[24:27], "little") + 1
        return ("webp", width, int.from_bytes(data[27:30], "little") + 1)
    return None


def _jpeg(data: bytes) -> tuple[str, int, int] | None:
    """Walks the segments up to the first frame header."""
    at = 2
    while at < len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return ("jpeg", width, height)
        (length,) = struct.unpack_from(">H", data, at + 2)
        at += 2 + max(length, 2)
    return None
