"""Pictures inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

MAX_WIDTH = 1440  # px: four tiles of a panel, each still large enough to see a pole
_QUALITY = 72


class Picture(NamedTuple):
    """A picture to embed; the size lets the browser lay the page out before it has decoded it."""

    name: str
    uri: str
    width: int
    height: int


def embed(path: Path, max_width: int = MAX_WIDTH) -> Picture | None:
    """Read a picture, make it at most `max_width` wide and encode it as WebP in a data URI; None if it is broken."""
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except OSError:
        return None
    if picture.width > max_width:
        height = max(1, round(picture.height * max_width / picture.width))
        picture = picture.resize((max_width, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=_QUALITY, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(path.stem, uri, *picture.size)
