from __future__ import annotations

import base64
import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from backends.ark.emulator.faults import Refused
from backends.ark.emulator.pictures import check_geometry, size_of_data_url, sniff
from tests.backends.ark.kit import data_url, picture


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("size", [(15, 15), (640, 480), (301, 77)])
def test_the_size_is_what_pillow_drew(kind: str, size: tuple[int, int]) -> None:
    assert sniff(picture(*size, kind)) == (kind.lower(), *size)
    assert size_of_data_url(data_url(*size, kind)) == size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_a_header_that_is_cut_short_is_refused(kind: str) -> None:
    data = picture(64, 64, kind)
    for length in range(30):
        with contextlib.suppress(Refused):
            assert sniff(data[:length])[1:] == (64, 64)


@given(st.binary(max_size=64), st.sampled_from([b"\xff\xd8", b"RIFFxxxxWEBPVP8X", b"BM", b""]))
def test_whatever_the_bytes_are(data: bytes, head: bytes) -> None:
    with contextlib.suppress(Refused):
        assert len(sniff(head + data)) == 3


def test_lossless_and_extended_webp() -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (123, 45), (1, 2, 3, 4)).save(buffer, "WEBP", lossless=True)
    assert sniff(buffer.getvalue()) == ("webp", 123, 45)
    buffer = io.BytesIO()
    Image.new("RGBA", (123, 45), (1, 2, 3, 4)).save(buffer, "WEBP", exif=b"Exif\0\0")
    assert sniff(buffer.getvalue()) == ("webp", 123, 45)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/PNG;base64,AAAA", "InvalidImageURL.InvalidFormat"),
        ("data:text/plain;base64,AAAA", "InvalidImageURL.InvalidFormat"),
        ("data:image/png;base64,!!!!", "InvalidImageURL.InvalidFormat"),
        ("data:image/png;base64,AAAA", "InvalidImageURL.InvalidFormat"),
        (data_url(20, 20).replace("image/png", "image/jpeg"), "InvalidImageURL.InvalidFormat"),
        (data_url(14, 100), "InvalidParameter"),
        (data_url(15, 3000), "InvalidParameter"),
    ],
)
def test_what_ark_does_not_read(url: str, code: str) -> None:
    with pytest.raises(Refused) as caught:
        size_of_data_url(url)
    assert caught.value.code == code


def test_jpg_is_jpeg() -> None:
    assert size_of_data_url(data_url(20, 20, "JPEG").replace("jpeg", "jpg")) == (20, 20)


def test_ten_megabytes_are_too_many() -> None:
    url = "data:image/png;base64," + base64.b64encode(bytes(10_000_000)).decode()
    with pytest.raises(Refused, match="InvalidParameter"):
        size_of_data_url(url)


def test_geometry() -> None:
    check_geometry(6000, 6000)
    for size in [(6001, 6000), (14, 14), (15, 2251)]:
        with pytest.raises(Refused):
            check_geometry(*size)
