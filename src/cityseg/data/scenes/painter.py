"""A pinhole camera over a street, and a canvas that paints photo and label map with one geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from cityseg.labels import CITYSCAPES_LABELS, ByteArray

RGB = tuple[float, float, float]
"""Red, green and blue reflectance, each 0 to 255."""
Point = tuple[float, float, float]
"""Metres: x to the right of the road's middle, y above the ground, z ahead of the camera."""
Points = Sequence[Point]
Floats = npt.NDArray[np.float32]

LABEL_IDS = {label.name: label.id for label in CITYSCAPES_LABELS}
NEAR = 0.8  # metres: what is nearer is projected as if it were here
SUBPIXEL_BITS = 3


@dataclass(frozen=True)
class Camera:
    """A forward camera above the road.

    Attributes:
        size: height and width of the picture, pixels.
        focal: focal length, pixels.
        vanishing: where a straight road ends, ``(column, row)`` pixels.
        height: metres above the ground.
        x: metres to the right of the road's middle.
        roll: tilt of the horizon, radians.
        bend: how fast the street leaves the straight line, metres sideways for each square metre ahead.
    """

    size: int
    focal: float
    vanishing: tuple[float, float]
    height: float
    x: float
    roll: float
    bend: float

    @cached_property
    def _turn(self) -> tuple[float, float]:
        return math.cos(self.roll), math.sin(self.roll)

    def project(self, point: Point) -> tuple[float, float]:
        """A street point in metres -> its pixel, ``(column, row)``."""
        # Plain floats: things have few corners, for which an array costs more than it saves.
        x, y, z = point
        z = max(z, NEAR)
        right = self.focal * (x - self.x + self.bend * z * z) / z
        down = self.focal * (self.height - y) / z
        cos, sin = self._turn
        return self.vanishing[0] + cos * right - sin * down, self.vanishing[1] + sin * right + cos * down

    def pixels(self, metres: float, z: float) -> float:
        """How many pixels a length across the view takes up at that distance."""
        return metres * self.focal / max(z, NEAR)

    def ground(self) -> tuple[npt.NDArray[np.bool_], Floats, Floats]:
        """Where the ground is seen, and what part of it.

        Returns:
            A mask ``(size, size)`` of the pixels below the horizon; their x and z ``(N,)``, metres.
        """
        pixels = np.arange(self.size, dtype=np.float32)
        column = (pixels + np.float32(0.5 - self.vanishing[0]))[None, :]
        row = (pixels + np.float32(0.5 - self.vanishing[1]))[:, None]
        cos, sin = self._turn
        down = cos * row - sin * column
        seen = down > 0.5
        right = (cos * column + sin * row)[seen]
        z = self.focal * self.height / down[seen]
        x = right * z / self.focal - self.bend * z * z + self.x
        return seen, np.asarray(x, np.float32), np.asarray(z, np.float32)

    def toward(self, point: Point) -> Point:
        """The vector in metres from a street point to the camera."""
        x, y, z = point
        return self.x - self.bend * z * z - x, self.height - y, -z


@dataclass(frozen=True)
class Light:
    """The light of one picture.

    Attributes:
        ambient: what a white surface looks like, as fractions of 255.
        zenith: colour of the sky overhead.
        horizon: colour of the sky at the horizon, and of the haze.
        haze: metres after which 63 % of a thing's colour is lost in the haze.
        shadow: how much darker the ground is in shadow, 0 to 1.
        sun: -1 if the sun stands left of the street, 1 if right.
        clouds: share of the sky under clouds, 0 to 1.
        lit: share of the windows with a lamp behind them, 0 to 1.
    """

    ambient: RGB
    zenith: RGB
    horizon: RGB
    haze: float
    shadow: float
    sun: int
    clouds: float
    lit: float

    def on(self, color: RGB, depth: float, *, glow: bool = False) -> RGB:
        """A surface's colour as the camera sees it.

        Args:
            color: the surface's own.
            depth: metres.
            glow: True for lamps, which need no light to be seen.
        """
        left = math.exp(-depth / self.haze)
        r, g, b = (
            min(255.0, value * (1.0 if glow else ambient) * left + air * (1 - left))
            for value, ambient, air in zip(color, self.ambient, self.horizon, strict=True)
        )
        return r, g, b

    def on_all(self, colors: Floats, depths: Floats | float) -> Floats:
        """As :meth:`on` for many surfaces: colours ``(..., 3)`` and their depths ``(...)`` in metres."""
        left = np.exp(np.asarray(depths, np.float32) / np.float32(-self.haze))[..., None]
        air = np.array(self.horizon, np.float32)
        seen = colors * np.array(self.ambient, np.float32)
        seen -= air
        seen *= left
        seen += air
        np.clip(seen, 0, 255, out=seen)
        return seen


def mix(color: RGB, other: RGB, share: float) -> RGB:
    """The first colour with a share (0 to 1) of the second in it."""
    r, g, b = (a + (o - a) * share for a, o in zip(color, other, strict=True))
    return r, g, b


def scaled(color: RGB, factor: float) -> RGB:
    """A lighter or darker shade of a colour."""
    r, g, b = (min(255.0, value * factor) for value in color)
    return r, g, b


def _fixed(pixels: Sequence[tuple[float, float]] | npt.NDArray[np.floating]) -> npt.NDArray[np.int32]:
    return np.asarray(np.rint(np.asarray(pixels) * (1 << SUBPIXEL_BITS)), np.int32)


class Canvas:
    """A photo ``(size, size, 3)`` uint8 RGB and its label ids ``(size, size)`` uint8, painted together.

    Every method that takes a class ``name`` paints the same pixels of both; ``None`` paints the photo only.
    """

    def __init__(self, camera: Camera, light: Light) -> None:
        """Start with an empty picture."""
        self.camera = camera
        self.light = light
        self.photo: ByteArray = np.zeros((camera.size, camera.size, 3), np.uint8)
        self.label_ids: ByteArray = np.zeros((camera.size, camera.size), np.uint8)

    def outline(self, points: Points) -> npt.NDArray[np.int32]:
        """Street points -> fixed-point pixels ``(N, 2)`` for OpenCV."""
        return _fixed([self.camera.project(point) for point in points])

    def _fill(self, outline: npt.NDArray[np.int32], color: RGB, name: str | None) -> None:
        cv2.fillPoly(self.photo, [outline], color, shift=SUBPIXEL_BITS)
        if name is not None:
            cv2.fillPoly(self.label_ids, [outline], [LABEL_IDS[name]], shift=SUBPIXEL_BITS)

    def _disc(self, at: Sequence[int], radius: int, color: Sequence[float], name: str | None) -> None:
        cv2.circle(self.photo, at, radius, color, -1, shift=SUBPIXEL_BITS)
        if name is not None:
            cv2.circle(self.label_ids, at, radius, [LABEL_IDS[name]], -1, shift=SUBPIXEL_BITS)

    def _stencil(
        self, outline: npt.NDArray[np.int32], before: int, after: int
    ) -> tuple[tuple[slice, slice], ByteArray] | None:
        """The window of the picture around an outline, and the outline filled with 255; None out of view."""
        low = np.clip((outline.min(axis=0) >> SUBPIXEL_BITS) - before, 0, self.camera.size)
        high = np.clip((outline.max(axis=0) >> SUBPIXEL_BITS) + after, 0, self.camera.size)
        if np.any(high - low < 1):
            return None
        mask = np.zeros((high - low)[::-1], np.uint8)
        cv2.fillPoly(mask, [outline - (low << SUBPIXEL_BITS).astype(np.int32)], [255], shift=SUBPIXEL_BITS)
        return (slice(low[1], high[1]), slice(low[0], high[0])), mask

    def polygon(self, points: Points, color: RGB, name: str | None, *, glow: bool = False) -> None:
        """Fill the polygon with these corners."""
        depth = sum(point[2] for point in points) / len(points)
        self._fill(self.outline(points), self.light.on(color, depth, glow=glow), name)

    def ball(self, point: Point, radius: float, color: RGB, name: str | None, *, glow: bool = False) -> None:
        """Fill a disc that faces the camera; radius in metres."""
        size = round(max(1.0, self.camera.pixels(radius, point[2])) * (1 << SUBPIXEL_BITS))
        at = self.outline([point])[0].tolist()
        self._disc(at, size, self.light.on(color, point[2], glow=glow), name)

    def leaves(self, middle: Point, offsets: Floats, radii: Floats, colors: Floats, name: str) -> None:
        """Fill many discs around a point, the last on top.

        Args:
            middle: where offsets start.
            offsets: right and up, metres ``(N, 2)``.
            radii: metres ``(N,)``.
            colors: ``(N, 3)``, 0 to 255.
            name: the class of them all.
        """
        per_metre = self.camera.pixels(1.0, middle[2])
        at = _fixed(np.array(self.camera.project(middle)) + offsets * (per_metre, -per_metre)).tolist()
        sizes = np.round(np.maximum(radii * per_metre, 1.0) * (1 << SUBPIXEL_BITS)).astype(int).tolist()
        for center, size, color in zip(at, sizes, self.light.on_all(colors, middle[2]).tolist(), strict=True):
            self._disc(center, size, color, name)

    def tube(
        self,
        start: Point,
        end: Point,
        radii: tuple[float, float],
        color: RGB,
        name: str | None,
        *,
        round_: bool = True,
    ) -> None:
        """A limb or a pole from start to end, with its radius in metres at both, lit from the sun's side."""
        (u0, v0), (u1, v1) = self.camera.project(start), self.camera.project(end)
        first, last = (max(0.8, self.camera.pixels(r, p[2])) for r, p in zip(radii, (start, end), strict=True))
        length = max(math.hypot(u1 - u0, v1 - v0), 1e-6)
        du, dv = (v0 - v1) / length, (u1 - u0) / length
        if du * self.light.sun < 0:
            du, dv = -du, -dv
        depth = (start[2] + end[2]) / 2
        if round_:
            for point, radius in zip((start, end), radii, strict=True):
                self.ball(point, radius, scaled(color, 0.86), name)
        stripes = ((-1.0, 1.0, 0.86, name), (-0.1, 0.8, 1.1, None))
        # Where a limb is a few pixels wide, its bright stripe would be lost.
        for low, high, shade, labelled in stripes if max(first, last) > 2 else stripes[:1]:
            ends = (
                (u0, v0, first * low),
                (u0, v0, first * high),
                (u1, v1, last * high),
                (u1, v1, last * low),
            )
            corners = [(u + du * out, v + dv * out) for u, v, out in ends]
            self._fill(_fixed(corners), self.light.on(scaled(color, shade), depth), labelled)

    def shade(self, points: Points, strength: float) -> None:
        """Darken the photo inside a polygon with a soft edge, as a shadow on the ground does."""
        margin = max(2, self.camera.size // 100)
        if stencil := self._stencil(self.outline(points), 2 * margin, 2 * margin):
            window, mask = stencil
            soft = cv2.blur(mask, (2 * margin + 1, 2 * margin + 1)).astype(np.float32)[..., None]
            self.photo[window] = (self.photo[window] * (1 - soft * (strength / 255))).astype(np.uint8)

    def sees(self, corners: Points) -> bool:
        """True if the rectangle around these points meets the picture."""
        outline = self.outline(corners) >> SUBPIXEL_BITS
        return bool(np.all(outline.max(axis=0) > 0) and np.all(outline.min(axis=0) < self.camera.size))

    def texture(self, corners: Points, image: Floats, name: str) -> None:
        """Lay a flat image over a rectangle of the street.

        Args:
            corners: top left, top right, bottom right, bottom left of the image, in metres.
            image: reflectance ``(H, W, 3)`` float32; values above 255 stand for lamps.
            name: the class of all that is covered.
        """
        height, width = image.shape[:2]
        outline = self.outline(corners)
        stencil = self._stencil(outline, 0, 1)
        if stencil is None:
            return
        window, mask = stencil
        depths = np.linspace(corners[0][2], corners[1][2], width, dtype=np.float32)
        seen = self.light.on_all(image, depths).astype(np.uint8)
        flat = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        target = outline / (1 << SUBPIXEL_BITS) - (window[1].start, window[0].start)
        matrix = cv2.getPerspectiveTransform(flat, target.astype(np.float32))
        warped = cv2.warpPerspective(seen, matrix, mask.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        cv2.copyTo(warped, mask, self.photo[window])
        self.label_ids[window][mask > 0] = LABEL_IDS[name]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: Sequence[int]) -> Floats:
    """Noise with detail at several scales, about zero mean and unit spread.

    Args:
        rng: where the noise is drawn from.
        shape: height and width of the result.
        cells: how many blobs lie side by side, one number a scale; later scales count half as much each.

    Returns:
        float32 ``(H, W)``.
    """
    total = np.zeros(shape, np.float32)
    for octave, count in enumerate(cells):
        grid = rng.standard_normal((count, count), np.float32)
        total += cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC) * 0.5**octave
    return total
