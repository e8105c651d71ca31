"""Sizes read by hand are those that the engines' imaging library finds, or the file is refused."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backends.image_size import PIECES_MAX, READERS, SEGMENTS_MAX, Size

FORMATS = ["png", "jpeg", "webp", "gif", "bmp"]


def picture(kind: str, size: Size = (40, 30), mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 1 if mode in "1LP" else None).save(out, kind.upper(), **options)
    return out.getvalue()


def library_size(raw: bytes, kind: str) -> Size | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(raw), formats=[kind.upper()]) as image:
                return image.size
    except Exception:
        return None


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SAMPLES = {
    kind: [picture(kind), picture(kind, (700, 20)), picture(kind, mode="L")] for kind in FORMATS
}
SAMPLES["png"].append(picture("png", mode="P"))
SAMPLES["jpeg"].append(picture("jpeg", progressive=True, exif=b"Exif\0\0" + b"x" * 40))
SAMPLES["webp"] += [
    picture("webp", lossless=True),
    picture("webp", exif=b"Exif\0\0" + b"x" * 40),
]
SAMPLES["gif"].append(picture("gif", mode="P", comment=b"c" * 600))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_library_agrees(kind: str) -> None:
    for raw in SAMPLES[kind]:
        assert READERS[kind](raw) == library_size(raw, kind) is not None


@given(kind=st.sampled_from(FORMATS), data=st.data())
def test_a_damaged_file_has_one_size_or_none(kind: str, data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from(SAMPLES[kind])))
    for _ in range(data.draw(st.integers(0, 5))):
        at = data.draw(st.integers(0, min(len(raw) - 1, 120)))
        match data.draw(st.integers(0, 3)):
            case 0:
                raw[at] = data.draw(st.sampled_from([0, 1, 0x21, 0x2C, 0xC0, 0xDA, 0xFE, 0xFF]))
            case 1:
                raw[at] = data.draw(st.integers(0, 255))
            case 2:
                raw[at:at] = raw[at : at + data.draw(st.integers(1, 40))]
            case _:
                del raw[at : at + data.draw(st.integers(1, 4))]
        if not raw:
            return
    whole = bytes(raw)
    found, theirs = READERS[kind](whole), library_size(whole, kind)
    if found is not None and theirs is not None:
        assert found == theirs


@pytest.mark.parametrize("kind", FORMATS)
def test_every_prefix_is_the_size_or_nothing(kind: str) -> None:
    for raw in SAMPLES[kind]:
        size = READERS[kind](raw)
        for length in range(len(raw)):
            assert READERS[kind](raw[:length]) in (None, size)


@given(raw=st.binary(max_size=80), kind=st.sampled_from(FORMATS))
def test_any_bytes(raw: bytes, kind: str) -> None:
    READERS[kind](raw)


def test_a_second_header_makes_a_png_two_pictures() -> None:
    raw = picture("png")
    other = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 6000, 6000, 8, 2, 0, 0, 0))
    assert library_size(raw[:33] + other + raw[33:], "png") == (6000, 6000)
    assert READERS["png"](raw[:33] + other + raw[33:]) is None


def test_a_second_frame_header_makes_a_jpeg_two_pictures() -> None:
    raw = picture("jpeg")
    at = raw.index(b"\xff\xc0")
    frame = raw[at : at + 2 + int.from_bytes(raw[at + 2 : at + 4], "big")]
    assert READERS["jpeg"](raw[:at] + frame + raw[at:]) is None


def test_a_frame_beyond_the_screen_of_a_gif() -> None:
    raw = bytearray(picture("gif"))
    at = raw.index(b",\0\0\0\0")
    raw[at + 5 : at + 9] = struct.pack("<HH", 5000, 4000)
    assert READERS["gif"](bytes(raw)) == (5000, 4000) == library_size(bytes(raw), "gif")


def test_a_bmp_from_the_top_and_an_old_one() -> None:
    raw = bytearray(picture("bmp"))
    raw[22:26] = struct.pack("<i", -30)
    assert READERS["bmp"](bytes(raw)) == (40, 30) == library_size(bytes(raw), "bmp")
    old = b"BM" + struct.pack("<IHHIIHHHH", 200, 0, 0, 26, 12, 40, 30, 1, 24) + b"\0" * 100
    assert READERS["bmp"](old) == (40, 30) == library_size(old, "bmp")


def test_endless_segments_are_given_up() -> None:
    png, jpeg, gif = picture("png"), picture("jpeg"), picture("gif")
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 1_000_000))
    for count, expected in ((100, (40, 30)), (SEGMENTS_MAX, None)):
        assert READERS["png"](png[:33] + text * count + png[33:]) == expected
        comment = b"\xff\xfe\0\2"
        assert READERS["jpeg"](jpeg[:2] + comment * count + jpeg[2:]) == expected
        at = gif.index(b",\0\0\0\0")
        extension = b"!\xfe\1a\0"
        assert READERS["gif"](gif[:at] + extension * count + gif[at:]) == expected
    at = gif.index(b",\0\0\0\0")
    long = b"!\xfe" + b"\1a" * (PIECES_MAX + 1) + b"\0"
    assert READERS["gif"](gif[:at] + long + gif[at:]) is None
