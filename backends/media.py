"""Pictures in a request: what they are and how large, without decoding their pixels.

    sniff("data:image/png;base64,....") -> ImageInfo(width=640, height=480, format="png", bytes=...)

Only the part of the file that holds its size is decoded and looked at (see `image_size`); the rest
is checked to be base64. That the pixels are intact is for the engine to find out: decoding them
here would hand every caller a way to fill the gateway's memory.

The limits are those which both the local engines and Ark hold, so that a picture that is accepted
here can go to either.
"""

from __future__ import annotations

import binascii
import re

import msgspec

from backends.image_size import READERS, Size
from backends.limits import IMAGE_PIXELS_MAX

# Ark refuses larger files.
IMAGE_BYTES_MAX = 10_000_000
# Ark: both sides above 14 pixels, which is also one patch of GLM's vision tower.
SIDE_PIXELS_MIN = 15
# Ark's limit; the processor of GLM refuses from 200 on.
ASPECT_RATIO_MAX = 150
# The size stands in the first bytes, or behind the camera data and colour profile of a JPEG. Those
# of most files end within the first bound; a header that passes the second is refused.
HEADER_BYTES_FIRST = 12_288
HEADER_BYTES_MAX = 1_048_575

# Not a registered type, and what many clients write.
_ALIASES = {"jpg": "jpeg"}
_PIECE = 16_384
_PREFIX = re.compile(r"data:image/([a-z0-9.+-]{1,32});base64,")
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_REMOTE = re.compile(r"https?://", re.IGNORECASE)


class MediaError(Exception):
    """A picture that is not accepted. `message` is for the caller and quotes nothing of it.

    Codes: image_url_malformed, image_type_unsupported, image_base64_invalid, image_too_large,
    image_unreadable, image_dimensions.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ImageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One picture. `bytes`: length of the file, decoded from base64."""

    width: int
    height: int
    format: str  # png | jpeg | webp | gif | bmp
    bytes: int


def is_remote(url: str) -> bool:
    """Whether somebody would have to fetch it."""
    return _REMOTE.match(url) is not None


def sniff(data_url: str) -> ImageInfo:
    """Type and size of a `data:image/...;base64,` URL. Raises MediaError."""
    match = _PREFIX.match(data_url)
    if match is None:
        raise MediaError(
            "image_url_malformed", "an image must be given as data:image/<type>;base64,<data>"
        )
    declared = _ALIASES.get(match[1], match[1])
    if declared not in READERS:
        raise MediaError("image_type_unsupported", "images must be png, jpeg, webp, gif or bmp")
    start = match.end()
    padding = 2 if data_url.endswith("==") else 1 if data_url.endswith("=") else 0
    length = len(data_url) - start
    if length == 0 or length % 4:
        raise _not_base64()
    size = length // 4 * 3 - padding
    if size > IMAGE_BYTES_MAX:
        raise MediaError("image_too_large", f"an image has at most {IMAGE_BYTES_MAX} bytes")
    _check_alphabet(data_url, start, len(data_url) - padding)
    width, height = _dimensions(data_url, start, size, declared)
    _check_dimensions(width, height)
    return ImageInfo(width=width, height=height, format=declared, bytes=size)


def _check_alphabet(data_url: str, start: int, end: int) -> None:
    """Every letter is one of base64: deleting the alphabet leaves nothing. That takes a quarter of
    the time of decoding; small pieces stay in the processor's cache."""
    if not data_url.isascii():
        raise _not_base64()
    for at in range(start, end, _PIECE):
        if data_url[at : min(at + _PIECE, end)].encode().translate(None, _ALPHABET):
            raise _not_base64()


def _dimensions(data_url: str, start: int, size: int, declared: str) -> Size:
    """Width and height from the header. Most headers are in the first few kilobytes; one behind a
    long colour profile costs a second look."""
    for bound in (HEADER_BYTES_FIRST, HEADER_BYTES_MAX):
        head = binascii.a2b_base64(data_url[start : start + bound // 3 * 4])
        found = READERS[declared](head)
        if found is not None:
            return found
        if len(head) >= size:
            break
    raise MediaError(
        "image_unreadable", "the image is damaged or is not of the type that its URL names"
    )


def _check_dimensions(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if short < SIDE_PIXELS_MIN or width * height > IMAGE_PIXELS_MAX:
        raise _wrong_dimensions()
    if long > short * ASPECT_RATIO_MAX:
        raise _wrong_dimensions()


def _wrong_dimensions() -> MediaError:
    return MediaError(
        "image_dimensions",
        f"both sides of an image need at least {SIDE_PIXELS_MIN} pixels, the whole at most "
        f"{IMAGE_PIXELS_MAX}, and one side at most {ASPECT_RATIO_MAX} times the other",
    )


def _not_base64() -> MediaError:
    return MediaError("image_base64_invalid", "the image's data is not valid base64")
