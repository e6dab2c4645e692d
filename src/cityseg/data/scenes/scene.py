"""Puts a street scene together: who and what is where, and what the camera makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cityseg.data.scenes import things
from cityseg.data.scenes.painter import RGB, Camera, Canvas, Light, Pose, Span
from cityseg.data.scenes.street import Street, paint_bonnet, paint_ground, paint_houses, paint_sky
from cityseg.labels import ByteArray

TRAIN_CITIES = ("aldermoor", "brunnstadt", "castellan", "dorneval", "eastmarch")
VAL_CITIES = ("fennwick", "grauhafen")
CITIES = (*TRAIN_CITIES, *VAL_CITIES)
SUPERSAMPLING = 2
PI = math.pi

Painter = Callable[[Canvas, Pose, np.random.Generator], None]


class Wish(NamedTuple):
    """Things of a kind that a scene should have; places and sizes are metres."""

    painter: Painter  # of one of them
    share: float  # of the scenes that have any
    number: tuple[int, int]  # least and most
    across: Span  # as Street.across counts
    ahead: Span  # of the camera
    size: Span  # room that one takes across and along the street
    headings: tuple[float, ...] = (0.0,)  # 0 is with the traffic of that side
    turn: float = 0.0  # spread of the heading
    scale: Span = (1.0, 1.0)


def _wish(kinds: tuple[things.Thing, ...], *rest: Any, paint: RGB | None = None, **named: Any) -> Wish:
    return Wish(partial(things.paint_thing, kinds=kinds, paint=paint), *rest, **named)


_PERSON, _KERB, _POST, _ANY = (0.7, 0.7), (1.13, 1.2), (0.6, 1.2), (0, PI, PI / 2, -PI / 2)
LIFE = (
    _wish(things.RIDERS, 0.78, (1, 2), (0, 0.84), (6, 11), (1.4, 1.6), _ANY, 0.35, (1.06, 1.2)),
    _wish(things.BICYCLES, 0.4, (1, 1), (1.27, 1.73), (7, 15), (1.6, 1.2), (PI / 2,), 0.5, (1, 1.1)),
    _wish(things.PEOPLE, 1, (3, 7), (1.17, 1.8), (6.5, 15), _PERSON, (0, PI), 0.5, (0.96, 1.14)),
    _wish(things.TRAFFIC_LIGHTS, 0.65, (1, 2), _KERB, (6.5, 11), _POST),
    _wish(things.SIGNS, 0.85, (1, 3), _KERB, (6.5, 12), _POST, scale=(0.9, 1.1)),
    _wish(things.WASTE_BINS, 0.35, (1, 1), _KERB, (8, 18), _POST, turn=0.25),
    _wish(things.STREET_LAMPS, 0.8, (1, 3), _KERB, (8, 24), _POST, scale=(0.85, 1.15)),
)


def _paint_life(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    """People, street furniture, traffic and greenery, each where there is room left; far things first."""
    taken: list[tuple[float, float, float, float]] = []
    painters: list[tuple[float, Callable[[], None]]] = []

    def add(wish: Wish, side: int = 0) -> None:
        """Add things to a side of the street (0: to any), each if a free place in view is found."""
        wide, long = wish.size
        for _ in range(int(rng.integers(wish.number[0], wish.number[1] + 1)) if rng.random() < wish.share else 0):
            for _ in range(14):
                beside, z = side or int(rng.choice((-1, 1))), float(rng.uniform(*wish.ahead))
                x = beside * street.across(float(rng.uniform(*wish.across)))
                left, right, near, far = x - wide / 2, x + wide / 2, z - long / 2, z + long / 2
                column = canvas.camera.project((x, 0.0, near))[0] / canvas.camera.size
                free = all(left > b or right < a or near > d or far < c for a, b, c, d in taken)
                if free and 0.03 < column < 0.97 and not street.opens(x, z):
                    heading = float(rng.choice(wish.headings) + rng.normal(0, wish.turn)) + (PI if beside < 0 else 0)
                    pose = Pose(x, z, heading, float(rng.uniform(*wish.scale)))
                    taken.append((left, right, near, far))
                    painters.append((z, partial(wish.painter, canvas, pose, rng)))
                    break

    for wish in LIFE:
        add(wish)
    if (start := street.crossing) < 30:
        ahead, headings = (start + 0.3, start + 3), (PI / 2, -PI / 2)
        add(_wish(things.PEOPLE, 1, (0, 3), (0, 0.9), ahead, _PERSON, headings, 0, (0.96, 1.14)))
    lane, parked = 0.5 - 1 / street.road, 1 - 1.15 / street.road
    place, bus = (lane, lane, parked)[int(rng.integers(3))], things.BUSES
    beside = (place - 0.06, place + 0.06)
    add(_wish(bus, 0.58, (1, 1), beside, (11, 20), (2.6, 9.9), turn=0.025, paint=street.bus))
    car = _wish(things.CARS, 1, (0, 2), (lane - 0.06, lane + 0.06), (8, 36), (1.9, 5.0), (0,), 0.025)
    tree = Wish(partial(things.paint_tree, leaf=street.leaf), 1, (1, 1), (1.26, 1.4), (12, 75), (1.6, 4.0))
    bush = partial(things.paint_tree, leaf=street.leaf, height=(1.0, 1.7), crown=(0.46, 0.54))
    for side in (-1, 1):
        share = float(rng.choice([0.0, 0.35, 0.7], p=[0.3, 0.35, 0.35]))
        for z in np.arange(8.0, 60.0, 5.6).tolist():
            row = (parked - 0.06, parked + 0.06), (z - 0.3, z + 0.3)
            add(car._replace(share=share, number=(1, 1), across=row[0], ahead=row[1]), side)
        add(car, side)
        for _ in range(int(rng.poisson(street.trees * 5)) if rng.random() < 0.8 else 0):
            add(tree, side)
        near, row_of = float(rng.uniform(9, 20)), rng.random() < 0.35
        for z in np.arange(near, near + float(rng.uniform(5, 14)), 1.0).tolist() if row_of else ():
            add(Wish(bush, 1, (1, 1), (1.75, 1.8), (z, z + 0.1), (0.5, 0.5)), side)
    for _, painter in sorted(painters, key=lambda item: -item[0]):
        painter()


def render_scene(seed: int, index: int, size: int = 256) -> tuple[ByteArray, ByteArray]:
    """Draw one street scene; the same arguments give the same scene.

    Args:
        seed: of the whole set; also decides what its cities look like.
        index: number of the scene, from 0; scenes whose index differs by ``len(CITIES)`` share a city.
        size: height and width, pixels.

    Returns:
        The photo ``(size, size, 3)`` uint8 RGB, and its Cityscapes label ids ``(size, size)`` uint8: those of
        ``SCENE_CLASSES`` and of a few void labels.
    """
    rng = np.random.default_rng([seed, index])
    street = Street(seed, index % len(CITIES), rng)
    # Half of the frames follow the city, half the world: no split has a light that the other never saw.
    weather = street.weather if rng.random() < 0.5 else Light.weather(rng)
    canvas = Canvas(Camera(size * SUPERSAMPLING, rng), Light(weather, rng))
    paint_sky(canvas, rng)
    paint_ground(canvas, street, rng)
    # All houses first: seen past anything on the street, a house front is always farther away.
    paint_houses(canvas, street, rng)
    _paint_life(canvas, street, rng)
    if rng.random() < 0.4:
        paint_bonnet(canvas, rng)
    labels = np.ascontiguousarray(canvas.pixels[::SUPERSAMPLING, ::SUPERSAMPLING, 3])
    return canvas.developed(size, rng), labels
