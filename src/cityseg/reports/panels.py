"""Picture panels: photo, truth, prediction and errors of one image side by side, put together and taken apart."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cityseg.labels import VOID, ByteArray, Color, LabelSpace
from cityseg.reports.summary import percent

MAX_TILE_WIDTH = 512  # px; four tiles of it still fit a wide screen
ERROR_COLOR: Color = (255, 30, 30)

_TILES = (("photo", "truth", "prediction", "errors"), ("photo", "prediction", "overlay"))
_PAPER: Color = (255, 255, 255)
_GAP = 4  # px between tiles
_NEAREST = cv2.INTER_NEAREST_EXACT
_font = lru_cache(ImageFont.load_default)  # Pillow's own letters, so that no font has to be installed


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
    photo, predicted = _shrink(photo, cv2.INTER_AREA), _shrink(prediction, _NEAREST)
    tiles = {"photo": photo, "prediction": space.colorize(predicted)}
    if truth is None:
        tiles["overlay"] = np.asarray(cv2.addWeighted(photo, 0.5, tiles["prediction"], 0.5, 0), np.uint8)
    else:
        valid = truth != VOID
        wrong = float(np.mean(prediction[valid] != truth[valid])) if valid.any() else None
        true = _shrink(truth, _NEAREST)
        tiles = {"photo": photo, "truth": space.colorize(true), "prediction": tiles["prediction"]}
        tiles[f"error: {percent(wrong)} %"] = _error_tile(photo, true, predicted)
    gap = np.full((1, _GAP, 3), _PAPER, np.uint8)
    shown = [_with_caption(tile, caption) for caption, tile in tiles.items()]
    parts = [part for tile in shown for part in (np.repeat(gap, len(tile), axis=0), tile)]
    return np.concatenate(parts[1:], axis=1)


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
    for labels in _TILES:
        width, rest = divmod(strip.width - _GAP * (len(labels) - 1), len(labels))
        starts = [index * (width + _GAP) for index in range(len(labels))]
        top = _letters(width) + 8
        if rest or width <= 0 or top >= strip.height:
            continue
        if all((pixels[:, start - _GAP : start] == _PAPER).all() for start in starts[1:]):
            boxes = ((start, top, start + width, strip.height) for start in starts)
            return {label: strip.crop(box) for label, box in zip(labels, boxes, strict=True)}
    return {"panel": strip}


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
    diagonal = np.add.outer(*map(np.arange, truth.shape))
    tile[void & (diagonal % 8 < 2)] = _PAPER
    tile[~void & (prediction != truth)] = ERROR_COLOR
    return tile


def _with_caption(tile: ByteArray, caption: str) -> ByteArray:
    width = tile.shape[1]
    size = _letters(width)
    strip = Image.new("RGB", (width, size + 8), _PAPER)
    ImageDraw.Draw(strip).text((2, size // 2 + 4), caption, fill=(30, 30, 30), font=_font(size), anchor="lm")
    return np.concatenate([np.asarray(strip), tile])


def _letters(width: int) -> int:
    """Size of a caption's letters: small tiles need small ones for the longest caption."""
    return min(max(width // 18, 9), 16)
