"""Augmentation: one crop that scales, turns, pads and flips, then changes of colour and sharpness on the crop alone.

The only module that knows albumentations; geometry is done here, so that only the crop's own pixels are touched.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cityseg.data.samples import Pair
from cityseg.errors import ConfigError
from cityseg.labels import VOID, ByteArray

BORDER_COLOR = (124, 116, 104)
"""RGB of what lies outside the photo: ImageNet's mean, which is 0 once normalised."""
CROP_TRIES = 10
LUMA = np.array([0.299, 0.587, 0.114])  # weights of R, G and B in the grey of a pixel
RED_TO_GREEN = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])  # cross product with the grey axis (1, 1, 1)

Range = tuple[float, float]


@dataclass(slots=True)
class Window:
    """A rectangle in source pixels; it may reach over the picture's edges."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, picture: ByteArray) -> ByteArray:
        """The part of ``(H, W, ...)`` inside the window, without padding."""
        top, left = max(self.top, 0), max(self.left, 0)
        return picture[top : max(self.top + self.height, 0), left : max(self.left + self.width, 0)]


@dataclass(frozen=True)
class Color:
    """Random brightness, contrast, saturation and hue in one linear step on the whole crop.

    Attributes:
        brightness: range of the factor of all values.
        contrast: range of the factor of their distance to the photo's mean grey.
        saturation: range of the factor of their distance to the pixel's own grey.
        hue: range of the turn around the colour circle, 1 is full circle: around the grey axis of RGB, which turns
            the hue of HSV by the same angle to within 2.3 degrees.
        p: probability that anything is done.
    """

    brightness: Range = (1.0, 1.0)
    contrast: Range = (1.0, 1.0)
    saturation: Range = (1.0, 1.0)
    hue: Range = (0.0, 0.0)
    p: float = 1.0

    def __post_init__(self) -> None:
        """Check the options."""
        for name in ("brightness", "contrast", "saturation"):
            _check(f"color.{name}", getattr(self, name), 0, np.inf)
        _check("color.hue", self.hue, -0.5, 0.5)
        _check("color.p", self.p, 0, 1)

    def __call__(self, photo: ByteArray, rng: np.random.Generator) -> ByteArray:
        """Change the colours of a photo ``(H, W, 3)`` uint8 RGB."""
        if rng.random() >= self.p:
            return photo
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        brightness, contrast, saturation, hue = (rng.uniform(*limits) for limits in ranges)
        angle = 2 * np.pi * hue
        turn = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) / 3 + np.sin(angle) / np.sqrt(3) * RED_TO_GREEN
        matrix = turn @ (saturation * np.eye(3) + (1 - saturation) * LUMA)
        grey = brightness * float(LUMA @ cv2.mean(photo)[:3])
        # Neither hue nor saturation moves a grey, so the contrast's constant part is the same in all channels.
        steps = np.column_stack([contrast * brightness * matrix, np.full(3, (1 - contrast) * grey)])
        return np.asarray(cv2.transform(photo, steps), np.uint8)


@dataclass
class Augment:
    """Random crop with scale jitter, rotation, flip, and pixel-level transforms.

    Attributes:
        scale: range of the scale factor; 2 shows things twice as large.
        rotate: range in degrees, counterclockwise, around the middle of the crop.
        shift: most that a crop is moved after its place is drawn, as a share of its sides; it may leave the photo.
        flip: probability of a horizontal flip.
        cat_max_ratio: a crop in which one class fills more than this share of the valid pixels is drawn again, up to
            ten times (as in the DeepLab recipes).
        color: changes the colours; None leaves them.
        pixel: albumentations' pixel-level transforms by any name, applied in this order.
    """

    scale: Range = (1.0, 1.0)
    rotate: Range = (0.0, 0.0)
    shift: float = 0.0
    flip: float = 0.0
    cat_max_ratio: float = 1.0
    color: Color | None = None
    pixel: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options."""
        _check("scale", self.scale, 1e-3, 1e3)
        _check("rotate", self.rotate, -180, 180)
        for name in ("shift", "flip", "cat_max_ratio"):
            _check(name, getattr(self, name), 0, 1)

    def __call__(self, sample: Pair, crop: tuple[int, int], rng: np.random.Generator) -> Pair:
        """Draw one crop, every random choice from the generator.

        Returns:
            Photo ``(*crop, 3)`` uint8 and train ids ``(*crop)`` uint8; what lies outside the photo is void.
        """
        photo, target = sample
        assert target is not None
        scale = float(np.exp(rng.uniform(np.log(self.scale[0]), np.log(self.scale[1]))))
        window = self._choose(target, crop, scale, rng)
        # Options that are off draw nothing, so that they do not change the crops of the others.
        if self.shift:
            down, right = rng.uniform(-self.shift, self.shift, 2)
            window.top += round(down * window.height)
            window.left += round(right * window.width)
        angle = rng.uniform(*self.rotate) if any(self.rotate) else 0.0
        flipped = bool(rng.random() < self.flip)
        if angle:
            matrix, part = _rotation(window, crop, scale, angle, target.shape)
            photo = _turn(photo[part], matrix, crop, BORDER_COLOR, cv2.INTER_LINEAR)
            target = _turn(target[part], matrix, crop, (VOID,), cv2.INTER_NEAREST)
        else:
            shrunk = cv2.INTER_LINEAR if scale >= 1 else cv2.INTER_AREA
            photo = _place(window, photo, crop, scale, BORDER_COLOR, shrunk)
            target = _place(window, target, crop, scale, (VOID,), cv2.INTER_NEAREST_EXACT)
        if flipped:
            # As bytes and as a copy: numpy's reversed view costs a slow copy of single pixels later.
            photo, target = (np.asarray(cv2.flip(picture, 1), np.uint8) for picture in (photo, target))
        if self.color:
            photo = self.color(photo, rng)
        if self.pixel:
            self._pixels.set_random_seed(int(rng.integers(2**31)))
            photo = self._pixels(image=np.ascontiguousarray(photo))["image"]
        return Pair(photo, target)

    def _choose(self, target: ByteArray, crop: tuple[int, int], scale: float, rng: np.random.Generator) -> Window:
        height, width = max(round(crop[0] / scale), 1), max(round(crop[1] / scale), 1)
        for _ in range(CROP_TRIES):
            window = Window(_offset(target.shape[0], height, rng), _offset(target.shape[1], width, rng), height, width)
            if self.cat_max_ratio >= 1:
                break
            # Every fourth row and column tells a class's share well enough.
            counts = np.bincount(window.cut(target)[::4, ::4].ravel(), minlength=256)[:VOID]
            if counts.sum() and counts.max() <= self.cat_max_ratio * counts.sum():
                break
        return window

    @cached_property
    def _pixels(self) -> Any:
        library = _albumentations()
        for name, transform in self.pixel.items():
            if not isinstance(transform, library.ImageOnlyTransform):
                raise ConfigError(
                    f"augment.pixel.{name}: found {type(transform).__name__}, expected a pixel-level transform of "
                    "albumentations (one that leaves the label as it is)"
                )
        return library.Compose(list(self.pixel.values()))


def strict_pixel_transform(name: str, **options: Any) -> Any:
    """Build albumentations' transform of a name.

    Raises:
        ConfigError: if there is none, or it does not take an option, of which the library itself only warns.
    """
    kind = getattr(_albumentations(), name, None)
    if kind is None:
        raise ConfigError(f"augment.pixel: albumentations has no transform {name!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            return kind(**options)
        except (UserWarning, TypeError, ValueError) as error:
            raise ConfigError(f"augment.pixel: {name}({options}): {error}") from error


def _albumentations() -> Any:
    # It asks the network for its newest version at import unless told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def _check(name: str, found: float | Range, least: float, most: float) -> None:
    values = [found] if isinstance(found, int | float) else list(found)
    if not least <= values[0] <= values[-1] <= most:
        what = "a number" if len(values) == 1 else "[low, high]"
        raise ConfigError(f"augment.{name}: found {found}, expected {what} from {least} to {most}")


def _place(
    window: Window, picture: ByteArray, crop: tuple[int, int], scale: float, border: Sequence[int], interpolation: int
) -> ByteArray:
    """Show a window of a picture at crop size, with the border colour where it reaches over the edge."""
    part = window.cut(picture)
    if part.shape[0] == window.height and part.shape[1] == window.width:
        return part if scale == 1 else np.asarray(cv2.resize(part, crop[::-1], interpolation=interpolation), np.uint8)
    result = np.empty((*crop, *picture.shape[2:]), np.uint8)
    result[...] = np.asarray(border, np.uint8) if picture.ndim == 3 else border[0]
    top, left = round(max(-window.top, 0) * scale), round(max(-window.left, 0) * scale)
    height = min(max(round(part.shape[0] * scale), 1), crop[0] - top)
    width = min(max(round(part.shape[1] * scale), 1), crop[1] - left)
    if part.size and height > 0 and width > 0:
        result[top : top + height, left : left + width] = cv2.resize(part, (width, height), interpolation=interpolation)
    return result


def _rotation(
    window: Window, crop: tuple[int, int], scale: float, angle: float, shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.float64], tuple[slice, slice]]:
    """Which rows and columns of a picture a turned crop shows, and the matrix ``(2, 3)`` from its pixels to theirs.

    The centres of pixels are whole numbers.
    """
    cos, sin = np.cos(np.radians(angle)) / scale, np.sin(np.radians(angle)) / scale
    turn = np.array([[cos, -sin], [sin, cos]])  # y points down
    middle = np.array([window.left + (window.width - 1) / 2, window.top + (window.height - 1) / 2])
    height, width = crop[0] - 1, crop[1] - 1
    shift = middle - turn @ [width / 2, height / 2]
    corners = turn @ [[0, width, 0, width], [0, 0, height, height]] + shift[:, None]
    # With a pixel beyond, for interpolation; a crop of nothing but border shows a pixel, which it does not reach.
    limit = np.array(shape[1::-1])
    first = np.clip(np.floor(corners.min(axis=1)).astype(int) - 1, 0, limit - 1)
    end = np.clip(np.ceil(corners.max(axis=1)).astype(int) + 2, first + 1, limit)
    return np.column_stack([turn, shift - first]), (slice(first[1], end[1]), slice(first[0], end[0]))


def _turn(
    part: ByteArray, matrix: npt.NDArray[np.float64], crop: tuple[int, int], border: Sequence[int], interpolation: int
) -> ByteArray:
    """Warp a part of a picture to crop size, with the border colour beyond it."""
    # A warp jumps from row to row, and waits for memory at each. A copy is read in order, and is near afterwards.
    flags = cv2.WARP_INVERSE_MAP | interpolation
    return np.asarray(cv2.warpAffine(part.copy(), matrix, crop[::-1], flags=flags, borderValue=border), np.uint8)


def _offset(length: int, window: int, rng: np.random.Generator) -> int:
    """Where a window starts along one axis: inside a longer picture, around a shorter one."""
    free = length - window
    return int(rng.integers(free + 1)) if free >= 0 else -int(rng.integers(-free + 1))
