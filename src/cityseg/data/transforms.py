"""Augmentation: one crop that scales, pads and flips, then changes of colour and sharpness on the crop alone.

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

from cityseg.data.samples import Pair
from cityseg.errors import ConfigError
from cityseg.labels import VOID, ByteArray

BORDER_COLOR = (124, 116, 104)
"""RGB of what lies outside the photo: ImageNet's mean, which is 0 once normalised."""

CROP_TRIES = 10


class Window:
    """A rectangle in source pixels; it may reach over the picture's edges."""

    def __init__(self, top: int, left: int, height: int, width: int) -> None:
        """Top-left corner and size, in pixels."""
        self.top, self.left, self.height, self.width = top, left, height, width

    def cut(self, picture: ByteArray) -> ByteArray:
        """The part of ``(H, W, ...)`` inside the window, without padding."""
        top, left = max(self.top, 0), max(self.left, 0)
        return picture[top : max(self.top + self.height, 0), left : max(self.left + self.width, 0)]


@dataclass
class Augment:
    """Random crop with scale jitter, flip, and pixel-level transforms.

    Attributes:
        scale: range of the scale factor; 2 shows things twice as large.
        flip: probability of a horizontal flip.
        cat_max_ratio: a crop in which one class fills more than this share of the valid pixels is drawn again, up to
            ten times (as in the DeepLab recipes).
        pixel: albumentations' pixel-level transforms by any name, applied in this order.
    """

    scale: Sequence[float] = (1.0, 1.0)
    flip: float = 0.0
    cat_max_ratio: float = 1.0
    pixel: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigError: naming the option, what was found and what is possible.
        """
        low, high = self.scale
        if not 0 < low <= high:
            raise ConfigError(f"augment.scale: found [{low}, {high}], expected [low, high] with 0 < low <= high")
        for name in ("flip", "cat_max_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"augment.{name}: found {getattr(self, name)}, expected a number from 0 to 1")

    def __call__(self, sample: Pair, crop: tuple[int, int], rng: np.random.Generator) -> Pair:
        """Draw one crop.

        Args:
            sample: photo ``(H, W, 3)`` uint8 and train ids ``(H, W)`` uint8.
            crop: height and width of the result, in pixels.
            rng: every random choice is drawn from it.

        Returns:
            Photo ``(*crop, 3)`` uint8 and train ids ``(*crop)`` uint8; what lies outside the photo is void.
        """
        photo, target = sample
        assert target is not None
        scale = float(np.exp(rng.uniform(np.log(self.scale[0]), np.log(self.scale[1]))))
        window = self._choose(target, crop, scale, rng)
        photo = place(window, photo, crop, scale, BORDER_COLOR, cv2.INTER_LINEAR if scale >= 1 else cv2.INTER_AREA)
        target = place(window, target, crop, scale, (VOID,), cv2.INTER_NEAREST_EXACT)
        if rng.random() < self.flip:
            photo, target = photo[:, ::-1], target[:, ::-1]
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
        # The library asks the network for its newest version at import unless told not to.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        import albumentations

        for name, transform in self.pixel.items():
            if not isinstance(transform, albumentations.ImageOnlyTransform):
                raise ConfigError(
                    f"augment.pixel.{name}: found {type(transform).__name__}, expected a pixel-level transform of "
                    "albumentations (one that leaves the label as it is)"
                )
        return albumentations.Compose(list(self.pixel.values()))


def strict_pixel_transform(name: str, **options: Any) -> Any:
    """Build one of albumentations' pixel-level transforms, refusing options it does not have.

    The library itself only warns of those and goes on with its defaults.

    Args:
        name: class name, such as ``GaussianBlur``.
        options: its arguments.

    Raises:
        ConfigError: if there is no such transform, or it does not take an option.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    kind = getattr(albumentations, name, None)
    if kind is None:
        raise ConfigError(f"augment.pixel: albumentations has no transform {name!r}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            return kind(**options)
        except (UserWarning, TypeError, ValueError) as error:
            raise ConfigError(f"augment.pixel: {name}({options}): {error}") from error


def place(
    window: Window,
    picture: ByteArray,
    crop: tuple[int, int],
    scale: float,
    border: Sequence[int],
    interpolation: int,
) -> ByteArray:
    """Show a window of a picture at crop size, with the border colour where it reaches over the edge.

    Args:
        window: the rectangle in source pixels.
        picture: ``(H, W, 3)`` or ``(H, W)`` uint8.
        crop: height and width of the result.
        scale: crop pixels per source pixel.
        border: one value a channel.
        interpolation: OpenCV's flag for resizing.

    Returns:
        ``(*crop, 3)`` or ``(*crop)`` uint8.
    """
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


def _offset(length: int, window: int, rng: np.random.Generator) -> int:
    """Where a window starts along one axis: inside a longer picture, around a shorter one."""
    free = length - window
    return int(rng.integers(free + 1)) if free >= 0 else -int(rng.integers(-free + 1))
