"""Colour-coded label images -> train ids, for colours that JPEG and resizing have blurred and for exact ones.

Every decoder here is a picklable callable that turns ``(H, W, 3)`` uint8 RGB into ``(H, W)`` uint8 train ids.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cityseg.errors import SHOWN, DataError
from cityseg.labels import ByteArray, Color, LabelSpace

# Both from benchmarks/palette_distance.py on 468 composites of street photos, as they are and at JPEG quality 75.
MAX_DISTANCE = 20.0
"""It keeps 87 to 93 % of the pixels at 99.7 to 99.9 % accuracy; beyond it 7 to 13 % are wrong, below it poles go."""
MAX_MEAN_DISTANCE = 15.0
"""Composites in the palette average 5 to 8 (14 at most); in random palettes 58, in BGR 21 to 24, as grey ids 23."""

_Entries = tuple[tuple[Color, int], ...]


class PaletteDecoder:
    """Gives each pixel the train id of the palette colour nearest to it, or void where none is near.

    A blurred label image has blends along every edge, and the blend of two classes' colours can be nearest to
    a third class's. `max_distance` of RGB drops those pixels; None keeps all. The space's aliases are further colours.

    Decoding is one gather from a table of all 256^3 colours, which is exact. The table (16 MB) is built on
    the first call in each process, shared by decoders of the same colours, and never pickled.
    """

    def __init__(self, space: LabelSpace, max_distance: float | None = MAX_DISTANCE) -> None:
        if max_distance is not None and not max_distance >= 0:
            raise DataError(f"max_distance: found {max_distance}, expected a distance of 0 or more, or None")
        self.max_distance = max_distance
        self._void = space.ignore_index
        self._entries: _Entries = (*zip(space.colors, range(space.num_classes), strict=True), *space.aliases)

    def __call__(self, colors: ByteArray) -> ByteArray:
        """Decode a label image ``(H, W, 3)`` uint8 RGB to train ids ``(H, W)`` uint8, the lowest of the nearest."""
        # The tolerance keeps a pixel at exactly the distance when that distance is an irrational root.
        limit = None if self.max_distance is None else math.floor(self.max_distance**2 + 1e-6)
        return _nearest_table(self._entries, limit, self._void)[_codes(colors)]

    def decode_exact(self, colors: ByteArray) -> ByteArray:
        """Decode a loss-less label image ``(H, W, 3)`` uint8 RGB, of palette colours alone, to ``(H, W)`` uint8.

        Raises:
            DataError: naming the most frequent other colours.
        """
        codes = _codes(colors)
        train_ids = _nearest_table(self._entries, 0, self._void)[codes]
        known = [(r << 16) | (g << 8) | b for (r, g, b), _ in self._entries]
        void_codes = codes[train_ids == self._void]
        foreign, counts = np.unique(void_codes[~np.isin(void_codes, known)], return_counts=True)
        if foreign.size:
            order = np.argsort(-counts, kind="stable")[:SHOWN]
            found = zip(foreign[order].tolist(), counts[order].tolist(), strict=True)
            listed = ", ".join(f"{(code >> 16, (code >> 8) & 255, code & 255)} on {count} px" for code, count in found)
            more = f" ... and {foreign.size - SHOWN} more" if foreign.size > SHOWN else ""
            raise DataError(
                f"found {foreign.size} RGB colour(s) that are no class's: {listed}{more}; expected only the colours of "
                "the label space. Add them to its classes (or as void), or save the masks as PNG without resizing or "
                "anti-aliasing."
            )
        return train_ids

    def mean_distance(self, colors: ByteArray) -> float:
        """Mean Euclidean RGB distance of pixels ``(H, W, 3)`` uint8 to the nearest palette colour."""
        check_colors(colors)
        palette = np.array([color for color, _ in self._entries], np.float32)
        # |pixel - color|^2 as |pixel|^2 + |color|^2 - 2 pixel.color: whole numbers, so float32 is exact;
        # row by row, so that a large image needs no large buffer.
        squares = np.square(palette).sum(1)
        total = 0.0
        for row in colors.astype(np.float32):
            nearest = (squares - 2 * row @ palette.T).min(1) + np.square(row).sum(1)
            total += float(np.sqrt(nearest).sum())
        return total / (colors.size // 3)


def check_colors(colors: ByteArray) -> None:
    """Refuse anything but a non-empty ``(H, W, 3)`` uint8 image.

    Raises:
        DataError: if it is another array.
    """
    if colors.dtype != np.uint8 or colors.ndim != 3 or colors.shape[2] != 3 or not colors.size:
        raise DataError(f"label image: found {colors.shape} {colors.dtype}, expected (H, W, 3) uint8 RGB")


def _codes(colors: ByteArray) -> npt.NDArray[np.int32]:
    """Pack ``(H, W, 3)`` uint8 RGB into ``(H, W)`` int32 ``0xRRGGBB``."""
    check_colors(colors)
    wide = colors.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


@lru_cache(maxsize=4)
def _nearest_table(entries: _Entries, limit: int | None, void: int) -> ByteArray:
    """Train id of the nearest entry for every colour code, ``(256**3,)`` uint8; beyond the squared distance, void."""
    palette = np.array([color for color, _ in entries], np.int32)
    # Squared distance in the high bits, train id in the low byte: one minimum finds both. The largest value,
    # 3 * 255**2 * 256 + 255, fits int32.
    scaled = (np.arange(256, dtype=np.int32) - palette[..., None]) ** 2 << 8  # (entries, RGB, level)
    red, green, blue = scaled[:, 0], scaled[:, 1], scaled[:, 2]
    blue = blue + np.array([train_id for _, train_id in entries], np.int32)[:, None]
    table = np.empty((256, 256, 256), np.uint8)
    key, nearest = np.empty((2, 256, 256), np.int32)
    for level in range(256):  # one slice at a time stays in the processor's cache
        nearest.fill(np.iinfo(np.int32).max)
        for entry in range(len(entries)):
            np.add(green[entry, :, None] + red[entry, level], blue[entry], out=key)
            np.minimum(nearest, key, out=nearest)
        table[level] = nearest & 0xFF
        if limit is not None:
            table[level][nearest >> 8 > limit] = void
    return table.reshape(-1)
