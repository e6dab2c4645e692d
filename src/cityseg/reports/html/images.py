"""Pictures inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

MAX_WIDTH = 1440  # px: four tiles of a panel, each still large enough to see a pole
_QUALITY = 72
_FLAT = 64  # colours; no photo has so few, no label space has more

# How reports.panels.panel lays its tiles out: with white gaps between them, and captions above that follow their width.
_LAYOUTS = (("photo", "truth", "prediction", "errors"), ("photo", "prediction", "overlay"))
_GAP = 4


class Picture(NamedTuple):
    """A picture to embed; the size lets the browser lay the page out before it has decoded it."""

    label: str
    uri: str
    width: int
    height: int


class Panel(NamedTuple):
    """Pictures of one image, all of one size, to be laid over each other."""

    name: str
    tiles: Sequence[Picture]

    @property
    def start(self) -> float:
        """Where a slider over the tiles begins: half of the last prediction over what comes before it."""
        predictions = [place for place, tile in enumerate(self.tiles) if tile.label.startswith("prediction")]
        return predictions[-1] - 0.5 if predictions else 0.5


def read_tiles(path: Path) -> dict[str, Image.Image]:
    """The tiles of a panel without their captions, by what they show; the whole picture if it is no panel.

    Returns:
        Empty if the file cannot be read.
    """
    try:
        with Image.open(path) as opened:
            strip = opened.convert("RGB")
    except OSError:
        return {}
    pixels = np.asarray(strip)
    for labels in _LAYOUTS:
        width, rest = divmod(strip.width - _GAP * (len(labels) - 1), len(labels))
        starts = [index * (width + _GAP) for index in range(len(labels))]
        top = min(max(width // 18, 9), 16) + 8
        if rest or width <= 0 or top >= strip.height:
            continue
        if all((pixels[:, start - _GAP : start] == 255).all() for start in starts[1:]):
            boxes = ((start, top, start + width, strip.height) for start in starts)
            return {label: strip.crop(box) for label, box in zip(labels, boxes, strict=True)}
    return {"panel": strip}


def embed(tiles: Mapping[str, Image.Image], name: str) -> Panel:
    """Encode pictures as WebP in data URIs: flat colours as they are, photos smaller and at most `MAX_WIDTH` wide."""
    return Panel(name, [_encode(label, tile) for label, tile in tiles.items()])


def read_panels(paths: Sequence[Path], most: int) -> list[Panel]:
    """Embed at most so many panels, spread over all; broken ones are left out."""
    count = min(most, len(paths))
    chosen = [paths[index * len(paths) // count] for index in range(count)]
    return [embed(tiles, path.stem) for path in chosen if (tiles := read_tiles(path))]


def _encode(label: str, picture: Image.Image) -> Picture:
    if picture.width > MAX_WIDTH:
        height = max(1, round(picture.height * MAX_WIDTH / picture.width))
        picture = picture.resize((MAX_WIDTH, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    flat = picture.getcolors(_FLAT) is not None
    picture.save(stream, "WEBP", quality=_QUALITY, lossless=flat, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(label, uri, *picture.size)
