"""A street of a city and what it is made of: sky, road and sidewalks, houses."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from cityseg.data.scenes.painter import LABEL_IDS, RGB, Canvas, Floats, Light, Pose, mix, pick, scaled, smooth_noise
from cityseg.data.scenes.things import CLOTHES, GLASS, paint_tree

TOWN = 110.0  # metres: where the street ends in sight
WALLS: tuple[RGB, ...] = (
    (206, 184, 152), (178, 110, 86), (196, 192, 184), (150, 96, 76), (222, 208, 166),
    (160, 166, 172), (202, 158, 130), (134, 126, 118), (184, 198, 196),
)  # fmt: skip
BONNETS: tuple[RGB, ...] = ((24, 26, 30), (120, 124, 130), (120, 24, 30), (30, 48, 92))
LEAVES: tuple[RGB, ...] = ((84, 128, 52), (62, 108, 58), (112, 138, 56), (96, 120, 68), (150, 132, 52))
PAVINGS: tuple[RGB, ...] = ((176, 170, 160), (164, 150, 140), (190, 176, 150), (160, 162, 166))
BUSES: tuple[RGB, ...] = ((236, 186, 32), (206, 40, 42), (54, 152, 92), (46, 110, 198), (236, 122, 34))


class Street:
    """The looks of a street, which those of its city share, and its own ground plan; lengths in metres."""

    def __init__(self, seed: int, city: int, rng: np.random.Generator) -> None:
        looks = np.random.default_rng([seed, 1_000_003, city])
        low, grey = float(looks.uniform(7, 11)), float(looks.uniform(84, 122))
        self.eaves = low, low + float(looks.uniform(4, 9))  # height of the lowest and the highest
        self.walls = tuple(pick(looks, WALLS, 14) for _ in range(4))
        # Shares of the houses with a pitched roof, with shops, and with windows in one band a floor.
        self.pitched, self.shops, self.ribbons = looks.uniform((0.1, 0.3, 0.05), (0.7, 0.8, 0.4)).tolist()
        self.leaf, self.bus = pick(looks, LEAVES, 6), pick(looks, BUSES, 8)
        self.asphalt: RGB = (grey, grey, grey + float(looks.uniform(0, 8)))
        self.paving, self.slab = pick(looks, PAVINGS, 6), float(looks.choice([0.5, 0.75, 1.0]))
        self.marks: RGB = (236, 236, 228) if looks.random() < 0.75 else (232, 196, 84)
        self.trees = float(looks.uniform(0.5, 1.1))  # on 10 metres of sidewalk
        self.weather = Light.weather(looks)  # that half of the city's frames have
        self.road = float(looks.uniform(3.5, 4.1))  # from the middle to the kerb
        self.walk = float(rng.uniform(2.4, 3.6))  # width of the sidewalks
        self.crossing = float(rng.uniform(9, 20)) if rng.random() < 0.4 else 1e6  # distance of a zebra crossing
        self.solid = bool(rng.random() < 0.25)  # the line in the road's middle is not broken
        self.openings: list[tuple[int, float, float]] = []  # side streets: side (-1 left, 1 right), near and far end
        self.houses: list[tuple[int, float, float, float]] = []  # side, near and far end, gap to the one before
        for side in (-1, 1):
            z, last, cross = 4.0, 4.0, float(rng.uniform(18, 60))
            while z < TOWN - 20:
                far = z + float(rng.uniform(9, 17))
                if z <= cross < far:
                    self.openings.append((side, z + 1.0, z + 8.0))
                    z += 9.0
                    continue
                self.houses.append((side, z, far, z - last))
                last, z = far, far + (float(rng.uniform(2.5, 5)) if rng.random() < 0.3 else 0.0)

    def across(self, place: float) -> float:
        """Metres from the road's middle: 0 is there, 1 at the kerb, 2 at the house fronts."""
        return min(place, 1.0) * self.road + max(place - 1.0, 0.0) * self.walk

    def opens(self, x: float, z: float) -> bool:
        """True where a side street leads through the sidewalk."""
        return abs(x) > self.road and any(x * side > 0 and a - 0.5 < z < b + 0.5 for side, a, b in self.openings)


def paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """Fill the whole picture with sky: a gradient, a glow on the sun's side, and clouds."""
    light, size = canvas.light, canvas.camera.size // 2  # nothing in the sky is sharp
    column, horizon = canvas.camera.column / 2, canvas.camera.row / 2
    row = np.arange(size, dtype=np.float32)[:, None]
    across = np.arange(size, dtype=np.float32)[None, :] - np.float32(column + light.sun * 0.4 * size)
    height = np.clip(1 - row / np.float32(horizon), 0, 1)[..., None] ** np.float32(0.8)
    glow = np.exp(-(across**2 + (row - np.float32(0.5 * horizon)) ** 2) / np.float32(0.5 * size) ** 2)[..., None]
    low = np.array(light.horizon, np.float32)
    sky = low + (np.array(light.zenith, np.float32) - low) * height
    sky = sky + np.float32(0.25) * glow * (255 - sky)
    noise = smooth_noise(rng, (size, size), (3, 6, 12, 24))
    cover = cv2.resize(noise[:, : size // 2], (size, size))[..., None]  # clouds are wider than high
    share = np.clip((cover - np.float32(1.3 - 2.4 * light.clouds)) * np.float32(0.7), 0, np.float32(0.85))
    sky += (low * np.clip(1.06 - 0.1 * cover, 0.7, 1.2) - sky) * share
    canvas.pixels[..., :3] = cv2.resize(np.clip(sky, 0, 255).astype(np.uint8), canvas.pixels.shape[1::-1])
    canvas.pixels[..., 3] = LABEL_IDS["sky"]


def _phase(metres: Floats, period: float) -> Floats:
    """How far into its period each length is, metres; many times faster than ``np.mod``."""
    return np.asarray(metres - np.float32(period) * np.floor(metres / np.float32(period)), np.float32)


def _marked(street: Street, x: Floats, z: Floats) -> npt.NDArray[np.bool_]:
    """Where a road would be painted: middle line, lines before the kerb, zebra crossing and stop line."""
    crossroads, start = np.zeros(x.shape, np.bool_), street.crossing
    for _, near, far in (*street.openings, (0, start - 1.1, start + 3.1)):
        crossroads |= (z > near - 0.5) & (z < far + 0.5)
    width = 0.09 + z * 0.002  # about a pixel in the distance, where the line would break into dots
    lines = (np.abs(x) < width) & (street.solid | (_phase(z, 6.0) < 3.4))
    lines |= np.abs(np.abs(x) - street.road + 0.45) < width * 0.8
    zebra = (z > start) & (z < start + 3.2) & (_phase(x, 1.1) < 0.6)
    stop = (z > start - 1.6) & (z < start - 1.1) & (x > 0.1)
    return np.asarray(((lines & ~crossroads) | zebra | stop) & (z < 90))


def paint_ground(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    """Road, kerbs, sidewalks and side streets, with their texture, marks and the shadows of the houses."""
    seen, x, z = canvas.camera.ground()
    side = np.abs(x)
    on_road = side < street.road
    for opening, near, far in street.openings:
        on_road |= (x * opening > 0) & (z > near) & (z < far)
    tile, grain = smooth_noise(rng, (256, 256), (8, 32, 128)), rng.standard_normal((256, 256), np.float32)

    def sample(image: Floats, per_metre: float) -> Floats:
        rows, columns = ((axis * per_metre).astype(np.int32) & 255 for axis in (z, x))
        return np.asarray(image.ravel()[(rows << 8) | columns])

    # A pixel is one of four materials times a tone; the colours are put together only at the end.
    kerbstone = np.array(street.paving, np.float32) * 0.55 + 95
    materials = np.array([street.paving, street.asphalt, kerbstone, street.marks], np.float32)
    material = on_road.astype(np.uint8)
    material[~on_road & (side < street.road + 0.22)] = 2
    material[on_road & _marked(street, x, z)] = 3
    fade, coarse = 1 / (1 + z / 10), sample(tile, 3.0)
    tone = 1 + 0.05 * coarse + 0.08 * fade * sample(grain, 30.0)
    worn = on_road & (np.abs(np.abs(side - 1.7) - 0.75) < 0.3)  # where the wheels run
    gutter = on_road & (side > street.road - 0.2) & (side < street.road)
    for where, darker in ((worn, 0.05), (on_road & (coarse > 1.4), 0.09), (gutter, 0.25)):
        tone -= np.float32(darker) * where
    tone -= np.float32(0.24) * fade * (~on_road & ((_phase(x, street.slab) < 0.05) | (_phase(z, street.slab) < 0.07)))
    tone += 0.045 * sample(grain, 1 / street.slab) * ~on_road
    # Shadows of the houses on the sun's side. It stands ahead or behind a little, so they fall aslant.
    sun, front = canvas.light.sun, street.across(2)
    within = np.flatnonzero(x * sun > front - float(rng.uniform(2.0, 5.0)))
    along = z[within] - (front - x[within] * sun) * np.float32(0.35)
    dark = sum((along > near) & (along < far) for house, near, far, _ in street.houses if house == sun)
    tone[within] *= 1 - np.float32(canvas.light.shadow) * dark
    painted = np.empty((len(z), 4), np.uint8)
    painted[:, :3] = canvas.light.on_all(np.asarray(materials[material] * tone[:, None], np.float32), z)
    painted[:, 3] = np.where(on_road, LABEL_IDS["road"], LABEL_IDS["sidewalk"])
    canvas.pixels[seen] = painted


def _facade(
    width: float, height: float, scale: float, color: RGB, street: Street, light: Light, rng: np.random.Generator
) -> Floats:
    """A wall seen head-on, ``(H, W, 3)``; places on it are metres from its lower left corner, `scale` pixels each."""
    image = np.full((max(8, round(height * scale)), max(8, round(width * scale)), 3), color, np.float32)
    image *= 1 + 0.05 * smooth_noise(rng, image.shape[:2], (6, 40))[..., None]
    foot, pixel = len(image), 1 / scale

    def box(left: float, right: float, low: float, high: float, paint: RGB) -> None:
        ends = (round(left * scale), foot - round(low * scale)), (round(right * scale), foot - round(high * scale))
        cv2.rectangle(image, *ends, paint, -1)

    def window(left: float, right: float, low: float, high: float, frame: RGB) -> None:
        middle, glass = (left + right) / 2, scaled(GLASS, float(rng.uniform(0.6, 1.5)))
        lit = rng.random() < light.lit
        box(left - pixel, right + pixel, low - pixel, high + pixel, frame)
        box(left, right, low, high, light.lamp((240, 188, 112)) if lit else glass)
        if not lit and rng.random() < 0.6:  # the sky, mirrored in the upper pane
            box(left, right, high - (high - low) / 3, high, mix(glass, scaled(light.horizon, 0.8), 0.55))
        box(middle, middle, low, high, frame)
        box(left - pixel, right + pixel, low - 2 * pixel, low - 2 * pixel, scaled(frame, 0.6))

    if rng.random() < 0.4:  # courses of brick or stone
        image[:: max(3, round(0.4 * scale))] *= 0.86
    frame = pick(rng, ((226, 222, 214), (92, 80, 70), (160, 154, 146)), 8)
    ribbon, shop, trim = rng.random() < street.ribbons, rng.random() < street.shops, pick(rng, CLOTHES, 20)
    bay, share = (rng.uniform(1.7, 2.3), 0.94) if ribbon else (rng.uniform(2.2, 3.0), rng.uniform(0.42, 0.58))
    for low in np.arange(4.0, height - 2.0, 3.2).tolist():
        if not ribbon and rng.random() < 0.25:  # a balcony's or sill's band
            box(0, width, low - 0.5, low - 0.25, scaled(color, 0.72))
        for left in np.arange(bay * (1 - share), width - bay * share, bay).tolist():
            window(left, left + bay * share, low, low + (1.7 if ribbon else 1.9), frame)
    box(0, width, height - 0.45, height, scaled(color, 0.66))
    if shop:
        box(0, width, 0, 3.2, mix(trim, (90, 84, 78), 0.6))
        box(0, width, 2.6, 3.2, trim)
    box(0, width, 0, 0.4, (96, 94, 92))
    bay = float(rng.uniform(2.4, 3.4))
    door = int(rng.integers(max(1, int(width / bay))))
    for number, left in enumerate(np.arange(0.4, width - bay / 2, bay).tolist()):
        if number == door:
            box(left, left + 1.1, 0, 2.3, scaled(trim, 0.3))
            box(left + 0.1, left + 1.0, 0, 2.2, scaled(trim, 0.55))
        elif shop:
            window(left, left + bay * 0.8, 0.5, 2.4, (60, 56, 54))
        else:
            window(left, left + bay * 0.5, 1.0, 2.4, (216, 212, 204))
    return image


def _paint_house(
    canvas: Canvas, street: Street, x: float, near: float, far: float, free: bool, rng: np.random.Generator
) -> None:
    """A house along the street, its front at `x`; if no house hides its near side, that has windows too."""
    side, depth, light = math.copysign(1.0, x), 12.0, canvas.light
    height, wall, outer = float(rng.uniform(*street.eaves)), pick(rng, street.walls), x + side * depth
    if rng.random() < street.pitched:
        middle, eave = (x + side * depth / 2, height + 3.2), x - side * 0.3
        slope = [(*middle, near), (*middle, far), (eave, height, far), (eave, height, near)]
        canvas.polygon([slope[3], slope[0], (outer, height, near)], scaled(wall, 0.85), "building")
        canvas.polygon(slope, pick(rng, ((142, 72, 56), (96, 84, 80), (120, 92, 74))), "building")
    left, right = min(x, outer), max(x, outer)
    gable = [(left, height, near), (right, height, near), (right, 0, near), (left, 0, near)]
    ends = (near, far) if x < 0 else (far, near)  # an image's left is what the viewer sees left
    front = [(x, up, z) for up, z in zip((height, height, 0, 0), (*ends, *ends[::-1]), strict=True)]
    sunny = 0.84 if side == light.sun else 1.12
    for corners, width, shade in ((gable, depth, 0.9), (front, far - near, sunny)):
        if corners is gable and not free:
            canvas.polygon(gable, scaled(wall, shade), "building")
        elif canvas.sees(corners):
            # A wall that starts beside the camera is first in view about twelve metres ahead.
            scale = float(np.clip(0.75 * canvas.camera.pixels(1.0, max(near, 12.0)), 5, 16))
            canvas.texture(corners, _facade(width, height, scale, scaled(wall, shade), street, light, rng), "building")


def paint_houses(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    """All houses, far ones first."""
    for left in np.arange(-120.0, 120.0, 11.0).tolist():  # the rest of the town closes the street
        height, wall = float(rng.uniform(7, 19)), scaled(pick(rng, street.walls), 0.85)
        block = [(left, 0, TOWN), (left + 12, 0, TOWN), (left + 12, height, TOWN), (left, height, TOWN)]
        canvas.polygon(block, wall, "building")
    for side, near, far, gap in sorted(street.houses, key=lambda house: -house[1]):
        front = side * (street.across(2) + float(rng.uniform(0, 0.6)))
        _paint_house(canvas, street, front, near, far, gap > 0, rng)
        if 2.0 < gap < 6.0:
            paint_tree(canvas, Pose(front + side * 3.0, near - gap / 2, scale=1.2), rng, street.leaf)


def paint_bonnet(canvas: Canvas, rng: np.random.Generator) -> None:
    """The car that carries the camera: it counts as ego vehicle, which is void."""
    size, rise = canvas.camera.size, float(rng.uniform(0.06, 0.1))
    mask, row = np.zeros((size, size), np.uint8), np.arange(size, dtype=np.float32) / size
    middle, half = float(rng.uniform(0.42, 0.58)), float(rng.uniform(0.5, 0.62))
    cv2.ellipse(mask, (round(size * middle), size), (round(size * half), round(size * rise)), 0, 0, 360, [1], -1)
    height = np.clip((row - (1 - rise)) / rise, 0, 1)[:, None]
    color = np.array(BONNETS[int(rng.integers(len(BONNETS)))]) * np.array(canvas.light.ambient)
    paint = color * (0.7 + 0.3 * height) + np.array(canvas.light.horizon) * 0.45 * (1 - height) ** 3
    rows, columns = np.nonzero(mask)
    canvas.pixels[rows, columns, :3] = np.clip(paint, 0, 255)[rows]
    canvas.pixels[rows, columns, 3] = LABEL_IDS["ego vehicle"]
