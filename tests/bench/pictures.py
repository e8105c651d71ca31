"""Pictures as requests carry them."""

from __future__ import annotations

import base64
import io

from PIL import Image


def data_url(picture: Image.Image) -> str:
    """The picture as a data URL (PNG)."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
