"""Pictures: sizes read without decoding, and every hostile one refused with a typed error."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backends.media import (
    HEADER_BYTES_MAX,
    IMAGE_BYTES_MAX,
    ImageInfo,
    MediaError,
    is_remote,
    sniff,
)

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]


def data_url(raw: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(raw).decode()


def picture(kind: str = "PNG", size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind, **options)
    return out.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and has almost no data: a bomb for whoever believes it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def refused(url: str) -> str:
    with pytest.raises(MediaError) as caught:
        sniff(url)
    assert caught.value.message
    return caught.value.code


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(kind: str) -> None:
    raw = picture(kind)
    expected = ImageInfo(width=64, height=48, format=kind.lower(), bytes=len(raw))
    assert sniff(data_url(raw, kind.lower())) == expected


@pytest.mark.parametrize(
    "options",
    [{"lossless": True}, {"quality": 50}, {"quality": 50, "exif": b"Exif\0\0" + b"x" * 50}],
)
def test_every_kind_of_webp(options: dict[str, Any]) -> None:
    info = sniff(data_url(picture("WEBP", (321, 123), **options), "webp"))
    assert (info.width, info.height) == (321, 123)


def test_jpg_is_jpeg() -> None:
    assert sniff(data_url(picture("JPEG"), "jpg")).format == "jpeg"


@pytest.mark.parametrize("profile_bytes", [20_000, 200_000])
def test_a_size_behind_a_long_colour_profile(profile_bytes: int) -> None:
    raw = picture("JPEG", icc_profile=b"p" * profile_bytes)
    info = sniff(data_url(raw, "jpeg"))
    assert (info.width, info.height, info.bytes) == (64, 48, len(raw))


def test_a_header_without_end_is_refused() -> None:
    raw = picture("JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 65_535) + b"c" * 65_533
    padded = raw[:2] + comment * (HEADER_BYTES_MAX // 65_000 + 1) + raw[2:]
    assert refused(data_url(padded, "jpeg")) == "image_unreadable"


def test_the_pixels_need_not_be_there() -> None:
    raw = picture("PNG", (500, 400))
    assert sniff(data_url(raw[:60])).width == 500


@pytest.mark.parametrize(
    ("width", "height", "code"),
    [
        (15, 15, None),
        (14, 200, "image_dimensions"),
        (200, 14, "image_dimensions"),
        (1, 1, "image_dimensions"),
        (1, 100_000, "image_dimensions"),
        (20, 3000, None),
        (20, 3001, "image_dimensions"),
        (6000, 6000, None),
        (6000, 6001, "image_dimensions"),
        (10_000, 10_000, "image_dimensions"),
        (65_535, 65_535, "image_dimensions"),
        (2**31 - 1, 2**31 - 1, "image_dimensions"),
        (0, 50, "image_unreadable"),
    ],
)
def test_sizes(width: int, height: int, code: str | None) -> None:
    url = data_url(png_of(width, height))
    if code is None:
        assert (sniff(url).width, sniff(url).height) == (width, height)
    else:
        assert refused(url) in (code, "image_dimensions")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_header(kind: str) -> None:
    raw = picture(kind)
    for length in (1, 2, 4, 8, 12, 16, 20):
        assert refused(data_url(raw[:length], kind.lower())) == "image_unreadable"


@pytest.mark.parametrize("declared", ["png", "jpeg", "webp", "gif", "bmp"])
@pytest.mark.parametrize("actual", FORMATS)
def test_the_type_must_be_the_declared_one(declared: str, actual: str) -> None:
    if declared.upper() != actual:
        assert refused(data_url(picture(actual), declared)) == "image_unreadable"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "data:",
        "data:image/png,abc",
        "data:image/png;base64",
        "data:image/PNG;base64,AAAA",
        "data:image/png;charset=x;base64,AAAA",
        "data:text/html;base64,AAAA",
        "data:application/pdf;base64,AAAA",
        "DATA:image/png;base64,AAAA",
        " data:image/png;base64,AAAA",
        "http://example.com/x.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:image/" + "a" * 100 + ";base64,AAAA",
    ],
)
def test_anything_but_a_picture_in_base64(url: str) -> None:
    assert refused(url) == "image_url_malformed"


@pytest.mark.parametrize("kind", ["svg+xml", "tiff", "avif", "heic", "x-icon", "fits", "jp2", "x"])
def test_types_that_are_not_read(kind: str) -> None:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://169.254.169.254/"/></svg>'
    assert refused(data_url(svg, kind)) == "image_type_unsupported"
    assert refused(data_url(svg, "png")) == "image_unreadable"


@pytest.mark.parametrize(
    "polyglot",
    [
        b"%PDF-1.7\n" + picture("PNG"),
        b"<html><script>" + picture("PNG"),
        b"GIF89a" + picture("PNG"),
        picture("JPEG") + picture("PNG"),
        b"PK\x03\x04" + picture("PNG"),
    ],
)
def test_a_file_that_begins_as_something_else(polyglot: bytes) -> None:
    assert refused(data_url(polyglot)) == "image_unreadable"


@pytest.mark.parametrize(
    "data",
    ["", "A", "AA", "AAA", "=", "====", "A===", "AA=A", "AAAA====", "AA==AAAA", "AAA-", "AAA_",
     "AAA\n", "AA A", "AAA%", "AAAÄ", "鱼嘴鱼嘴", "AAA\0", "AAA\ud800"],
)  # fmt: skip
def test_base64_that_is_none(data: str) -> None:
    assert refused("data:image/png;base64," + data) == "image_base64_invalid"


def test_one_bad_letter_far_behind_the_header() -> None:
    url = data_url(picture("BMP", (300, 300)), "bmp")
    for at in (100_000, len(url) - 5, len(url) - 200):
        assert refused(url[:at] + "!" + url[at + 1 :]) == "image_base64_invalid"


def test_a_file_above_the_limit() -> None:
    raw = picture("PNG")
    assert sniff(data_url(raw + b"\0" * (IMAGE_BYTES_MAX - len(raw)))).bytes == IMAGE_BYTES_MAX
    assert refused(data_url(raw + b"\0" * IMAGE_BYTES_MAX)) == "image_too_large"


@pytest.mark.parametrize(
    ("url", "remote"),
    [
        ("http://a/b", True),
        ("HTTPS://a", True),
        ("data:image/png;base64,", False),
        ("ftp://a", False),
    ],
)
def test_is_remote(url: str, remote: bool) -> None:
    assert is_remote(url) is remote


PICTURES = {kind: picture(kind) for kind in FORMATS}


@given(kind=st.sampled_from(FORMATS), data=st.data())
def test_a_damaged_picture_is_read_or_refused_and_nothing_else(
    kind: str, data: st.DataObject
) -> None:
    raw = bytearray(PICTURES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, min(len(raw) - 1, 200)))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    try:
        info = sniff(data_url(bytes(raw[:cut]), kind.lower()))
    except MediaError:
        return
    assert 15 <= info.width * info.height <= 36_000_000


@given(st.text(max_size=60), st.sampled_from(["", "data:image/png;base64,"]))
def test_any_text_is_refused_and_nothing_else(text: str, prefix: str) -> None:
    assert refused(prefix + text).startswith("image_")
