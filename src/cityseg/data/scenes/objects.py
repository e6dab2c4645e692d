"""What stands in the built-in street scenes: houses, greenery and street furniture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from cityseg.data.scenes.painter import RGB, Canvas, Floats, Light, Point, mix, scaled, smooth_noise

BLACK: RGB = (26, 26, 28)
GLASS: RGB = (58, 70, 82)
CLOTHES: tuple[RGB, ...] = (
    (196, 44, 48), (36, 66, 130), (228, 214, 196), (52, 52, 58),
    (226, 150, 40), (60, 122, 92), (132, 70, 128), (110, 160, 200),
)  # fmt: skip
STEEL: tuple[RGB, ...] = ((142, 146, 150), (98, 104, 106), (70, 84, 78), (166, 164, 156))


@dataclass(frozen=True)
class Pose:
    """A place on the ground and a direction: turns local metres into street metres.

    Attributes:
        x: metres right of the road's middle.
        z: metres ahead.
        heading: 0 looks away from the camera, pi towards it, pi/2 to the right.
        scale: how much larger than its plan the thing is.
    """

    x: float
    z: float
    heading: float = 0.0
    scale: float = 1.0

    def at(self, forward: float, up: float, right: float = 0.0) -> Point:
        """A local point, metres along the thing's own axes, in the street."""
        sin, cos = math.sin(self.heading), math.cos(self.heading)
        return (
            self.x + self.scale * (forward * sin + right * cos),
            self.scale * up,
            self.z + self.scale * (forward * cos - right * sin),
        )

    def ring(self, forward: float, up: float, radius: float, right: float = 0.0) -> list[Point]:
        """The outline of an upright disc in the plane of travel, as a wheel is."""
        turns = np.linspace(0, 2 * math.pi, 20, endpoint=False)
        return [self.at(forward + radius * math.cos(t), up + radius * math.sin(t), right) for t in turns]

    def footprint(self, length: float, width: float) -> list[Point]:
        """Corners of a rounded ground area of that size, for a shadow."""
        turns = np.linspace(0, 2 * math.pi, 16, endpoint=False)
        square = [(np.sign(v) * abs(v) ** 0.5 / 2 for v in (math.cos(t), math.sin(t))) for t in turns]
        return [self.at(forward * length, 0.0, right * width) for forward, right in square]


def pick(rng: np.random.Generator, colors: tuple[RGB, ...], spread: float = 12.0) -> RGB:
    """One of the colours, a little changed."""
    r, g, b = np.clip(np.array(colors[int(rng.integers(len(colors)))]) + rng.normal(0, spread, 3), 8, 250)
    return float(r), float(g), float(b)


def _front(x: float, ends: tuple[float, float], height: float) -> list[Point]:
    # Corners of a wall along the street as Canvas.texture wants them: the image's left is the viewer's left.
    left, right = ends if x < 0 else ends[::-1]
    return [(x, height, left), (x, height, right), (x, 0, right), (x, 0, left)]


# ---------------------------------------------------------------------------------------------- buildings


@dataclass(frozen=True)
class Facade:
    """How the buildings of a city tend to look.

    Attributes:
        walls: wall colours.
        height: metres to the eaves, lowest and highest.
        pitched: share of the buildings with a pitched roof.
        shops: share of the buildings with shop windows on the ground floor.
        ribbons: share of the buildings with windows in one band a floor.
    """

    walls: tuple[RGB, ...]
    height: tuple[float, float]
    pitched: float
    shops: float
    ribbons: float


def _window(image: Floats, box: tuple[int, int, int, int], frame: RGB, light: Light, rng: np.random.Generator) -> None:
    left, top, right, bottom = box
    lit = rng.random() < light.lit
    glass = scaled(GLASS, float(rng.uniform(0.6, 1.5)))
    cv2.rectangle(image, (left - 1, top - 1), (right + 1, bottom + 1), frame, -1)
    cv2.rectangle(image, (left, top), (right, bottom), glass, -1)
    if lit:
        # As bright as a lamp in any light: divided by the light that the whole wall is multiplied with later.
        r, g, b = (value / ambient for value, ambient in zip((240, 188, 112), light.ambient, strict=True))
        cv2.rectangle(image, (left, top), (right, bottom), (r, g, b), -1)
    elif rng.random() < 0.6:  # the sky, mirrored in the upper pane
        shine = scaled(light.horizon, 0.8)
        cv2.rectangle(image, (left, top), (right, top + (bottom - top) // 3), mix(glass, shine, 0.55), -1)
    cv2.line(image, ((left + right) // 2, top), ((left + right) // 2, bottom), frame, 1)
    cv2.line(image, (left - 1, bottom + 2), (right + 1, bottom + 2), scaled(frame, 0.6), 1)


def _ground_floor(image: Floats, per_metre: float, shop: bool, light: Light, rng: np.random.Generator) -> None:
    height, width = image.shape[:2]
    top, bay = height - round(3.2 * per_metre), round(float(rng.uniform(2.4, 3.4)) * per_metre)
    trim = pick(rng, CLOTHES, 20)
    if shop:
        cv2.rectangle(image, (0, top), (width, height), mix(trim, (90, 84, 78), 0.6), -1)
        cv2.rectangle(image, (0, top), (width, top + round(0.6 * per_metre)), trim, -1)
    cv2.rectangle(image, (0, height - round(0.4 * per_metre)), (width, height), (96, 94, 92), -1)
    door = int(rng.integers(0, max(1, width // max(bay, 1))))
    for number, left in enumerate(range(round(0.4 * per_metre), width - bay // 2, bay)):
        right = left + round(bay * (0.8 if shop else 0.5))
        if number == door:
            box = (left, height - round(2.3 * per_metre), left + round(1.1 * per_metre), height)
            cv2.rectangle(image, box[:2], box[2:], scaled(trim, 0.55), -1)
            cv2.rectangle(image, box[:2], box[2:], scaled(trim, 0.3), 2)
        else:
            low = 0.5 if shop else 1.0
            box = (left, top + round(0.8 * per_metre), right, height - round(low * per_metre))
            _window(image, box, (60, 56, 54) if shop else (216, 212, 204), light, rng)


def _facade_image(
    size: tuple[float, float],
    per_metre: float,
    wall: RGB,
    look: Facade,
    light: Light,
    rng: np.random.Generator,
) -> Floats:
    """A wall of ``(width, height)`` metres seen head-on, ``(H, W, 3)`` float32."""
    width, height = (max(8, round(metres * per_metre)) for metres in size)
    image = np.empty((height, width, 3), np.float32)
    image[:] = wall
    image *= 1 + 0.05 * smooth_noise(rng, (height, width), (6, 40))[..., None]
    if rng.random() < 0.4:  # courses of brick or stone
        image[:: max(3, round(0.4 * per_metre))] *= 0.86
    frame = pick(rng, ((226, 222, 214), (92, 80, 70), (160, 154, 146)), 8)
    ribbon = rng.random() < look.ribbons
    bay = float(rng.uniform(1.7, 2.3) if ribbon else rng.uniform(2.2, 3.0)) * per_metre
    share = 0.94 if ribbon else float(rng.uniform(0.42, 0.58))
    bottom = height - round(4.0 * per_metre)
    while bottom > 2.0 * per_metre:
        top = bottom - round(float(1.7 if ribbon else 1.9) * per_metre)
        if not ribbon and rng.random() < 0.25:  # a balcony's or sill's band
            cv2.rectangle(image, (0, bottom + 3), (width, bottom + 3 + round(0.25 * per_metre)), scaled(wall, 0.72), -1)
        for left in np.arange(bay * (1 - share), width - bay * share, bay):
            _window(image, (round(left), top, round(left + bay * share), bottom), frame, light, rng)
        bottom -= round(3.2 * per_metre)
    cv2.rectangle(image, (0, 0), (width, round(0.45 * per_metre)), scaled(wall, 0.66), -1)
    _ground_floor(image, per_metre, bool(rng.random() < look.shops), light, rng)
    return image


def paint_building(
    canvas: Canvas, x: float, ends: tuple[float, float], look: Facade, free: bool, rng: np.random.Generator
) -> None:
    """A house along the street.

    Args:
        canvas: what to paint on.
        x: where its front stands, metres; left of the street if negative.
        ends: its near and far end, metres.
        look: of its city.
        free: True if no house stands next to it on the near side, so that this side has windows too.
        rng: where the house's own looks are drawn from.
    """
    (near, far), side, depth = ends, math.copysign(1.0, x), 12.0
    height, wall = float(rng.uniform(*look.height)), pick(rng, look.walls)
    outer = x + side * depth
    if rng.random() < look.pitched:
        ridge, middle, eave = height + 3.2, x + side * depth / 2, x - side * 0.3
        roof = pick(rng, ((142, 72, 56), (96, 84, 80), (120, 92, 74)))
        peak = [(eave, height, near), (middle, ridge, near), (outer, height, near)]
        slope = [(middle, ridge, near), (middle, ridge, far), (eave, height, far), (eave, height, near)]
        canvas.polygon(peak, scaled(wall, 0.85), "building")
        canvas.polygon(slope, roof, "building")
    left, right = (outer, x) if side < 0 else (x, outer)
    gable = [(left, height, near), (right, height, near), (right, 0, near), (left, 0, near)]
    front = _front(x, ends, height)
    sunny = 0.84 if side == canvas.light.sun else 1.12
    for corners, width, shade in ((gable, depth, 0.9), (front, far - near, sunny)):
        if corners is gable and not free:
            canvas.polygon(gable, scaled(wall, shade), "building")
        elif canvas.sees(corners):
            # A wall that starts beside the camera is first in view about twelve metres ahead.
            per_metre = float(np.clip(0.75 * canvas.camera.pixels(1.0, max(near, 12.0)), 5, 16))
            image = _facade_image((width, height), per_metre, scaled(wall, shade), look, canvas.light, rng)
            canvas.texture(corners, image, "building")


# ----------------------------------------------------------------------------------------------- greenery


def paint_tree(canvas: Canvas, at: tuple[float, float], height: float, leaf: RGB, rng: np.random.Generator) -> None:
    """A tree at ``(x, z)``: a trunk and a crown of leaf clusters, dark inside, bright towards the sun."""
    x, z = at
    radius = height * float(rng.uniform(0.26, 0.36))
    middle = height - radius
    canvas.shade(Pose(x, z).footprint(2.2 * radius, 2.4 * radius), 0.3 + canvas.light.shadow * 0.3)
    bark: RGB = (92, 74, 60)
    canvas.tube((x, 0, z), (x, middle, z), (0.2, 0.13), bark, "vegetation", round_=False)
    for tip in (-0.6, 0.5):
        canvas.tube((x, middle * 0.75, z), (x + tip * radius, middle, z), (0.1, 0.05), bark, "vegetation")
    clusters = ((26, 0.36, 0.5), (34, 0.22, 0.78), (44, 0.13, 1.0), (44, 0.07, 1.25))
    for layer, (count, blob, shade) in enumerate(clusters):
        if canvas.camera.pixels(blob * radius, z) < 1.2:
            break  # a leaf cluster smaller than a pixel of the final picture is lost in it
        turn = rng.uniform(0, 2 * math.pi, count)
        out = radius * np.sqrt(rng.random(count)) * (0.85 + 0.05 * layer)
        offsets = np.stack([out * np.cos(turn), 0.95 * out * np.sin(turn)], axis=1).astype(np.float32)
        toward_sun = 0.12 * (offsets[:, 0] * canvas.light.sun + offsets[:, 1]) / radius
        shades = (shade + toward_sun + rng.normal(0, 0.09, count)).astype(np.float32)[:, None]
        radii = np.full(count, blob * radius, np.float32)
        canvas.leaves((x, middle, z), offsets, radii, np.array(leaf, np.float32) * shades, "vegetation")


def paint_hedge(canvas: Canvas, x: float, ends: tuple[float, float], leaf: RGB, rng: np.random.Generator) -> None:
    """A clipped hedge along the street, from the near to the far one of its ends."""
    near, far = ends
    height, side = float(rng.uniform(0.9, 1.5)), math.copysign(1.0, x)
    image = np.empty((24, max(24, round((far - near) * 10)), 3), np.float32)
    image[:] = leaf
    image *= np.clip(0.8 + 0.25 * smooth_noise(rng, image.shape[:2], (12, 60))[..., None], 0.3, 1.5)
    image *= np.linspace(1.15, 0.7, 24, dtype=np.float32)[:, None, None]
    outer = x + side * 0.8
    top = [(x, height, near), (outer, height, near), (outer, height, far), (x, height, far)]
    end = [(x, 0, near), (x, height, near), (outer, height, near), (outer, 0, near)]
    canvas.polygon(top, scaled(leaf, 1.2), "vegetation")
    canvas.polygon(end, scaled(leaf, 0.7), "vegetation")
    canvas.texture(_front(x, ends, height), image, "vegetation")


# ------------------------------------------------------------------------------------------ street furniture

RED, WHITE, BLUE, YELLOW = (204, 24, 32), (242, 242, 236), (24, 84, 176), (246, 200, 30)

Plate = tuple[float, RGB]  # size and colour
Bar = tuple[float, float, RGB, float]  # half width, half height, colour, how far above the sign's middle
# Corners and turn of a sign's plates, the plates, and the bars on them; lengths in radii of the sign.
SIGNS: tuple[tuple[int, float, tuple[Plate, ...], tuple[Bar, ...]], ...] = (
    (24, 0.0, ((1.0, RED), (0.72, WHITE)), ((0.4, 0.1, BLACK, 0.0),)),
    (3, math.pi / 2, ((1.25, RED), (0.8, WHITE)), ((0.09, 0.26, BLACK, 0.05),)),
    (8, math.pi / 8, ((1.06, WHITE), (0.96, RED)), ((0.6, 0.14, WHITE, 0.0),)),
    (24, 0.0, ((1.0, WHITE), (0.93, BLUE)), ((0.12, 0.5, WHITE, 0.0),)),
    (4, math.pi / 4, ((1.2, WHITE), (1.08, BLUE)), ((0.16, 0.45, WHITE, 0.0), (0.3, 0.14, WHITE, 0.3))),
    (4, 0.0, ((1.25, WHITE), (1.0, YELLOW)), ()),
)


def paint_lamp_post(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A lamp on a tall pole, its arm over the road."""
    steel, reach = pick(rng, STEEL, 6), -math.copysign(1.6, x)
    height = float(rng.uniform(5.0, 7.0))
    canvas.tube((x, 0, z), (x, height, z), (0.16, 0.12), steel, "pole", round_=False)
    canvas.tube((x, height, z), (x + reach, height + 0.3, z), (0.1, 0.09), steel, "pole")
    lamp = [(x + reach * s, height + up, z) for s, up in ((0.75, 0.4), (1.2, 0.45), (1.25, 0.15), (0.75, 0.12))]
    lit = canvas.light.lit > 0.3
    canvas.polygon(lamp, (255, 232, 180) if lit else (206, 208, 206), "pole", glow=lit)


def paint_traffic_light(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A traffic light on a pole, and a second one on an arm over the road in some places."""
    steel = pick(rng, STEEL, 6)
    heads = [(x, 2.9)]
    canvas.tube((x, 0, z), (x, 3.0, z), (0.14, 0.14), steel, "pole", round_=False)
    if rng.random() < 0.45:
        reach = -math.copysign(float(rng.uniform(1.8, 2.8)), x)
        canvas.tube((x, 2.9, z), (x, 5.0, z), (0.14, 0.12), steel, "pole")
        canvas.tube((x, 5.0, z), (x + reach, 5.2, z), (0.12, 0.1), steel, "pole")
        heads.append((x + reach, 5.1))
    burning = int(rng.integers(3))
    for column, middle in heads:
        width, height = 0.36, 0.84
        box = [(-width, -height), (width, -height), (width, height), (-width, height)]
        canvas.polygon([(column + a * 1.18, middle + b * 1.1, z) for a, b in box], (206, 202, 190), "traffic light")
        canvas.polygon([(column + a, middle + b, z) for a, b in box], (34, 36, 38), "traffic light")
        for lamp, color in enumerate(((255, 40, 30), (255, 190, 40), (50, 240, 130))):
            at = (column, middle + 0.54 - 0.54 * lamp, z)
            on = lamp == burning
            canvas.ball(at, 0.24, color if on else scaled(color, 0.3), "traffic light", glow=on)


def paint_sign(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A traffic sign on a pole: prohibition, warning, stop, mandatory, parking or a direction board."""
    height, radius = float(rng.uniform(2.3, 2.9)), float(rng.uniform(0.54, 0.66))
    canvas.tube((x, 0, z), (x, height, z), (0.12, 0.12), pick(rng, STEEL, 6), "pole", round_=False)
    corners, turn, plates, bars = SIGNS[int(rng.integers(len(SIGNS)))]
    for size, color in plates:
        turns = turn + np.arange(corners) * 2 * math.pi / corners
        ring = [(x + size * radius * math.cos(t), height + size * radius * math.sin(t), z) for t in turns]
        canvas.polygon(ring, scaled(color, 1.1), "traffic sign")
    for width, tall, color, up in bars:
        square = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        box = [(x + a * width * radius, height + (up + b * tall) * radius, z) for a, b in square]
        canvas.polygon(box, color, "traffic sign")


def paint_bin(canvas: Canvas, x: float, z: float, rng: np.random.Generator) -> None:
    """A waste bin on wheels."""
    color = pick(rng, ((52, 78, 66), (60, 66, 84), (120, 92, 48), (70, 70, 72)))
    pose = Pose(x, z, float(rng.uniform(-0.4, 0.4)))
    canvas.shade(pose.footprint(0.9, 1.0), 0.4)
    body = [pose.at(0, up, right) for right, up in ((-0.3, 0.06), (0.3, 0.06), (0.38, 1.05), (-0.38, 1.05))]
    lid = [pose.at(0, up, right) for right, up in ((-0.42, 1.03), (0.42, 1.03), (0.36, 1.2), (-0.36, 1.2))]
    canvas.polygon(body, color, "static")
    canvas.polygon(lid, scaled(color, 1.4), "static")
