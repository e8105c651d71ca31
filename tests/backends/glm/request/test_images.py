from __future__ import annotations

import base64
import contextlib
import io
import struct
import zlib

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
