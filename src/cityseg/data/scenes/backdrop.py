"""What a street scene starts and ends with: sky and ground first, the camera's flaws last."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cityseg.data.scenes.painter import LABEL_IDS, RGB, Canvas, Floats, smooth_noise
from cityseg.labels import ByteArray

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Block:
    """A house along the street, for its shadow: side (-1 left, 1 right), near and far end in metres."""

    side: int
    near: float
    far: float


@dataclass(frozen=True)
class Street:
    """The ground plan of a street.

    Attributes:
        road: metres from the road's middle to the kerb.
        walk: width of the sidewalks, metres.
        openings: side streets, each ``(side, near, far)``; side -1 is left.
        crossing: distance of a zebra crossing, metres; beyond sight for none.
        blocks: the houses on both sides.
        asphalt: colour of the road.
        paving: colour of the sidewalks.
        slab: edge length of the paving slabs, metres.
        marks: colour of the lane marks.
        solid: True if the line in the road's middle is not broken.
    """

    road: float
    walk: float
    openings: tuple[tuple[int, float, float], ...]
    crossing: float
    blocks: tuple[Block, ...]
    asphalt: RGB
    paving: RGB
    slab: float
    marks: RGB
    solid: bool

    @property
    def front(self) -> float:
        """Metres from the road's middle to the house fronts."""
        return self.road + self.walk


def paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """Fill the whole picture with sky: a gradient, a glow on the sun's side, and clouds."""
    light, size = canvas.light, canvas.camera.size // 2  # nothing in the sky is sharp
    column, horizon = (value / 2 for value in canvas.camera.vanishing)
    row = np.arange(size, dtype=np.float32)[:, None]
    across = np.arange(size, dtype=np.float32)[None, :] - np.float32(column + light.sun * 0.4 * size)
    height = np.clip(1 - row / np.float32(horizon), 0, 1)[..., None] ** np.float32(0.8)
    glow = np.exp(-(across**2 + (row - np.float32(0.5 * horizon)) ** 2) / np.float32(0.5 * size) ** 2)[..., None]
    low, high = np.array(light.horizon, np.float32), np.array(light.zenith, np.float32)
    sky = low + (high - low) * height
    sky = sky + np.float32(0.25) * glow * (255 - sky)
    noise = smooth_noise(rng, (size, size), (3, 6, 12, 24))
    cover = cv2.resize(noise[:, : size // 2], (size, size))[..., None]  # clouds are wider than high
    share = np.clip((cover - np.float32(1.3 - 2.4 * light.clouds)) * np.float32(0.7), 0, np.float32(0.85))
    sky += (low * np.clip(1.06 - 0.1 * cover, 0.7, 1.2) - sky) * share
    painted = np.clip(sky, 0, 255).astype(np.uint8)
    canvas.photo[:] = cv2.resize(painted, canvas.photo.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    canvas.label_ids[:] = LABEL_IDS["sky"]


def _phase(metres: Floats, period: float) -> Floats:
    """How far into its period each length is, metres; many times faster than ``np.mod``."""
    return np.asarray(metres - np.float32(period) * np.floor(metres / np.float32(period)), np.float32)


def _marked(street: Street, x: Floats, z: Floats, on_road: Mask) -> Mask:
    """Where the road is painted: middle line, lines before the kerb, zebra crossing and stop line."""
    crossroads = np.zeros_like(on_road)
    for _, near, far in street.openings:
        crossroads |= (z > near - 0.5) & (z < far + 0.5)
    # A line keeps a width of about a pixel in the distance, or it would break into dots there.
    width = 0.09 + z * 0.002
    middle = (np.abs(x) < width) & (street.solid | (_phase(z, 6.0) < 3.4))
    edges = np.abs(np.abs(x) - street.road + 0.45) < width * 0.8
    start = street.crossing
    zebra = (z > start) & (z < start + 3.2) & (_phase(x, 1.1) < 0.6)
    stop = (z > start - 1.6) & (z < start - 1.1) & (x > 0.1)
    lines = (middle | edges) & ~((z > start - 1.6) & (z < start + 3.6)) & ~crossroads
    return np.asarray(on_road & (lines | zebra | stop) & (z < 90))


def _shadowed(street: Street, sun: int, x: Floats, z: Floats, reach: float) -> Mask:
    """Where the houses on the sun's side keep the sunlight from the ground."""
    dark = np.zeros(x.shape, np.bool_)
    within = np.flatnonzero(x * sun > street.front - reach)
    # The sun stands ahead or behind a little, so shadows fall aslant along the street.
    along = z[within] - (street.front - x[within] * sun) * np.float32(0.35)
    for block in street.blocks:
        if block.side == sun:
            dark[within] |= (along > block.near) & (along < block.far)
    return dark


def paint_ground(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    """Road, kerbs, sidewalks and side streets, with their texture, marks and the shadows of the houses."""
    seen, x, z = canvas.camera.ground()
    side = np.abs(x)
    on_road = side < street.road
    for opening, near, far in street.openings:
        on_road |= (x * opening > 0) & (z > near) & (z < far)
    tile = smooth_noise(rng, (256, 256), (8, 32, 128))
    grain = rng.standard_normal((256, 256), np.float32)

    def sample(image: Floats, per_metre: float) -> Floats:
        rows, columns = ((axis * per_metre).astype(np.int32) & 255 for axis in (z, x))
        return np.asarray(image.ravel()[(rows << 8) | columns])

    # A pixel is one of four materials times a tone; the colours are put together only at the end.
    paving, asphalt, kerb, mark = range(4)
    kerbstone = np.array(street.paving, np.float32) * 0.55 + 95
    materials = np.array([street.paving, street.asphalt, kerbstone, street.marks], np.float32)
    material = np.where(on_road, asphalt, paving).astype(np.uint8)
    material[~on_road & (side < street.road + 0.22)] = kerb
    material[_marked(street, x, z, on_road)] = mark
    fade = 1 / (1 + z / 10)
    coarse, fine = sample(tile, 3.0), sample(grain, 30.0)
    tone = 1 + 0.05 * coarse + 0.08 * fade * fine
    worn = on_road & (np.abs(np.abs(side - 1.7) - 0.75) < 0.3)  # where the wheels run
    joint = ~on_road & ((_phase(x, street.slab) < 0.05) | (_phase(z, street.slab) < 0.07))
    patch = on_road & (coarse > 1.4)
    gutter = on_road & (side > street.road - 0.2) & (side < street.road)
    dark = _shadowed(street, canvas.light.sun, x, z, reach=float(rng.uniform(2.0, 5.0)))
    for where, darker in ((worn, 0.05), (patch, 0.09), (gutter, 0.25)):
        tone -= np.float32(darker) * where
    tone -= np.float32(0.24) * fade * joint
    tone += 0.045 * sample(grain, 1 / street.slab) * ~on_road
    tone *= 1 - np.float32(canvas.light.shadow) * dark
    colors = np.asarray(materials[material] * tone[:, None], np.float32)
    canvas.photo[seen] = canvas.light.on_all(colors, z).astype(np.uint8)
    canvas.label_ids[seen] = np.where(on_road, LABEL_IDS["road"], LABEL_IDS["sidewalk"]).astype(np.uint8)


def paint_hood(canvas: Canvas, rng: np.random.Generator) -> None:
    """The bonnet of the car that carries the camera: it counts as ego vehicle, which is void."""
    size = canvas.camera.size
    turns = np.linspace(math.pi, 2 * math.pi, 40)
    rise, middle = float(rng.uniform(0.06, 0.1)), float(rng.uniform(0.42, 0.58))
    column = size * (middle + float(rng.uniform(0.5, 0.62)) * np.cos(turns))
    hood = np.stack([column, size * (1.0 + rise * np.sin(turns))], axis=1)
    colors = np.array([[24, 26, 30], [120, 124, 130], [120, 24, 30], [30, 48, 92]], np.float32)
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(hood).astype(np.int32)], [1])
    height = np.clip((np.arange(size, dtype=np.float32) / size - (1 - rise)) / rise, 0, 1)[:, None, None]
    sky = np.array(canvas.light.horizon, np.float32)
    color = colors[int(rng.integers(4))] * np.array(canvas.light.ambient, np.float32)
    paint = color * (0.7 + 0.3 * height) + sky * 0.45 * (1 - height) ** 3
    filled = np.broadcast_to(np.clip(paint, 0, 255), canvas.photo.shape)
    canvas.photo[mask == 1] = filled[mask == 1].astype(np.uint8)
    canvas.label_ids[mask == 1] = LABEL_IDS["ego vehicle"]


def develop(photo: ByteArray, size: int, rng: np.random.Generator) -> ByteArray:
    """What the lens and the sensor make of a picture: area sampling, blur, vignette, colour cast and noise.

    Args:
        photo: the painted photo, larger than wanted, ``(S, S, 3)`` uint8.
        size: height and width of the result, pixels.
        rng: where noise and cast are drawn from.

    Returns:
        ``(size, size, 3)`` uint8.
    """
    small = cv2.resize(photo, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
    small = np.asarray(cv2.GaussianBlur(small, (0, 0), float(rng.uniform(0.3, 0.7)) * size / 256), np.float32)
    reach = np.linspace(-1, 1, size, dtype=np.float32) ** 2
    vignette = 1 - 0.09 * (reach[:, None] + reach[None, :])
    cast = rng.normal(1.0, 0.025, 3).astype(np.float32)
    exposure = float(rng.normal(1.0, 0.06))
    uneven = smooth_noise(rng, (size, size), (4, 64)) * 0.018 + 1
    small *= (vignette * uneven * exposure)[..., None] * cast
    small += rng.standard_normal(small.shape, np.float32) * float(rng.uniform(1.5, 4.5))
    return np.clip(small, 0, 255).astype(np.uint8)
