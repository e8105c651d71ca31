"""Pictures: a data URL -> a checked PIL picture -> the pixels and grid that GLM's encoder wants.

One picture is in memory decoded at a time, and it is brought to the size that the encoder sees
before anything else is done with it: the processor makes half a dozen copies of what it is given.

Hostile input is the rule here. The size is known from the header before a single pixel is decoded,
only a short list of decoders may run, and nothing is ever fetched: a URL that is not a data URL
is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from backends.glm.errors import WorkerError, bad_request
from backends.glm.types import Pixels
from backends.limits import IMAGE_PIXELS_MAX

# The formats web clients send; every further decoder would be attack surface for nothing.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
IMAGE_BYTES_MAX = 20 * 1024 * 1024  # OpenAI's and most engines' limit for one picture
IMAGE_ASPECT_MAX = 200  # GLM's own processor refuses more

# Modes of Pillow whose values are bytes, or bits that it makes bytes of.
_EIGHT_BITS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # a PNG's grey of two or four bits -> of eight


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLimits:
    """What the processor does to a picture; pixels are height x width of one still frame.

    Sides become multiples of `factor` (patch x merge), and one token is `factor` x `factor` pixels.
    The processor's own limits count two temporal frames, so they are halved here already.
    """

    factor: int
    min_pixels: int
    max_pixels: int


def open_picture(url: str, param: str) -> Image.Image:
    """The picture of a data URL, header read, limits checked, pixels not decoded yet.

    Raises: WorkerError 400 with code `invalid_image_url` or `invalid_image`.
    """
    raw = _data_url_bytes(url, param)
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its bomb limit; ours is far lower.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(raw), formats=FORMATS)
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise _bad_image(f"At most {IMAGE_PIXELS_MAX:,} pixels are read.", param) from None
    except Exception:  # decoders fed with hostile bytes raise nearly anything; all mean the same
        raise _bad_image(
            f"The picture cannot be read; send one of {', '.join(FORMATS)}.", param
        ) from None
    width, height = picture.size
    if width * height > IMAGE_PIXELS_MAX:
        raise _bad_image(
            f"The picture is {width} x {height}; at most {IMAGE_PIXELS_MAX:,} pixels are read.",
            param,
        )
    if max(width, height) > IMAGE_ASPECT_MAX * min(width, height):
        raise _bad_image(
            f"The picture is {width} x {height}; its longer side may be at most "
            f"{IMAGE_ASPECT_MAX} times the shorter one.",
            param,
        )
    return picture


def decode_picture(picture: Image.Image, param: str) -> Image.Image:
    """Decode to RGB, or L for grey: first frame, upright as its EXIF data says, transparency over
    white. The picture given is closed; who takes the decoded one closes that.

    Raises: WorkerError 400 with code `invalid_image` when the data is broken or cut off.
    """
    try:
        _scale_transparent_colour(picture)  # before anything makes Pillow decode
        # In place: without, Pillow copies a picture that is upright already.
        ImageOps.exif_transpose(picture, in_place=True)
        decoded = _opaque(picture, param)
    except (MemoryError, WorkerError):
        raise
    except Exception:  # as in open_picture: a broken file must never look like our own failure
        raise _bad_image("The picture's data is broken or cut off.", param) from None
    if decoded is not picture:
        picture.close()
    return decoded


def _opaque(picture: Image.Image, param: str) -> Image.Image:
    picture.load()
    if picture.mode == "I;16":
        return _eight_bits(picture)
    if picture.mode not in _EIGHT_BITS:
        raise _bad_image("The picture must have 8 or 16 bits in each channel.", param)
    if picture.has_transparency_data:
        # Plain conversion shows hidden colours, mostly black, behind black text.
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture if picture.mode in ("RGB", "L") else picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits: the upper eight, as decoders do for colours. Pillow's own conversion makes
    everything above 255 white."""
    values = np.asarray(picture)
    grey = (values >> 8).astype(np.uint8)
    transparent = picture.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _scale_transparent_colour(picture: Image.Image) -> None:
    """The one transparent colour of a PNG, from the file's depth to that of the decoded pixels: it
    is compared with them, and Pillow leaves it as it stands in the file."""
    colour = picture.info.get("transparency")
    # Known before decoding only: `tile` says how the pixels are stored.
    stored = next((tile.args for tile in getattr(picture, "tile", ())), None)
    if stored == "RGB;16B" and isinstance(colour, tuple):
        picture.info["transparency"] = tuple(value >> 8 for value in colour)
    elif stored in _GREY_STEPS and isinstance(colour, int):
        picture.info["transparency"] = min(colour * _GREY_STEPS[stored], 255)


def fitted_size(
    *, height: int, width: int, factor: int, frames: int, edges: tuple[int, int]
) -> tuple[int, int]:
    """(height, width) that the encoder sees of a picture; both are multiples of `factor`. `edges`:
    the least and the greatest height x width x `frames`.

    The rule of GLM-4.1V's and 4.6V's image processor (`smart_resize` in transformers).
    """
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    high, wide = (round(side / factor) * factor for side in (height, width))
    least, greatest = edges
    if frames * high * wide > greatest:
        beta = math.sqrt(frames * height * width / greatest)
        high, wide = (max(factor, int(side / beta / factor) * factor) for side in (height, width))
    elif frames * high * wide < least:
        beta = math.sqrt(least / (frames * height * width))
        high, wide = (math.ceil(side * beta / factor) * factor for side in (height, width))
    return high, wide


class Vision:
    """The checkpoint's image processor, behind the three questions the worker asks it."""

    def __init__(self, processor: Any) -> None:
        """`processor`: a transformers image processor of the GLM-4V family (Pillow backend)."""
        self._processor = processor
        self._merge_area = int(processor.merge_size) ** 2
        self._frames = int(processor.temporal_patch_size)
        self._edges = (int(processor.size["shortest_edge"]), int(processor.size["longest_edge"]))
        least, greatest = (edge // self._frames for edge in self._edges)
        factor = int(processor.patch_size) * int(processor.merge_size)
        self.limits = ImageLimits(factor=factor, min_pixels=least, max_pixels=greatest)

    def tokens(self, *, width: int, height: int) -> int:
        """Prompt tokens of a picture of this size (without its begin and end markers)."""
        patches = int(self._processor.get_number_of_image_patches(height, width))
        return patches // self._merge_area

    def fit(self, picture: Image.Image) -> Image.Image:
        """The picture as RGB in the size that the encoder sees, and closed itself.

        The processor would do the same with the same result.
        """
        high, wide = fitted_size(
            height=picture.height,
            width=picture.width,
            factor=self.limits.factor,
            frames=self._frames,
            edges=self._edges,
        )
        small = picture.resize((wide, high), self._processor.resample)
        picture.close()
        return small.convert("RGB")  # of grey after resizing: the channels are equal either way

    def pixels(self, picture: Image.Image) -> Pixels:
        """Resize, normalise and cut into patches. The picture is closed."""
        seen = self.fit(picture)
        shape = f"{seen.width}x{seen.height} ".encode()
        features = self._processor(images=[seen], do_resize=False, return_tensors="np")
        grid = np.asarray(features["image_grid_thw"], dtype=np.int64)
        return Pixels(
            values=np.asarray(features["pixel_values"], dtype=np.float32),
            grid=grid,
            tokens=tuple(int(n) for n in grid.prod(axis=1) // self._merge_area),
            keys=(hashlib.sha256(shape + seen.tobytes()).digest(),),
        )


def _bad_image(message: str, param: str) -> WorkerError:
    return bad_request(message, param=param, code="invalid_image")


def _data_url_bytes(url: str, param: str) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma or not header[:5].lower() == "data:" or not header.lower().endswith(";base64"):
        raise bad_request(
            "Pictures must be sent as data URLs (data:image/png;base64,...); "
            "this worker fetches nothing.",
            param=param,
            code="invalid_image_url",
        )
    payload = "".join(payload.split())  # many encoders break base64 into lines
    if len(payload) // 4 * 3 > IMAGE_BYTES_MAX:
        raise _bad_image(f"A picture may have at most {IMAGE_BYTES_MAX:,} bytes.", param)
    try:
        raw = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise bad_request(
            "The data URL is not valid base64.", param=param, code="invalid_image_url"
        ) from None
    if not raw:
        raise _bad_image("The picture is empty.", param)
    return raw
