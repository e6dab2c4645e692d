"""Draws what a synthetic street scene consists of: its city, its light, its street and all that is on it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from cityseg.data.scenes import objects as things
from cityseg.data.scenes import traffic
from cityseg.data.scenes.backdrop import Block, Street, paint_ground, paint_hood, paint_sky
from cityseg.data.scenes.objects import Pose
from cityseg.data.scenes.painter import RGB, Camera, Canvas, Light, mix, scaled

TOWN = 110.0  # metres: where the street ends in sight
WEATHERS = {"day": 0.5, "overcast": 0.3, "dusk": 0.2}  # and their share of the frames
WALLS: tuple[RGB, ...] = (
    (206, 184, 152), (178, 110, 86), (196, 192, 184), (150, 96, 76), (222, 208, 166),
    (160, 166, 172), (202, 158, 130), (134, 126, 118), (184, 198, 196),
)  # fmt: skip
LEAVES: tuple[RGB, ...] = ((84, 128, 52), (62, 108, 58), (112, 138, 56), (96, 120, 68), (150, 132, 52))
BUSES: tuple[RGB, ...] = ((236, 186, 32), (206, 40, 42), (54, 152, 92), (46, 110, 198), (236, 122, 34))
PAINTS: tuple[RGB, ...] = (
    (34, 36, 40), (206, 208, 210), (146, 150, 156), (156, 28, 34), (38, 66, 124),
    (236, 236, 232), (86, 92, 96), (74, 98, 84), (176, 152, 116),
)  # fmt: skip


@dataclass(frozen=True)
class City:
    """What the frames of one city have in common.

    Attributes:
        facade: how its buildings look.
        leaf: colour of its trees.
        asphalt: colour of its roads.
        paving: colour of its sidewalks.
        slab: edge length of its paving slabs, metres.
        marks: colour of its lane marks.
        bus: colour of its buses.
        trees: trees on 10 metres of sidewalk.
        weather: the light most of its frames have, one of ``WEATHERS``.
        road: metres from the middle of its roads to the kerb.
    """

    facade: things.Facade
    leaf: RGB
    asphalt: RGB
    paving: RGB
    slab: float
    marks: RGB
    bus: RGB
    trees: float
    weather: str
    road: float


def _weather(rng: np.random.Generator) -> str:
    return str(rng.choice([*WEATHERS], p=[*WEATHERS.values()]))


def draw_city(seed: int, number: int) -> City:
    """The looks of a city; the same arguments give the same city."""
    rng = np.random.default_rng([seed, 1_000_003, number])
    low = float(rng.uniform(7, 11))
    grey = float(rng.uniform(84, 122))
    facade = things.Facade(
        walls=tuple(things.pick(rng, WALLS, 14) for _ in range(4)),
        height=(low, low + float(rng.uniform(4, 9))),
        pitched=float(rng.uniform(0.1, 0.7)),
        shops=float(rng.uniform(0.3, 0.8)),
        ribbons=float(rng.uniform(0.05, 0.4)),
    )
    return City(
        facade=facade,
        leaf=things.pick(rng, LEAVES, 6),
        asphalt=(grey, grey, grey + float(rng.uniform(0, 8))),
        paving=things.pick(rng, ((176, 170, 160), (164, 150, 140), (190, 176, 150), (160, 162, 166)), 6),
        slab=float(rng.choice([0.5, 0.75, 1.0])),
        marks=(236, 236, 228) if rng.random() < 0.75 else (232, 196, 84),
        bus=things.pick(rng, BUSES, 8),
        trees=float(rng.uniform(0.5, 1.1)),
        weather=_weather(rng),
        road=float(rng.uniform(3.5, 4.1)),
    )


def _light(city: City, rng: np.random.Generator) -> Light:
    # Half of the frames follow the city, half the world: no split has a light that the other never saw.
    weather = city.weather if rng.random() < 0.5 else _weather(rng)
    sun, warm = int(rng.choice([-1, 1])), float(rng.uniform(0, 1))
    if weather == "day":
        return Light(
            ambient=(1.06, 1.03, 0.97),
            zenith=mix((84, 140, 214), (120, 168, 222), warm),
            horizon=(206, 220, 232),
            haze=float(rng.uniform(120, 260)),
            shadow=0.42,
            sun=sun,
            clouds=float(rng.uniform(0.2, 0.65)),
            lit=0.02,
        )
    if weather == "overcast":
        return Light(
            ambient=(0.84, 0.86, 0.89),
            zenith=mix((158, 166, 176), (190, 194, 200), warm),
            horizon=(212, 215, 218),
            haze=float(rng.uniform(60, 150)),
            shadow=0.08,
            sun=sun,
            clouds=float(rng.uniform(0.5, 0.9)),
            lit=0.12,
        )
    return Light(
        ambient=(0.66, 0.56, 0.56),
        zenith=mix((64, 72, 122), (98, 96, 142), warm),
        horizon=mix((238, 168, 120), (214, 150, 156), warm),
        haze=float(rng.uniform(130, 260)),
        shadow=0.12,
        sun=sun,
        clouds=float(rng.uniform(0.2, 0.6)),
        lit=0.45,
    )


def _camera(size: int, rng: np.random.Generator) -> Camera:
    return Camera(
        size=size,
        focal=size * float(rng.uniform(0.8, 0.96)),
        vanishing=(size * float(rng.uniform(0.38, 0.62)), size * float(rng.uniform(0.42, 0.54))),
        height=float(rng.uniform(1.6, 2.2)),
        x=float(rng.uniform(-0.8, 1.8)),
        roll=float(rng.normal(0, 0.012)),
        bend=float(rng.normal(0, 0.0011)),
    )


def _street(city: City, rng: np.random.Generator) -> Street:
    road, walk = city.road, float(rng.uniform(2.4, 3.6))
    openings, blocks = [], []
    for side in (-1, 1):
        z, cross = 4.0, float(rng.uniform(18, 60))
        while z < TOWN - 20:
            far = z + float(rng.uniform(9, 17))
            if z <= cross < far:
                openings.append((side, z + 1.0, z + 8.0))
                z += 9.0
                continue
            blocks.append(Block(side, z, far))
            z = far + (float(rng.uniform(2.5, 5)) if rng.random() < 0.3 else 0.0)
    return Street(
        road=road,
        walk=walk,
        openings=tuple(openings),
        crossing=float(rng.uniform(9, 20)) if rng.random() < 0.4 else 1e6,
        blocks=tuple(blocks),
        asphalt=things.pick(rng, (city.asphalt,), 3),
        paving=things.pick(rng, (city.paving,), 4),
        slab=city.slab,
        marks=city.marks,
        solid=bool(rng.random() < 0.25),
    )


class Scene:
    """Finds room for things and keeps them until they are painted from far to near."""

    def __init__(self, camera: Camera, street: Street, rng: np.random.Generator) -> None:
        """Start with an empty street."""
        self.camera = camera
        self.street = street
        self.rng = rng
        self.taken: list[tuple[float, float, float, float]] = []
        self.painters: list[tuple[float, Callable[[Canvas], None]]] = []

    def room(
        self, across: tuple[float, float], ahead: tuple[float, float], size: tuple[float, float]
    ) -> tuple[float, float] | None:
        """A free spot ``(x, z)`` in view for a thing of that size (across, along), metres; else None."""
        for _ in range(14):
            x, z = float(self.rng.uniform(min(across), max(across))), float(self.rng.uniform(*ahead))
            near = z - size[1] / 2
            column, _ = self.camera.project((x, 0.0, near))
            box = (x - size[0] / 2, x + size[0] / 2, near, z + size[1] / 2)
            free = all(box[0] > b or box[1] < a or box[2] > d or box[3] < c for a, b, c, d in self.taken)
            if free and 0.03 < column / self.camera.size < 0.97 and not self._in_opening(x, z):
                self.taken.append(box)
                return x, z
        return None

    def _in_opening(self, x: float, z: float) -> bool:
        beyond = abs(x) > self.street.road
        return beyond and any(x * side > 0 and near - 0.5 < z < far + 0.5 for side, near, far in self.street.openings)

    def add(self, depth: float, painter: Callable[[Canvas], None]) -> None:
        """Keep a thing for painting; depth in metres decides the order."""
        self.painters.append((depth, painter))

    def paint(self, canvas: Canvas) -> None:
        """Paint all, far things first."""
        for _, painter in sorted(self.painters, key=lambda item: -item[0]):
            painter(canvas)


def _add_houses(scene: Scene, city: City) -> None:
    rng, street = scene.rng, scene.street
    for column in np.arange(-120.0, 120.0, 11.0):  # the rest of the town closes the street
        height, wall = float(rng.uniform(7, 19)), scaled(things.pick(rng, city.facade.walls), 0.85)
        left, right = float(column), float(column) + 12
        block = [(left, 0.0, TOWN), (right, 0.0, TOWN), (right, height, TOWN), (left, height, TOWN)]
        scene.add(TOWN, partial(Canvas.polygon, points=block, color=wall, name="building"))
    previous = {-1: 0.0, 1: 0.0}
    for house in street.blocks:
        front = house.side * (street.front + float(rng.uniform(0, 0.6)))
        gap, free = house.near - previous[house.side], house.near > previous[house.side]
        ends, look = (house.near, house.far), city.facade
        scene.add(house.near, partial(things.paint_building, x=front, ends=ends, look=look, free=free, rng=rng))
        if 2.0 < gap < 6.0 and previous[house.side]:
            x, z = front + house.side * 3.0, house.near - gap / 2
            height = float(rng.uniform(6, 9))
            scene.add(z, partial(things.paint_tree, at=(x, z), height=height, leaf=city.leaf, rng=rng))
        previous[house.side] = house.far


def _add_traffic(scene: Scene, city: City) -> None:
    rng, road = scene.rng, scene.street.road
    lane = (road - 2.0) / 2

    def vehicle(body: traffic.Vehicle, x: float, heading: float, ahead: tuple[float, float], color: RGB) -> None:
        length = body.profile[-1][0] - body.profile[0][0]
        if spot := scene.room((x - 0.25, x + 0.25), ahead, (2 * body.half_width, length + 0.6)):
            pose = Pose(*spot, heading + float(rng.normal(0, 0.025)), float(rng.uniform(0.96, 1.06)))
            scene.add(spot[1], partial(traffic.paint_vehicle, body=body, pose=pose, color=color))

    if rng.random() < 0.62:
        x, heading = ((lane, 0.0), (-lane, math.pi), (road - 1.3, 0.0))[int(rng.integers(3))]
        vehicle(traffic.BUS, x, heading, (11, 20), things.pick(rng, (city.bus,), 10))
    for side in (-1, 1):
        heading = 0.0 if side > 0 else math.pi  # cars keep to the right
        parked = float(rng.choice([0.0, 0.35, 0.7], p=[0.3, 0.35, 0.35]))
        for z in np.arange(8.0, 60.0, 5.6):
            if rng.random() < parked:
                ahead = (float(z) - 0.3, float(z) + 0.3)
                vehicle(_car(rng), side * (road - 1.15), heading, ahead, things.pick(rng, PAINTS, 8))
        for _ in range(int(rng.integers(0, 3))):
            vehicle(_car(rng), side * lane, heading, (8, 36), things.pick(rng, PAINTS, 8))


def _car(rng: np.random.Generator) -> traffic.Vehicle:
    return traffic.CARS[int(rng.integers(len(traffic.CARS)))]


def _add_people(scene: Scene) -> None:
    rng, street = scene.rng, scene.street
    if rng.random() < 0.78:
        for _ in range(int(rng.integers(1, 3))):
            heading = float(rng.choice([0.0, math.pi, math.pi / 2, -math.pi / 2]) + rng.normal(0, 0.35))
            if spot := scene.room((-street.road + 0.6, street.road - 0.6), (6, 11), (1.4, 1.6)):
                pose = Pose(*spot, heading, float(rng.uniform(1.06, 1.2)))
                scene.add(spot[1], partial(traffic.paint_rider, pose=pose, rng=rng))
    if rng.random() < 0.4:
        side = float(rng.choice([-1, 1]))
        across = (side * (street.road + 0.8), side * (street.front - 0.8))
        if spot := scene.room(across, (7, 15), (1.6, 1.2)):
            pose = Pose(*spot, math.pi / 2 + float(rng.normal(0, 0.5)), float(rng.uniform(1.0, 1.1)))
            scene.add(spot[1], partial(traffic.paint_bicycle, pose=pose, rng=rng))
    for _ in range(int(rng.integers(3, 8))):
        side = float(rng.choice([-1, 1]))
        across = (side * (street.road + 0.5), side * (street.front - 0.6))
        if spot := scene.room(across, (6.5, 15), (0.7, 0.7)):
            _add_person(scene, spot, float(rng.choice([0.0, math.pi])) + float(rng.normal(0, 0.5)))
    if street.crossing < 30:
        for _ in range(int(rng.integers(0, 4))):
            ahead = (street.crossing + 0.3, street.crossing + 3.0)
            if spot := scene.room((-street.road + 0.4, street.road - 0.4), ahead, (0.7, 0.7)):
                _add_person(scene, spot, float(rng.choice([-1, 1])) * math.pi / 2)


def _add_person(scene: Scene, spot: tuple[float, float], heading: float) -> None:
    pose = Pose(*spot, heading, float(scene.rng.uniform(0.96, 1.14)))
    scene.add(spot[1], partial(traffic.paint_person, pose=pose, rng=scene.rng))


def _add_furniture(scene: Scene) -> None:
    rng, kerb = scene.rng, scene.street.road + 0.5
    wishes: list[tuple[Callable[..., None], float, int, tuple[float, float]]] = [
        (things.paint_traffic_light, 0.75, 2, (6.5, 11)),
        (things.paint_sign, 0.85, 3, (6.5, 12)),
        (things.paint_bin, 0.35, 1, (8, 18)),
        (things.paint_lamp_post, 0.8, 3, (8, 24)),
    ]
    for painter, share, most, ahead in wishes:
        if rng.random() < share:
            for _ in range(int(rng.integers(1, most + 1))):
                side = float(rng.choice([-1, 1]))
                if spot := scene.room((side * kerb - 0.1, side * kerb + 0.1), ahead, (0.6, 1.2)):
                    scene.add(spot[1], partial(painter, x=spot[0], z=spot[1], rng=rng))


def _add_greenery(scene: Scene, city: City) -> None:
    rng, street = scene.rng, scene.street
    for side in (-1, 1):
        if rng.random() < 0.8:
            for _ in range(int(rng.poisson(city.trees * 5))):
                x = side * (street.road + 1.0)
                if spot := scene.room((x - 0.2, x + 0.2), (12, 75), (1.6, 4.0)):
                    leaf = things.pick(rng, (city.leaf,), 9)
                    height = float(rng.uniform(4.8, 7.5))
                    tree = partial(things.paint_tree, at=spot, height=height, leaf=leaf, rng=rng)
                    scene.add(spot[1], tree)
        if rng.random() < 0.35:
            near, x = float(rng.uniform(9, 20)), side * (street.front - 0.85)
            far = near + float(rng.uniform(5, 14))
            # By its far end: whoever stands beside a hedge stands between it and the road, so in front of it.
            scene.add(far, partial(things.paint_hedge, x=x, ends=(near, far), leaf=city.leaf, rng=rng))


def compose(seed: int, city_number: int, size: int, rng: np.random.Generator) -> Canvas:
    """Paint one scene.

    Args:
        seed: of the cities.
        city_number: which city the street is in.
        size: height and width, pixels.
        rng: where everything that is the scene's own is drawn from.

    Returns:
        The canvas with the photo and its label ids.
    """
    city = draw_city(seed, city_number)
    canvas = Canvas(_camera(size, rng), _light(city, rng))
    street = _street(city, rng)
    paint_sky(canvas, rng)
    paint_ground(canvas, street, rng)
    houses, life = Scene(canvas.camera, street, rng), Scene(canvas.camera, street, rng)
    _add_houses(houses, city)
    _add_people(life)
    _add_furniture(life)
    _add_traffic(life, city)
    _add_greenery(life, city)
    # All houses first: seen past anything on the street, a house front is always farther away.
    houses.paint(canvas)
    life.paint(canvas)
    if rng.random() < 0.4:
        paint_hood(canvas, rng)
    return canvas
