"""Picture panels: photo, truth, prediction and errors of one image side by side, and the class legend."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cityseg.labels import VOID, ByteArray, Color, LabelSpace
from cityseg.reports.summary import percent

MAX_TILE_WIDTH = 512  # px; four tiles of it still fit a wide screen
ERROR_COLOR: Color = (255, 30, 30)

_PAPER: Color = (255, 255, 255)
_INK: Color = (30, 30, 30)
_GAP = 4  # px between tiles
_NEAREST = cv2.INTER_NEAREST_EXACT
_HATCH_PERIOD = 8  # px


def panel(photo: ByteArray, truth: ByteArray | None, prediction: ByteArray, space: LabelSpace) -> ByteArray:
    """Show one image as captioned tiles: photo, truth, prediction, error.

    The error tile is the dimmed grey photo with wrong pixels in red; pixels that are void in the truth are
    hatched in white and are no errors. Without truth the tiles are photo, prediction and the prediction laid
    over the photo. Images wider than 512 px are shown smaller.

    Args:
        photo: ``(H, W, 3)`` uint8 RGB.
        truth: ``(H, W)`` uint8 train ids, or None.
        prediction: ``(H, W)`` uint8 train ids.
        space: names the colours.

    Returns:
        ``(h, w, 3)`` uint8 RGB.

    Raises:
        ValueError: if the sizes differ.
    """
    for name, labels in (("truth", truth), ("prediction", prediction)):
        if labels is not None and labels.shape != photo.shape[:2]:
            raise ValueError(f"{name}: found size {labels.shape}, expected the photo's {photo.shape[:2]}")
    photo, painted = _shrink(photo, cv2.INTER_AREA), space.colorize(_shrink(prediction, _NEAREST))
    if truth is None:
        overlay = cv2.addWeighted(photo, 0.5, painted, 0.5, 0)
        tiles = {"photo": photo, "prediction": painted, "overlay": np.asarray(overlay, np.uint8)}
    else:
        tiles = {
            "photo": photo,
            "truth": space.colorize(_shrink(truth, _NEAREST)),
            "prediction": painted,
            f"error: {percent(_wrong_share(truth, prediction))} %": _error_tile(
                photo, _shrink(truth, _NEAREST), _shrink(prediction, _NEAREST)
            ),
        }
    return _side_by_side([_with_caption(tile, caption) for caption, tile in tiles.items()])


def legend(space: LabelSpace, present: Iterable[int], width: int) -> ByteArray:
    """Colour swatches with class names, in as many rows as they need, to stand below a panel.

    Args:
        space: the classes.
        present: train ids to list, in any order; others, and void, may be among them.
        width: of the strip, in px.

    Returns:
        ``(h, width, 3)`` uint8 RGB.
    """
    shown = sorted({int(train_id) for train_id in present} & {*range(space.num_classes), VOID})
    names = [space.class_names[train_id] if train_id != VOID else "void" for train_id in shown]
    font, swatch, row_height = _font(13), 12, 20
    places: list[tuple[int, int]] = []
    x = y = _GAP
    for name in names:
        entry_width = swatch + 5 + round(font.getlength(name)) + 14
        if x > _GAP and x + entry_width > width:
            x, y = _GAP, y + row_height
        places.append((x, y))
        x += entry_width
    strip = Image.new("RGB", (width, y + row_height), _PAPER)
    draw = ImageDraw.Draw(strip)
    for train_id, name, (x, y) in zip(shown, names, places, strict=True):
        color = tuple(space.palette[train_id].tolist())
        draw.rectangle((x, y + 2, x + swatch, y + 2 + swatch), fill=color, outline=_INK)
        draw.text((x + swatch + 5, y + 2 + swatch // 2), name, fill=_INK, font=font, anchor="lm")
    return np.asarray(strip)


def _wrong_share(truth: ByteArray, prediction: ByteArray) -> float | None:
    """Share of the valid pixels that are wrong; None if all are void."""
    valid = truth != VOID
    return float(np.mean(prediction[valid] != truth[valid])) if valid.any() else None


def _shrink(image: ByteArray, interpolation: int) -> ByteArray:
    """Bring an image down to the width of a tile; smaller ones stay as they are."""
    height, width = image.shape[:2]
    if width <= MAX_TILE_WIDTH:
        return image
    size = (MAX_TILE_WIDTH, max(1, round(height * MAX_TILE_WIDTH / width)))
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)


def _error_tile(photo: ByteArray, truth: ByteArray, prediction: ByteArray) -> ByteArray:
    """The grey photo, dimmed, with wrong pixels in red and void pixels hatched."""
    grey = np.asarray(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), np.float32)
    tile = np.repeat((40 + 0.5 * grey).astype(np.uint8)[..., None], 3, axis=2)
    void = truth == VOID
    height, width = truth.shape
    diagonal = np.arange(height)[:, None] + np.arange(width)
    tile[void & (diagonal % _HATCH_PERIOD < 2)] = _PAPER
    tile[~void & (prediction != truth)] = ERROR_COLOR
    return tile


def _with_caption(tile: ByteArray, caption: str) -> ByteArray:
    """Put a strip with the caption above a tile."""
    width = tile.shape[1]
    size = min(max(width // 18, 9), 16)  # small tiles need small letters for the longest caption
    strip = Image.new("RGB", (width, size + 8), _PAPER)
    ImageDraw.Draw(strip).text((2, size // 2 + 4), caption, fill=_INK, font=_font(size), anchor="lm")
    return np.concatenate([np.asarray(strip), tile])


def _side_by_side(tiles: list[ByteArray]) -> ByteArray:
    """Join tiles of one height with thin white gaps."""
    gap = np.full((tiles[0].shape[0], _GAP, 3), _PAPER, np.uint8)
    parts = [part for tile in tiles for part in (gap, tile)]
    return np.concatenate(parts[1:], axis=1)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in letters, so that no font has to be installed."""
    return ImageFont.load_default(size)
