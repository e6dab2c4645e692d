"""What stands, drives and walks in a street scene: tables of shapes in metres, and what paints them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from cityseg.data.scenes.painter import RGB, Canvas, Point, Pose, Span, pick, scaled

BLACK, WHITE, GLASS, GREY = (26, 26, 28), (242, 242, 236), (58, 70, 82), (156, 158, 162)
RED, BLUE, YELLOW = (204, 24, 32), (24, 84, 176), (246, 200, 30)
CLOTHES = (
    (196, 44, 48), (36, 66, 130), (228, 214, 196), (52, 52, 58),
    (226, 150, 40), (60, 122, 92), (132, 70, 128), (110, 160, 200),
)  # fmt: skip
HAIR = ((44, 32, 26), (104, 72, 44), (176, 140, 84), (150, 148, 146))
PALETTES: dict[str, tuple[tuple[RGB, ...], float, float]] = {  # colours, their spread, how often the part is there
    "top": (CLOTHES, 12, 1), "trousers": (CLOTHES, 12, 1), "skirt": (CLOTHES, 12, 0.35), "bag": (CLOTHES, 12, 0.35),
    "jersey": (((232, 224, 48), (248, 122, 30), (132, 222, 64), (232, 224, 48), *CLOTHES[:2]), 14, 1),
    "skin": (((238, 196, 164), (208, 152, 116), (150, 98, 68), (98, 64, 46)), 6, 1),
    "hair": (HAIR, 10, 1), "helmet": ((*CLOTHES, *HAIR[:2]), 10, 1), "frame": (CLOTHES, 20, 1),
    "steel": (((142, 146, 150), (98, 104, 106), (70, 84, 78), (166, 164, 156)), 6, 1),
    "bin": (((74, 110, 94), (84, 92, 118), (168, 128, 68), (98, 98, 100)), 12, 1),
    "paint": (((34, 36, 40), (206, 208, 210), (146, 150, 156), (156, 28, 34), (38, 66, 124), (236, 236, 232),
               (86, 92, 96), (74, 98, 84), (176, 152, 116)), 8, 1),
}  # fmt: skip
LAMPS: dict[str, RGB] = {  # bright in any light
    "red": (255, 40, 30), "amber": (255, 190, 40), "green": (50, 240, 130), "street lamp": (240, 228, 196),
    "headlamp": (255, 246, 214), "tail lamp": (214, 26, 26), "destination": (255, 170, 30),
}  # fmt: skip

# ----------------------------------------------------------------------------------------- the shapes of parts

Outline = tuple[Point, ...]  # forward, up, right


def _regular(corners: int, turn: float = 0.0) -> Outline:
    turns = [turn + number * 2 * math.pi / corners for number in range(corners)]
    return tuple((0.0, math.sin(t), math.cos(t)) for t in turns)


BOX: Outline = ((0, -1, -1), (0, -1, 1), (0, 1, 1), (0, 1, -1))
TAPERED: Outline = ((0, -1, -0.8), (0, -1, 0.8), (0, 1, 1), (0, 1, -1))
TRIANGLE, DIAMOND, OCTAGON, DISC = _regular(3, math.pi / 2), _regular(4), _regular(8, math.pi / 8), _regular(20)
WHEEL: Outline = tuple((c, s, 0.0) for _, s, c in DISC)
PILLAR: Outline = tuple((r, u, 0.0) for _, u, r in BOX)


class Limb(NamedTuple):
    """A round part through points: forward, up, right, radius, and how it swings forward and up (0 if not given)."""

    color: RGB | str
    points: tuple[tuple[float, ...], ...]

    def paint(self, canvas: Canvas, pose: Pose, label: str, color: RGB, swing: float) -> None:
        """On both sides if it is right of the middle, where they swing against each other."""
        points = [(*point, 0, 0)[:6] for point in self.points]
        for side in (-1, 1) if max(point[2] for point in points) > 0 else (1,):
            way = side * swing
            moved = [pose.at(f + way * df, u + way * du, side * r) for f, u, r, _, df, du in points]
            canvas.tube(moved, [point[3] for point in points], color, label)


class Plate(NamedTuple):
    """A flat part: an outline, half its width and height, and its middle."""

    color: RGB | str
    outline: Outline
    wide: float = 1
    high: float = 1
    middle: Point = (0, 0, 0)

    def paint(self, canvas: Canvas, pose: Pose, label: str, color: RGB, swing: float) -> None:
        """On both sides if it is right of the middle; where it is off the middle, it is seen from outside only."""
        (f, u, r), (forward, _, right) = self.middle, pose.eye(canvas.camera)
        along = self.outline in (WHEEL, PILLAR)
        for side in (-1, 1) if r > 0 else (1,):
            if ((right - side * r) * side * r if along else (forward - f) * f) >= 0:
                corners = ((f + a * self.wide, u + b * self.high, side * r + c * self.wide) for a, b, c in self.outline)
                canvas.polygon([pose.at(*corner) for corner in corners], color, label)


class Body(NamedTuple):
    """A side view, from the rear over the top to the front as forward and up, swept across its width."""

    color: RGB | str
    profile: tuple[tuple[float, float], ...]
    half: float  # of its width

    def paint(self, canvas: Canvas, pose: Pose, label: str, color: RGB, swing: float) -> None:
        """Only the faces turned to the camera."""
        (forward, above, right), half = pose.eye(canvas.camera), self.half
        for (f0, u0), (f1, u1) in pairwise(self.profile):
            if (f1 - f0) * (above - (u0 + u1) / 2) > (u1 - u0) * (forward - (f0 + f1) / 2):
                face = [pose.at(f0, u0, -half), pose.at(f0, u0, half), pose.at(f1, u1, half), pose.at(f1, u1, -half)]
                canvas.polygon(face, scaled(color, 0.85 + 0.35 * (f1 - f0) / math.hypot(f1 - f0, u1 - u0)), label)
        if abs(right) > half:
            side = math.copysign(half, right)
            sunny = 1.05 if side * math.cos(pose.heading) * canvas.light.sun > 0 else 0.8
            canvas.polygon([pose.at(f, u, side) for f, u in self.profile], scaled(color, sunny), label)


Parts = tuple[Limb | Plate | Body, ...]


class Thing(NamedTuple):
    """Parts by label, from back to front."""

    groups: tuple[tuple[str, Parts], ...]
    shadow: Point = (0, 0, 0)  # length and width on the ground, and how dark
    swing: Span = (0, 0)  # the least and the most


def _placed(plates: tuple[Plate, ...], at: Point, wide: float = 1, high: float = 1) -> Parts:
    """Plates that are measured in lengths of their own, put in their place."""
    return tuple(
        Plate(color, outline, w * wide, h * high, (at[0] + f * wide, at[1] + u * high, at[2] + r * wide))
        for color, outline, w, h, (f, u, r) in plates
    )


# ------------------------------------------------------------------------------------- people and bicycles

_HUBS = (-0.54, 0.54)
BICYCLE: Parts = (
    *(Limb(BLACK, ((hub, 0.05, 0, 0.05), (hub, 0.67, 0, 0.05))) for hub in _HUBS),  # seen from behind
    *(Plate(BLACK, WHEEL, 0.41, 0.41, (hub, 0.36, 0)) for hub in _HUBS),
    *(Plate((130, 130, 130), WHEEL, 0.31, 0.31, (hub, 0.36, 0)) for hub in _HUBS),
    *(Limb(GREY, ((hub - 0.3 * c, 0.36 - 0.3 * s, 0, 0), (hub + 0.3 * c, 0.36 + 0.3 * s, 0, 0)))
      for hub in _HUBS for c, s, _ in WHEEL[:10:2]),
    Limb("frame", ((-0.54, 0.36, 0, 0.045), (-0.05, 0.32, 0, 0.045), (0.38, 0.9, 0, 0.045), (0.54, 0.36, 0, 0.045))),
    Limb("frame", ((-0.54, 0.36, 0, 0.045), (-0.2, 0.92, 0, 0.045), (0.38, 0.9, 0, 0.045), (0.36, 1.08, 0, 0.045))),
    Limb("frame", ((-0.05, 0.32, 0, 0.045), (-0.2, 0.92, 0, 0.045))),
    Limb(BLACK, ((-0.34, 0.96, 0, 0.07), (-0.06, 0.96, 0, 0.05))),
    Limb(BLACK, ((0.36, 1.08, 0, 0.04), (0.36, 1.08, 0.3, 0.04))),
)  # fmt: skip
CYCLIST: Parts = (
    Limb("trousers", ((-0.2, 1.02, 0.1, 0.13), (0.21, 0.67, 0.13, 0.1, 0, 0.05), (-0.04, 0.33, 0.12, 0.07, 0.06, 0.1))),
    Limb(BLACK, ((-0.08, 0.29, 0.12, 0.065, 0.06, 0.11), (0.1, 0.29, 0.12, 0.06, 0.06, 0.11))),
    Limb("dark jersey", ((0.1, 1.52, 0.2, 0.08), (0.36, 1.12, 0.26, 0.065))),
    Limb("jersey", ((-0.2, 1.02, 0, 0.19), (0.1, 1.44, 0, 0.22))),
    Limb("helmet", ((0.18, 1.845, 0, 0.165),)),
    Limb("skin", ((0.18, 1.78, 0, 0.13),)),
)  # fmt: skip
WALKER: Parts = (
    Limb("trousers", ((0, 0.92, 0.09, 0.12), (0, 0.5, 0.1, 0.1, 0.6), (0, 0.08, 0.1, 0.08, 1))),
    Limb(BLACK, ((-0.03, 0.05, 0.1, 0.07, 1), (0.16, 0.05, 0.1, 0.06, 1))),
    Limb("dark top", ((0, 1.39, 0.21, 0.08), (0, 0.86, 0.3, 0.065, -0.7))),
    Limb("skin", ((0, 0.86, 0.3, 0.07, -0.7),)),
    Limb("top", ((0, 0.9, 0, 0.19), (0, 1.32, 0, 0.21))),
    Limb("skirt", ((0, 0.92, 0, 0.19), (0, 0.6, 0, 0.25))),
    Limb("bag", ((-0.2, 1.0, 0, 0.14), (-0.2, 1.32, 0, 0.14))),
    Limb("hair", ((0.02, 1.7, 0, 0.16),)),
    Limb("skin", ((0.02, 1.64, 0, 0.125),)),
)
BICYCLES = (Thing((("bicycle", BICYCLE),), (1.9, 0.7, 0.4)),)
RIDERS = (Thing((("bicycle", BICYCLE), ("rider", CYCLIST)), (1.9, 0.7, 0.4), (-1, 1)),)
PEOPLE = (Thing((("person", WALKER),), (0.7, 0.9, 0.45), (0.05, 0.42)),)

# ------------------------------------------------------------------------------------------ street furniture

POLE: Parts = (Limb("steel", ((0, 0, 0, 0.13), (0, 2.9, 0, 0.13))),)
ARM: Parts = (Limb("steel", ((0, 2.9, 0, 0.13), (0, 5, 0, 0.12), (0, 5.2, -2.3, 0.1))),)
SIGNS = tuple(Thing((("pole", POLE), ("traffic sign", _placed(plates, (0, 2.6, 0), 0.6, 0.6)))) for plates in (
    (Plate(RED, DISC), Plate(WHITE, DISC, 0.72, 0.72), Plate(BLACK, BOX, 0.4, 0.1)),
    (Plate(RED, TRIANGLE, 1.25, 1.25), Plate(WHITE, TRIANGLE, 0.8, 0.8), Plate(BLACK, BOX, 0.09, 0.26, (0, 0.05, 0))),
    (Plate(WHITE, OCTAGON, 1.06, 1.06), Plate(RED, OCTAGON, 0.96, 0.96), Plate(WHITE, BOX, 0.6, 0.14)),
    (Plate(WHITE, DISC), Plate(BLUE, DISC, 0.93, 0.93), Plate(WHITE, BOX, 0.12, 0.5)),
    (Plate(WHITE, BOX, 0.85, 0.85), Plate(BLUE, BOX, 0.76, 0.76), Plate(WHITE, BOX, 0.16, 0.45),
     Plate(WHITE, BOX, 0.3, 0.14, (0, 0.3, 0))),
    (Plate(WHITE, DIAMOND, 1.25, 1.25), Plate(YELLOW, DIAMOND)),
))  # fmt: skip
_BULBS = (("red", 0.54), ("amber", 0), ("green", -0.54))
_SIGNALS = tuple(
    (Plate((206, 202, 190), BOX, 0.42, 0.92), Plate((34, 36, 38), BOX, 0.36, 0.84),
     *(Plate(bulb if bulb == lit else scaled(LAMPS[bulb], 0.3), DISC, 0.24, 0.24, (0, up, 0)) for bulb, up in _BULBS))
    for lit, _ in _BULBS
)  # fmt: skip
TRAFFIC_LIGHTS = tuple(
    Thing((("pole", POLE + arm), *(("traffic light", _placed(signal, head)) for head in heads)))
    for arm, heads in (((), [(0, 2.9, 0)]), (ARM, [(0, 2.9, 0), (0, 5.1, -2.3)])) for signal in _SIGNALS
)  # fmt: skip
STREET_LAMPS = (Thing((("pole", (
    Limb("steel", ((0, 0, 0, 0.16), (0, 6, 0, 0.12), (0, 6.3, -1.6, 0.09))),
    Plate("street lamp", TAPERED, 0.4, -0.14, (0, 6.28, -1.6)),
)),)),)  # fmt: skip
WASTE_BINS = (Thing((("static", (
    Plate("dark bin", TAPERED, 0.38, 0.5, (0, 0.55, 0)), Plate("bin", BOX, 0.42, 0.09, (0, 1.1, 0)),
)),), (0.9, 1.0, 0.4)),)  # fmt: skip

# ------------------------------------------------------------------------------------------------- vehicles

_BUMPER = (Plate(BLACK, BOX, 1, 0.15, (0, 0.15, 0)), Plate((236, 234, 220), BOX, 0.28, 0.1, (0, 0.4, 0)))
_REAR = (*_BUMPER, Plate("tail lamp", BOX, 0.145, 0.16, (0, 0.74, 0.8)))
_FRONT = (*_BUMPER, Plate(BLACK, BOX, 0.5, 0.135, (0, 0.685, 0)), Plate("headlamp", BOX, 0.145, 0.16, (0, 0.74, 0.8)))
_RIM = (Plate(BLACK, WHEEL), Plate(GREY, WHEEL, 0.58, 0.58), Plate(BLACK, WHEEL, 0.2, 0.2))


def _vehicle(label: str, bodies: tuple[Body, ...], wheels: tuple[float, float, float], extra: Parts) -> Thing:
    """Bodies from low to high, whose lowest has the bumpers, and wheels: rear, front and radius."""
    (rear, low), (front, _), half = bodies[0].profile[0], bodies[0].profile[-1], bodies[0].half
    high, radius = bodies[0].profile[1][1] - low, wheels[2]
    ends = _placed(_REAR, (rear, low, 0), half, high) + _placed(_FRONT, (front, low, 0), half, high)
    treads = [Plate(BLACK, BOX, 0.12, radius / 2, (hub, radius / 2, half - 0.12)) for hub in wheels[:2]]
    rims = [plate for hub in wheels[:2] for plate in _placed(_RIM, (hub, radius, half), radius, radius)]
    return Thing(((label, (*treads, *bodies, *ends, *rims, *extra)),), (front - rear + 0.5, 2 * half + 0.5, 0.55))


def _car(length: Span, belt: float, roof: float, cabin: tuple[float, ...], half: float, wheel: float) -> Thing:
    (rear, front), low, mid, (r0, r1, f1, f0) = length, wheel - 0.06, (roof + belt) / 2, cabin
    hull = (rear + 0.05, low), (rear, 0.86 * belt), (rear + 0.15, belt), (f0, belt), (front - 0.1, 0.86 * belt)
    glass, eaves = ((r0, belt), (r1, roof - 0.06), (f1, roof - 0.06), (f0, belt)), roof - 0.08
    top = ((r1 - 0.05, eaves), (r1 + 0.05, roof), (f1 - 0.05, roof), (f1 + 0.08, eaves))
    size, side = (PILLAR, 0.05, roof - mid), (mid, 0.86 * half)
    pillars = tuple(Plate("dark paint", *size, (hub, *side)) for hub in (r1 + 0.05, (r1 + f1) / 2))
    lower, upper = Body("paint", (*hull, (front, low)), half), Body("paint", top, 0.84 * half)
    bodies = lower, Body(GLASS, glass, side[1]), upper
    return _vehicle("car", bodies, (rear + 0.8, front - 0.8, wheel), pillars)


CARS = (
    _car((-2.0, 2.0), 1.0, 1.52, (-1.85, -1.45, 0.2, 1.0), 0.92, 0.34),  # hatchback
    _car((-2.3, 2.25), 0.98, 1.46, (-1.5, -0.9, 0.3, 1.1), 0.93, 0.34),  # saloon
    _car((-2.2, 2.2), 1.14, 1.76, (-2.1, -1.9, 0.35, 1.1), 0.98, 0.42),  # off-roader
)
BUSES = (_vehicle(
    "bus",
    (Body("paint", ((-4.6, 0.4), (-4.65, 1.35), (4.65, 1.35), (4.6, 0.4)), 1.28),
     Body(GLASS, ((-4.65, 1.35), (-4.65, 2.6), (4.65, 2.6), (4.65, 1.35)), 1.27),
     Body("paint", ((-4.65, 2.6), (-4.55, 3.1), (4.55, 3.1), (4.65, 2.6)), 1.26)),
    (-2.9, 2.7, 0.5),
    (*(Plate("paint", PILLAR, 0.1, 0.63, (-4.55 + 1.52 * number, 1.97, 1.27)) for number in range(7)),
     Plate("destination", BOX, 0.77, 0.14, (4.66, 2.85, 0))),
),)  # fmt: skip


def paint_thing(
    canvas: Canvas, pose: Pose, rng: np.random.Generator, kinds: tuple[Thing, ...], paint: RGB | None = None
) -> None:
    """One of the kinds of a thing, in colours of the palettes or in that paint."""
    thing = kinds[int(rng.integers(len(kinds)))]
    colors: dict[str, RGB | None] = {name: canvas.light.lamp(color) for name, color in LAMPS.items()}
    if paint:
        colors["paint"] = pick(rng, (paint,), 8)

    def color_of(name: RGB | str) -> RGB | None:
        if not isinstance(name, str):
            return name
        plain = name.removeprefix("dark ")
        if plain not in colors:
            palette, spread, share = PALETTES[plain]
            colors[plain] = pick(rng, palette, spread) if rng.random() < share else None
        color = colors[plain]
        return scaled(color, 0.8) if color and plain != name else color

    if thing.shadow[2]:
        canvas.shade(pose, *thing.shadow)
    swing = float(rng.uniform(*thing.swing))
    for label, parts in thing.groups:
        for part in parts:
            if (color := color_of(part.color)) is not None:
                part.paint(canvas, pose, label, color, swing)


CLUSTERS = ((26, 0.36, 0.5), (34, 0.22, 0.78), (44, 0.13, 1.0), (44, 0.07, 1.25))  # how many, how large, how bright


def paint_tree(
    canvas: Canvas, pose: Pose, rng: np.random.Generator, leaf: RGB, *,
    height: Span = (4.8, 7.5), crown: Span = (0.26, 0.36),
) -> None:  # fmt: skip
    """A trunk and a crown (its radius in heights) of leaf clusters, dark inside, bright towards the sun."""
    light, top, leaf = canvas.light, float(rng.uniform(*height)), pick(rng, (leaf,), 9)
    radius = top * float(rng.uniform(*crown))
    middle = top - radius
    canvas.shade(pose, 2.2 * radius, 2.4 * radius, 0.3 + light.shadow * 0.3)
    for tip, foot, thick in ((0.0, 0.0, 0.16), (-0.6, 0.75, 0.07), (0.5, 0.75, 0.07)):
        branch = [pose.at(0, middle * foot), pose.at(0, middle, tip * radius)]
        canvas.tube(branch, (thick, thick * 0.7), (92, 74, 60), "vegetation")
    for layer, (count, size, shade) in enumerate(CLUSTERS):
        if canvas.camera.pixels(size * radius, pose.z) < 1.2:
            break  # a leaf cluster smaller than a pixel of the final picture is lost in it
        turn, out = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.random(count)) * (0.85 + 0.05 * layer)
        spread = np.stack([out * np.cos(turn), 0.95 * out * np.sin(turn)], axis=1).astype(np.float32)
        shades = shade + 0.12 * (spread[:, 0] * light.sun + spread[:, 1]) + rng.normal(0, 0.09, count)
        colors = np.array(leaf, np.float32) * shades.astype(np.float32)[:, None]
        canvas.leaves(pose.at(0, middle), radius * spread, size * radius, colors)
