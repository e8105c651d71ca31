from __future__ import annotations

import base64
import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.glm46v.image_processing_pil_glm46v import smart_resize

from backends.glm.errors import WorkerError
from backends.glm.model.load import Checkpoint
from backends.glm.request import images
from backends.glm.request.images import decode_picture, fitted_size, open_picture
from tests.backends.glm.conftest import data_url, picture


def refused(url: str) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        decode_picture(open_picture(url, "where"), "where")
    assert (caught.value.status, caught.value.param) == (400, "where")
    return caught.value


def as_url(raw: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(raw).decode()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    idat = b"IDAT" + zlib.compress(b"")
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", len(idat) - 4) + idat + b"\0\0\0\0"


@pytest.mark.parametrize("form", images.FORMATS)
def test_every_listed_format_is_read(form: str) -> None:
    decoded = decode_picture(open_picture(data_url(picture(40, 30), form), "x"), "x")
    assert (decoded.mode, decoded.size) == ("RGB", (40, 30))
    grey = decode_picture(open_picture(data_url(picture(40, 30).convert("L"), form), "x"), "x")
    assert (grey.convert("RGB").mode, grey.size) == ("RGB", (40, 30))


@pytest.mark.parametrize("form", ["TIFF", "PPM", "ICO", "TGA"])
def test_no_other_format_is_read(form: str) -> None:
    assert refused(data_url(picture(32, 32), form)).code == "invalid_image"


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1/a.png",
        "https://example.com/a.png,base64",
        "file:///etc/passwd",
        "/etc/passwd",
        "",
        "data:image/png,plain",
        "data:image/png;base64",
        "data:image/png;base64,@@@",
        "data:image/png;base64,YQ",
    ],
)
def test_only_data_urls_in_base64_are_taken(url: str) -> None:
    assert refused(url).code == "invalid_image_url"


def test_base64_in_lines_is_read() -> None:
    head, payload = data_url(picture(40, 30)).split(",")
    lines = "\r\n".join(payload[i : i + 76] for i in range(0, len(payload), 76))
    assert open_picture(f"{head},{lines}", "x").size == (40, 30)


def test_the_size_is_refused_from_the_header_alone() -> None:
    assert "pixels" in refused(as_url(png_header(7000, 7000))).message
    assert "pixels" in refused(as_url(png_header(60000, 60000))).message  # Pillow's own bomb limit
    assert "201 x 1" in refused(as_url(png_header(201, 1))).message


def test_too_many_bytes_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "IMAGE_BYTES_MAX", 300)
    assert "bytes" in refused(as_url(b"\0" * 400)).message


@pytest.mark.parametrize("form", images.FORMATS)
@given(data=st.data())
def test_broken_files_are_the_callers_fault(form: str, data: st.DataObject) -> None:
    """Cut off anywhere, or with a few bytes changed: a picture or a 400, never anything else."""
    buffer = io.BytesIO()
    picture(33, 21).save(buffer, form)
    raw = bytearray(buffer.getvalue()[: data.draw(st.integers(0, len(buffer.getvalue())))])
    for _ in range(data.draw(st.integers(0, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WorkerError):
        decode_picture(open_picture(as_url(bytes(raw)), "x"), "x")


Colour = tuple[int, int, int]
CLEAR: Colour = (255, 255, 255)  # what a transparent pixel is shown as


def png(
    depth: int, colour: int, row: bytes, width: int, *, clear: bytes = b"", palette: bytes = b""
) -> bytes:
    """A PNG of one row in any of the depths and colour types of the standard."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))
    parts = [head]
    parts += [chunk(b"PLTE", palette)] if palette else []
    parts += [chunk(b"tRNS", clear)] if clear else []
    parts += [chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def grey(*values: int) -> list[Colour]:
    return [(value, value, value) for value in values]


PALETTE = bytes([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
RGB16 = words(0, 0x8040, 0xFFFF, 0x0100, 0x0200, 0x0300)
BITS = bytes([0b00_01_10_11])


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (png(1, 0, bytes([0b0110_0000]), 4), grey(0, 255, 255, 0)),
        (png(1, 0, bytes([0b0110_0000]), 4, clear=words(0)), grey(255, 255, 255, 255)),
        (png(2, 0, BITS, 4), grey(0, 85, 170, 255)),
        (png(2, 0, BITS, 4, clear=words(1)), grey(0, 255, 170, 255)),
        (png(4, 0, BITS, 2), grey(17, 187)),
        (png(4, 0, BITS, 2, clear=words(11)), grey(17, 255)),
        (png(8, 0, bytes([7, 9]), 2), grey(7, 9)),
        (png(8, 0, bytes([7, 9]), 2, clear=words(9)), grey(7, 255)),
        (png(16, 0, words(0, 0x8000, 0xFFFF, 0x0101), 4), grey(0, 128, 255, 1)),
        (png(16, 0, words(0, 0x8000, 0x8001), 3, clear=words(0x8000)), grey(0, 255, 128)),
        (png(8, 2, bytes(range(6)), 2), [(0, 1, 2), (3, 4, 5)]),
        (png(8, 2, bytes(range(6)), 2, clear=words(3, 4, 5)), [(0, 1, 2), CLEAR]),
        (png(16, 2, RGB16, 2), [(0, 128, 255), (1, 2, 3)]),
        (png(16, 2, RGB16, 2, clear=words(0, 0x8040, 0xFFFF)), [CLEAR, (1, 2, 3)]),
        (png(1, 3, bytes([0b0100_0000]), 2, palette=PALETTE), [(10, 20, 30), (40, 50, 60)]),
        (png(2, 3, BITS, 4, palette=PALETTE, clear=bytes([255, 0])),
         [(10, 20, 30), CLEAR, (70, 80, 90), (100, 110, 120)]),
        (png(8, 3, bytes([3, 0]), 2, palette=PALETTE, clear=bytes([102])),
         [(100, 110, 120), (157, 161, 165)]),
        (png(8, 4, bytes([8, 255, 8, 0]), 2), [(8, 8, 8), CLEAR]),
        (png(16, 4, words(0x8000, 0xFFFF, 0x8000, 0), 2), [(128, 128, 128), CLEAR]),
        (png(8, 6, bytes([1, 2, 3, 255, 1, 2, 3, 0]), 2), [(1, 2, 3), CLEAR]),
        (png(16, 6, words(0, 0x8000, 0xFFFF, 0xFFFF, 9, 9, 9, 0), 2), [(0, 128, 255), CLEAR]),
    ],
)  # fmt: skip
def test_every_kind_of_png(raw: bytes, expected: list[Colour]) -> None:
    """Depths and colour types of the standard, with and without a transparent colour."""
    decoded = decode_picture(open_picture(as_url(raw), "x"), "x").convert("RGB")
    assert [decoded.getpixel((x, 0)) for x in range(decoded.width)] == expected


def spread(mode: str) -> Image.Image:
    """Something of every shade, in any mode that can be saved."""
    return Image.linear_gradient("L").resize((16, 16)).convert("RGB").convert(mode)


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        ("JPEG", "L", {}), ("JPEG", "RGB", {}), ("JPEG", "CMYK", {}),
        ("WEBP", "RGB", {"lossless": True}), ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "L", {"lossless": True}),
        ("GIF", "1", {}), ("GIF", "L", {}), ("GIF", "P", {}), ("GIF", "RGB", {}),
        ("BMP", "1", {}), ("BMP", "L", {}), ("BMP", "P", {}), ("BMP", "RGB", {}),
        ("BMP", "RGBA", {}),
        ("PNG", "1", {}), ("PNG", "L", {}), ("PNG", "LA", {}), ("PNG", "P", {}),
        ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "I;16", {}),
    ],
)  # fmt: skip
def test_every_mode_of_the_other_formats(form: str, mode: str, options: dict[str, Any]) -> None:
    """What comes out is what went in, within what the format loses; an opaque alpha is no layer."""
    if mode == "I;16":
        whole = spread("L")
        made = Image.fromarray(np.asarray(whole).astype(np.uint16) * 257)
    else:
        made = spread(mode)
        whole = made.convert("RGB")
    decoded = decode_picture(open_picture(data_url(made, form, **options), "x"), "x")
    assert decoded.mode in ("L", "RGB")
    ours, theirs = (np.asarray(p.convert("RGB"), dtype=int) for p in (decoded, whole))
    assert np.abs(ours - theirs).max() <= (6 if form == "JPEG" else 0)


@pytest.mark.parametrize("bits", [15, 16])
def test_a_bmp_of_two_bytes_a_pixel(bits: int) -> None:
    """555 as such, 565 by masks: red, green, blue and white at full strength."""
    green = 5 if bits == 15 else 6
    red = 5 + green
    colours = [31 << red, (2**green - 1) << 5, 31, (1 << bits) - 1]
    masks = struct.pack("<III", 31 << red, (2**green - 1) << 5, 31) if bits == 16 else b""
    start = 54 + len(masks)
    head = b"BM" + struct.pack("<IHHI", start + 8, 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 16, 3 if masks else 0, 8, 0, 0, 0, 0)
    raw = head + info + masks + struct.pack("<4H", *colours)
    decoded = decode_picture(open_picture(as_url(raw), "x"), "x").convert("RGB")
    pixels = [decoded.getpixel((x, 0)) for x in range(4)]
    assert pixels == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_a_range_that_nobody_knows_is_refused(mode: str) -> None:
    with pytest.raises(WorkerError) as caught:
        decode_picture(spread("L").convert(mode), "where")
    assert "8 or 16 bits" in caught.value.message


def test_an_animation_gives_its_first_frame() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    decoded = decode_picture(open_picture(as_url(buffer.getvalue()), "x"), "x")
    assert decoded.getpixel((0, 0)) == (255, 0, 0)


def test_transparency_is_shown_over_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.putpixel((0, 0), (0, 0, 0, 255))
    decoded = decode_picture(open_picture(data_url(clear), "x"), "x")
    assert (decoded.getpixel((0, 0)), decoded.getpixel((1, 1))) == ((0, 0, 0), (255, 255, 255))


def test_a_photo_taken_sideways_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the first row is the right side
    decoded = decode_picture(open_picture(data_url(picture(40, 30), "JPEG", exif=exif), "x"), "x")
    assert decoded.size == (30, 40)


@given(st.integers(1, 150), st.integers(1, 150))
def test_token_counts_before_and_after_processing_agree(
    checkpoint: Checkpoint, width: int, height: int
) -> None:
    vision = checkpoint.prompts.vision
    pixels = vision.pixels(picture(width, height))
    assert pixels.tokens == (vision.tokens(width=width, height=height),)
    assert pixels.values.shape[0] == 4 * pixels.tokens[0]
    assert pixels.values.dtype == np.float32


@given(
    height=st.integers(1, 7000),
    width=st.integers(1, 7000),
    merge=st.integers(1, 3),
    edges=st.tuples(st.integers(1, 50_000), st.integers(50_000, 10_000_000)),
)
def test_the_size_that_is_seen_is_the_processors(
    height: int, width: int, merge: int, edges: tuple[int, int]
) -> None:
    if max(height, width) > images.IMAGE_ASPECT_MAX * min(height, width):
        return
    factor = 14 * merge
    try:
        theirs = smart_resize(
            2, height, width, factor=factor, min_pixels=edges[0], max_pixels=edges[1]
        )
    except ValueError:  # just above its aspect limit after rounding
        return
    ours = fitted_size(height=height, width=width, factor=factor, frames=2, edges=edges)
    assert ours == theirs


@pytest.mark.parametrize("mode", ["RGB", "L"])
@given(st.integers(1, 400), st.integers(1, 400))
def test_what_is_seen_is_what_the_processor_makes_of_the_whole_picture(
    checkpoint: Checkpoint, mode: str, width: int, height: int
) -> None:
    if max(height, width) > images.IMAGE_ASPECT_MAX * min(height, width):
        return
    vision = checkpoint.prompts.vision
    whole = picture(8, 8).resize((width, height)).convert(mode)
    theirs = vision._processor(images=[whole.convert("RGB")], return_tensors="np")
    ours = vision.pixels(whole)
    assert np.array_equal(ours.values, theirs["pixel_values"])
    assert np.array_equal(ours.grid, theirs["image_grid_thw"])


def test_limits_are_those_of_one_still_frame(checkpoint: Checkpoint) -> None:
    limits = checkpoint.prompts.vision.limits
    assert (limits.factor, limits.min_pixels, limits.max_pixels) == (28, 28 * 28, 24 * 28 * 28)
    assert checkpoint.prompts.vision.tokens(width=5000, height=5000) <= 24
