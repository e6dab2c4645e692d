"""A camera over a street, and a canvas on which photo and label ids are painted together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

from cityseg.labels import CITYSCAPES_LABELS, ByteArray

RGB = tuple[float, float, float]  # reflectance, each 0 to 255
Point = tuple[float, float, float]  # metres: right of the road's middle, above the ground, ahead of the camera
Points = Sequence[Point]
Span = tuple[float, float]  # from and to
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

LABEL_IDS = {label.name: label.id for label in CITYSCAPES_LABELS}
NEAR = 0.8  # metres: what is nearer is projected as if it were here
TURNS = [number * math.pi / 10 for number in range(20)]
ROUNDED = [tuple(math.copysign(abs(end) ** 0.5, end) for end in (math.sin(t), math.cos(t))) for t in TURNS]
SHIFT = 3  # bits of a pixel's fraction, as OpenCV calls it


def mix(color: RGB, other: RGB, share: float) -> RGB:
    """The first colour with a share (0 to 1) of the second in it."""
    r, g, b = (a + (o - a) * share for a, o in zip(color, other, strict=True))
    return r, g, b


def scaled(color: RGB, factor: float) -> RGB:
    """A lighter or darker shade of a colour."""
    r, g, b = (min(255.0, value * factor) for value in color)
    return r, g, b


def pick(rng: np.random.Generator, colors: Sequence[RGB], spread: float = 12.0) -> RGB:
    """One of the colours, a little changed."""
    r, g, b = np.clip(np.array(colors[int(rng.integers(len(colors)))]) + rng.normal(0, spread, 3), 8, 250).tolist()
    return r, g, b


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: Sequence[int]) -> Floats:
    """Noise ``(H, W)`` about zero: so many blobs side by side at each scale, which counts half the one before."""
    total = np.zeros(shape, np.float32)
    for octave, count in enumerate(cells):
        grid = rng.standard_normal((count, count), np.float32)
        total += cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC) * 0.5**octave
    return total


class Camera:
    """A pinhole camera above the road that looks ahead; its picture is `size` pixels high and wide."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self.focal = size * float(rng.uniform(0.8, 0.96))  # pixels
        self.column = size * float(rng.uniform(0.38, 0.62))  # where a straight road ends, pixels
        self.row = size * float(rng.uniform(0.42, 0.54))
        self.height = float(rng.uniform(1.6, 2.2))  # metres above the ground
        self.x = float(rng.uniform(-0.8, 1.8))  # metres to the right of the road's middle
        self.roll = float(rng.normal(0, 0.012))  # tilt of the horizon, radians
        self.bend = float(rng.normal(0, 0.0011))  # metres that the street goes sideways for each square metre ahead

    def project(self, point: Point) -> tuple[float, float]:
        """A street point -> its pixel, ``(column, row)``."""
        # Plain floats: things have few corners, for which an array costs more than it saves.
        x, y, z = point
        z = max(z, NEAR)
        right, down = self.focal * (x - self.x + self.bend * z * z) / z, self.focal * (self.height - y) / z
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        return self.column + cos * right - sin * down, self.row + sin * right + cos * down

    def pixels(self, metres: float, z: float) -> float:
        """How many pixels a length across the view takes up at that distance."""
        return metres * self.focal / max(z, NEAR)

    def ground(self) -> tuple[npt.NDArray[np.bool_], Floats, Floats]:
        """Which pixels ``(size, size)`` show the ground, and the x and z ``(N,)`` in metres of what they show."""
        column, row = (np.arange(self.size, dtype=np.float32) + np.float32(0.5 - v) for v in (self.column, self.row))
        cos, sin = math.cos(self.roll), math.sin(self.roll)
        down = cos * row[:, None] - sin * column
        seen = down > 0.5
        z = self.focal * self.height / down[seen]
        x = (cos * column + sin * row[:, None])[seen] * z / self.focal - self.bend * z * z + self.x
        return seen, np.asarray(x, np.float32), np.asarray(z, np.float32)


# Share of the frames, ambient light (what white looks like), sky overhead and at the horizon (each between two
# colours), metres of sight, how dark shadows are, share of the sky under clouds, share of the windows lit.
WEATHERS: dict[str, tuple[float, RGB, tuple[RGB, RGB], tuple[RGB, RGB], Span, float, Span, float]] = {
    "day": (0.5, (1.06, 1.03, 0.97), ((84, 140, 214), (120, 168, 222)), ((206, 220, 232), (206, 220, 232)),
            (120, 260), 0.42, (0.2, 0.65), 0.02),
    "overcast": (0.3, (0.84, 0.86, 0.89), ((158, 166, 176), (190, 194, 200)), ((212, 215, 218), (212, 215, 218)),
                 (60, 150), 0.08, (0.5, 0.9), 0.12),
    "dusk": (0.2, (0.66, 0.56, 0.56), ((64, 72, 122), (98, 96, 142)), ((238, 168, 120), (214, 150, 156)),
             (130, 260), 0.12, (0.2, 0.6), 0.45),
}  # fmt: skip


class Light:
    """The light of one picture."""

    def __init__(self, weather: str, rng: np.random.Generator) -> None:
        _, self.ambient, zenith, horizon, haze, self.shadow, clouds, self.lit = WEATHERS[weather]
        warm = float(rng.random())
        self.zenith, self.horizon = mix(*zenith, warm), mix(*horizon, warm)  # the second is the haze's colour too
        self.haze = float(rng.uniform(*haze))  # metres after which 63 % of a thing's colour is lost
        self.clouds = float(rng.uniform(*clouds))
        self.sun = int(rng.choice([-1, 1]))  # -1: it stands left of the street

    @staticmethod
    def weather(rng: np.random.Generator) -> str:
        """One of ``WEATHERS``, as often as it is said there."""
        return str(rng.choice([*WEATHERS], p=[weather[0] for weather in WEATHERS.values()]))

    def lamp(self, color: RGB) -> RGB:
        """The reflectance that makes a surface look so bright in this light."""
        r, g, b = (value / ambient for value, ambient in zip(color, self.ambient, strict=True))
        return r, g, b

    def on(self, color: RGB, depth: float) -> RGB:
        """A surface's colour as the camera sees it from `depth` metres."""
        left = math.exp(-depth / self.haze)
        seen = zip(color, self.ambient, self.horizon, strict=True)
        r, g, b = (min(255.0, value * ambient * left + air * (1 - left)) for value, ambient, air in seen)
        return r, g, b

    def on_all(self, colors: Floats, depths: Floats | float) -> Floats:
        """As :meth:`on` for many surfaces: colours ``(..., 3)`` and their depths ``(...)``."""
        left = np.exp(np.asarray(depths, np.float32) / np.float32(-self.haze))[..., None]
        air = np.array(self.horizon, np.float32)
        seen = colors * np.array(self.ambient, np.float32)
        seen -= air
        seen *= left
        seen += air
        return np.asarray(np.clip(seen, 0, 255, out=seen), np.float32)


@dataclass(frozen=True)
class Pose:
    """A place on the ground and a direction: turns a thing's own metres into street metres."""

    x: float
    z: float
    heading: float = 0.0  # 0 looks away from the camera, pi towards it, pi/2 to the right
    scale: float = 1.0  # how much larger than its plan the thing is

    def at(self, forward: float, up: float, right: float = 0.0) -> Point:
        """A point given along the thing's own axes, in the street."""
        sin, cos, scale = math.sin(self.heading), math.cos(self.heading), self.scale
        x, z = self.x + scale * (forward * sin + right * cos), self.z + scale * (forward * cos - right * sin)
        return x, scale * up, z

    def eye(self, camera: Camera) -> tuple[float, float, float]:
        """Where the camera is along the thing's own axes: forward, up, right."""
        sin, cos, x = math.sin(self.heading), math.cos(self.heading), camera.x - camera.bend * self.z**2 - self.x
        forward, right = x * sin - self.z * cos, x * cos + self.z * sin
        return forward / self.scale, camera.height / self.scale, right / self.scale


def _fixed(pixels: Sequence[tuple[float, float]] | npt.NDArray[np.floating]) -> Ints:
    return np.asarray(np.rint(np.asarray(pixels) * (1 << SHIFT)), np.int32)


class Canvas:
    """A picture ``(size, size, 4)`` uint8: red, green, blue and label id, so that photo and label always agree."""

    def __init__(self, camera: Camera, light: Light) -> None:
        self.camera, self.light = camera, light
        self.pixels: ByteArray = np.zeros((camera.size, camera.size, 4), np.uint8)

    def polygon(self, points: Points, color: RGB, label: str) -> None:
        """Fill the polygon with these corners."""
        depth = sum(point[2] for point in points) / len(points)
        self._fill(self._outline(points), self.light.on(color, depth), label)

    def tube(self, points: Points, radii: Sequence[float], color: RGB, label: str) -> None:
        """A limb or pole through points, lit from the sun's side; a ball where there is but one. Radii are metres."""
        ends = zip(points, radii, strict=True)
        spots = [(*self.camera.project(p), max(0.8, self.camera.pixels(r, p[2]))) for p, r in ends]
        shades = (0.86, 1.1) if len(points) > 1 else (1.0,)
        paints = [self.light.on(scaled(color, shade), points[0][2]) for shade in shades]
        for u, v, radius in spots:
            self._disc(_fixed([(u, v)])[0].tolist(), radius, paints[0], label)
        for (u0, v0, r0), (u1, v1, r1) in pairwise(spots):
            length = max(math.hypot(u1 - u0, v1 - v0), 1e-6)
            du, dv = (v0 - v1) / length, (u1 - u0) / length
            if du * self.light.sun < 0:
                du, dv = -du, -dv
            # Where a limb is a few pixels wide, its bright stripe would be lost.
            stripes = ((-1.0, 1.0), (-0.1, 0.8)) if max(r0, r1) > 2 else ((-1.0, 1.0),)
            for (low, high), paint in zip(stripes, paints, strict=False):
                corners = ((u0, v0, r0 * low), (u0, v0, r0 * high), (u1, v1, r1 * high), (u1, v1, r1 * low))
                self._fill(_fixed([(u + du * out, v + dv * out) for u, v, out in corners]), paint, label)

    def leaves(self, middle: Point, offsets: Floats, radius: float, colors: Floats) -> None:
        """Vegetation: discs around a point, `offsets` ``(N, 2)`` and radius in metres, `colors` ``(N, 3)``."""
        per_metre = self.camera.pixels(1.0, middle[2])
        at = _fixed(np.array(self.camera.project(middle)) + offsets * (per_metre, -per_metre)).tolist()
        for center, color in zip(at, self.light.on_all(colors, middle[2]).tolist(), strict=True):
            self._disc(center, max(1.0, radius * per_metre), color, "vegetation")

    def shade(self, pose: Pose, length: float, width: float, strength: float) -> None:
        """Darken the ground under a thing, with a soft edge."""
        margin = max(2, self.camera.size // 100)
        edge = self._outline([pose.at(f * length / 2, 0, r * width / 2) for f, r in ROUNDED])
        if stencil := self._stencil(edge, 2 * margin):
            window, mask = stencil
            soft = cv2.blur(mask, (2 * margin + 1, 2 * margin + 1)).astype(np.float32)[..., None]
            self.pixels[window][..., :3] = self.pixels[window][..., :3] * (1 - soft * (strength / 255))

    def sees(self, corners: Points) -> bool:
        """True if the rectangle around these points meets the picture."""
        return self._stencil(self._outline(corners), 0) is not None

    def texture(self, corners: Points, image: Floats, label: str) -> None:
        """Lay an image of reflectances ``(H, W, 3)`` over a rectangle; its corners go clockwise from top left."""
        outline, (height, width) = self._outline(corners), image.shape[:2]
        if stencil := self._stencil(outline, 1):
            window, mask = stencil
            depths = np.linspace(corners[0][2], corners[1][2], width, dtype=np.float32)
            seen = np.full((height, width, 4), LABEL_IDS[label], np.uint8)
            seen[..., :3] = self.light.on_all(image, depths)
            flat = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
            target = (outline / (1 << SHIFT) - (window[1].start, window[0].start)).astype(np.float32)
            matrix = cv2.getPerspectiveTransform(flat, target)
            warped = cv2.warpPerspective(seen, matrix, mask.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
            cv2.copyTo(warped, mask, self.pixels[window])

    def _outline(self, points: Points) -> Ints:
        return _fixed([self.camera.project(point) for point in points])

    def _fill(self, outline: Ints, color: RGB, label: str) -> None:
        cv2.fillPoly(self.pixels, [outline], (*color, LABEL_IDS[label]), shift=SHIFT)

    def _disc(self, at: Sequence[int], radius: float, color: RGB, label: str) -> None:
        cv2.circle(self.pixels, at, round(radius * (1 << SHIFT)), (*color, LABEL_IDS[label]), -1, shift=SHIFT)

    def _stencil(self, outline: Ints, margin: int) -> tuple[tuple[slice, slice], ByteArray] | None:
        """The window of the picture around an outline, and the outline filled with 255; None out of view."""
        low = np.clip((outline.min(axis=0) >> SHIFT) - margin, 0, self.camera.size)
        high = np.clip((outline.max(axis=0) >> SHIFT) + margin, 0, self.camera.size)
        if np.any(high - low < 1):
            return None
        mask = np.zeros((high - low)[::-1], np.uint8)
        cv2.fillPoly(mask, [outline - (low << SHIFT).astype(np.int32)], [255], shift=SHIFT)
        return (slice(low[1], high[1]), slice(low[0], high[0])), mask

    def developed(self, size: int, rng: np.random.Generator) -> ByteArray:
        """The photo ``(size, size, 3)`` with the flaws of lens and sensor: blur, vignette, colour cast and noise."""
        photo = cv2.resize(np.ascontiguousarray(self.pixels[..., :3]), (size, size), interpolation=cv2.INTER_AREA)
        blur = float(rng.uniform(0.3, 0.7)) * size / 256
        small = np.asarray(cv2.GaussianBlur(photo.astype(np.float32), (0, 0), blur), np.float32)
        reach = np.linspace(-1, 1, size, dtype=np.float32) ** 2
        uneven = smooth_noise(rng, (size, size), (4, 64)) * 0.018 + 1
        exposure = (1 - 0.09 * (reach[:, None] + reach)) * uneven * float(rng.normal(1.0, 0.06))
        small *= exposure[..., None] * rng.normal(1.0, 0.025, 3).astype(np.float32)
        small += rng.standard_normal(small.shape, np.float32) * float(rng.uniform(1.5, 4.5))
        return np.clip(small, 0, 255).astype(np.uint8)
