"""Pictures inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from cityseg.reports.panels import read_tiles

MAX_WIDTH = 1440  # px: four tiles of a panel, each still large enough to see a pole
_FLAT = 64  # colours; no photo has so few, no label space has more


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
    picture.save(stream, "WEBP", quality=72, lossless=picture.getcolors(_FLAT) is not None, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(label, uri, *picture.size)
