"""What drives, rides and walks in the built-in street scenes: each function paints one thing on a canvas."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cityseg.data.scenes.objects import BLACK, CLOTHES, GLASS, Pose, pick
from cityseg.data.scenes.painter import RGB, Canvas, Point, mix, scaled

SKIN: tuple[RGB, ...] = ((238, 196, 164), (208, 152, 116), (150, 98, 68), (98, 64, 46))
JERSEYS: tuple[RGB, ...] = ((232, 224, 48), (248, 122, 30), (132, 222, 64))

# ------------------------------------------------------------------------------------------------- vehicles


@dataclass(frozen=True)
class Vehicle:
    """A body swept across its width.

    Attributes:
        name: its class.
        profile: side view from the rear bumper over the roof to the front, ``(forward, up)`` metres.
        glass: which stretches between neighbouring points of the profile are panes.
        windows: panes on the side, each a polygon of ``(forward, up)``.
        half_width: metres.
        belt: height in metres above which the body narrows to 84 % of its width at the roof.
        wheels: forward positions of the wheels, metres.
        wheel: radius of a wheel, metres.
    """

    name: str
    profile: tuple[tuple[float, float], ...]
    glass: tuple[int, ...]
    windows: tuple[tuple[tuple[float, float], ...], ...]
    half_width: float
    belt: float
    wheels: tuple[float, ...]
    wheel: float

    def half_at(self, up: float) -> float:
        """Half the width at a height, metres."""
        top = max(point[1] for point in self.profile)
        return self.half_width * (1 - 0.16 * max(0.0, up - self.belt) / (top - self.belt + 1e-6))


HATCHBACK = Vehicle(
    name="car",
    profile=((-1.95, 0.28), (-2.0, 0.85), (-1.85, 1.0), (-1.45, 1.48),
             (0.2, 1.52), (1.0, 1.0), (1.9, 0.86), (2.0, 0.28)),
    glass=(2, 4),
    windows=(((-1.6, 1.03), (-1.3, 1.4), (-0.5, 1.43), (-0.5, 1.03)),
             ((-0.4, 1.03), (-0.4, 1.43), (0.15, 1.42), (0.75, 1.03))),
    half_width=0.92, belt=0.98, wheels=(-1.25, 1.25), wheel=0.34,
)  # fmt: skip
SEDAN = Vehicle(
    name="car",
    profile=((-2.25, 0.28), (-2.3, 0.92), (-1.5, 1.0), (-0.9, 1.44),
             (0.3, 1.46), (1.1, 0.98), (2.15, 0.82), (2.25, 0.28)),
    glass=(2, 4),
    windows=(((-1.3, 1.03), (-0.85, 1.36), (-0.35, 1.38), (-0.35, 1.03)),
             ((-0.25, 1.03), (-0.25, 1.38), (0.25, 1.38), (0.85, 1.03))),
    half_width=0.93, belt=0.98, wheels=(-1.35, 1.4), wheel=0.34,
)  # fmt: skip
SUV = Vehicle(
    name="car",
    profile=((-2.15, 0.36), (-2.2, 1.05), (-2.1, 1.15), (-1.9, 1.72),
             (0.35, 1.76), (1.1, 1.14), (2.1, 1.02), (2.2, 0.36)),
    glass=(2, 4),
    windows=(((-1.9, 1.18), (-1.75, 1.62), (-0.5, 1.66), (-0.5, 1.18)),
             ((-0.4, 1.18), (-0.4, 1.66), (0.25, 1.64), (0.85, 1.18))),
    half_width=0.98, belt=1.14, wheels=(-1.35, 1.4), wheel=0.4,
)  # fmt: skip
BUS = Vehicle(
    name="bus",
    profile=((-4.6, 0.4), (-4.65, 1.35), (-4.65, 2.65), (-4.55, 3.1),
             (4.55, 3.1), (4.65, 2.65), (4.65, 1.35), (4.6, 0.4)),
    glass=(1, 5),
    windows=tuple(((rear, 1.35), (rear, 2.5), (rear + 1.25, 2.5), (rear + 1.25, 1.35))
                  for rear in (-4.4, -2.95, -1.5, -0.05, 1.4, 2.85)),
    half_width=1.28, belt=2.9, wheels=(-2.9, 2.7), wheel=0.5,
)  # fmt: skip
CARS = (HATCHBACK, SEDAN, SUV)


def _paint_side(canvas: Canvas, body: Vehicle, pose: Pose, side: float, color: RGB) -> None:
    sunny = 1.05 if pose.at(0, 0, side)[0] * canvas.light.sun < pose.x * canvas.light.sun else 0.8
    outline = [pose.at(forward, up, side * body.half_at(up)) for forward, up in body.profile]
    canvas.polygon(outline, scaled(color, sunny), body.name)
    low, high = body.profile[0][1], body.belt if body.name == "car" else 1.1
    rear, front, top = body.profile[0][0], body.profile[-1][0], low + (high - low) * 0.3
    sill = [pose.at(f, up, side * body.half_width) for f, up in ((rear, low), (front, low), (front, top), (rear, top))]
    canvas.polygon(sill, scaled(color, sunny * 0.72), None)
    for window in body.windows:
        pane = [pose.at(forward, up, side * body.half_at(up) * 1.002) for forward, up in window]
        canvas.polygon(pane, scaled(GLASS, 0.9 * sunny), None)
        canvas.polygon(pane[1:4], mix(GLASS, canvas.light.horizon, 0.35), None)
    rings = ((1.18, scaled(color, 0.3)), (1.0, BLACK), (0.58, (156, 158, 162)), (0.2, (70, 70, 74)))
    for forward in body.wheels:
        for radius, shade in rings:
            name = body.name if radius == 1.0 else None
            ring = pose.ring(forward, body.wheel, body.wheel * radius, side * body.half_width * 1.01)
            canvas.polygon([(a, max(b, 0.0), c) for a, b, c in ring], shade, name)


def _paint_end(canvas: Canvas, body: Vehicle, pose: Pose, front: bool, color: RGB) -> None:
    forward, low = body.profile[-1] if front else body.profile[0]
    high = body.profile[-2][1] if front else body.profile[1][1]
    span, half = high - low, body.half_width

    def patch(left: float, right: float, bottom: float, top: float, paint: RGB, glow: bool = False) -> None:
        box = [(left, bottom), (right, bottom), (right, top), (left, top)]
        canvas.polygon([pose.at(forward, low + up * span, a * half) for a, up in box], paint, None, glow=glow)

    night = max(canvas.light.ambient) < 0.8
    lamp: RGB = (255, 246, 214) if front else (214, 26, 26)
    patch(-1, 1, 0.0, 0.3, scaled(color, 0.45))
    patch(-0.28, 0.28, 0.3, 0.5, (236, 234, 220))
    if front:
        patch(-0.5, 0.5, 0.55, 0.82, BLACK)
    for side in (-1, 1):
        patch(side * 0.66, side * 0.95, 0.58, 0.9, lamp, glow=night)
    if body.name == "bus" and front:
        box = ((-0.6, 2.7), (0.6, 2.7), (0.6, 2.98), (-0.6, 2.98))
        canvas.polygon([pose.at(forward + 0.02, up, a * half) for a, up in box], (255, 170, 30), None, glow=True)


def paint_vehicle(canvas: Canvas, body: Vehicle, pose: Pose, color: RGB) -> None:
    """A car or a bus with its shadow; only the faces turned to the camera, far ones first."""
    length = body.profile[-1][0] - body.profile[0][0]
    canvas.shade(pose.footprint(length + 0.5, 2 * body.half_width + 0.5), 0.55)
    for forward in body.wheels:  # the treads, seen from ahead or behind under the body
        for inner, outer in ((-1.0, -0.74), (0.74, 1.0)):
            tread = ((0, inner), (0, outer), (body.wheel, outer), (body.wheel, inner))
            canvas.polygon([pose.at(forward, up, w * body.half_width) for up, w in tread], BLACK, body.name)
    sin, cos = math.sin(pose.heading), math.cos(pose.heading)
    faces = []
    for number, (start, end) in enumerate(zip(body.profile, body.profile[1:], strict=False)):
        corners = [
            pose.at(f, up, side * body.half_at(up)) for (f, up), side in ((start, -1), (start, 1), (end, 1), (end, -1))
        ]
        toward = canvas.camera.toward(pose.at((start[0] + end[0]) / 2, (start[1] + end[1]) / 2))
        ahead = toward[0] * sin + toward[2] * cos
        rise, run = end[1] - start[1], end[0] - start[0]
        if -rise * ahead + run * toward[1] > 0:
            faces.append((math.hypot(toward[0], toward[2]), number, corners, run / math.hypot(run, rise)))
    for _, number, corners, upward in sorted(faces, reverse=True):
        paint = scaled(GLASS, 1.1) if number in body.glass else scaled(color, 0.85 + 0.35 * upward)
        canvas.polygon(corners, paint, body.name)
        if number in (0, len(body.profile) - 2):
            _paint_end(canvas, body, pose, number > 0, color)
    toward = canvas.camera.toward(pose.at(0, 1))
    right = (toward[0] * cos - toward[2] * sin) / pose.scale
    if abs(right) > body.half_width:
        _paint_side(canvas, body, pose, math.copysign(1.0, right), color)


# --------------------------------------------------------------------------------- people and their bicycles


def _paint_head(canvas: Canvas, at: Point, size: float, name: str, helmet: bool, rng: np.random.Generator) -> None:
    hair = pick(rng, CLOTHES if helmet else ((44, 32, 26), (104, 72, 44), (176, 140, 84), (150, 148, 146)), 10)
    canvas.ball((at[0], at[1] + size * 0.3, at[2]), size * 1.1, hair, name)
    canvas.ball((at[0], at[1] - size * 0.15, at[2]), size * 0.86, pick(rng, SKIN, 6), name)


def paint_person(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    """Somebody on foot, standing or in mid-stride."""
    canvas.shade(pose.footprint(0.7, 0.9), 0.45)
    top, trousers, stride = pick(rng, CLOTHES), pick(rng, CLOTHES), float(rng.uniform(0.05, 0.42))
    shoe: RGB = (44, 38, 36)
    hip, shoulder, tall = 0.92, 1.42, 1.66
    swing = stride * 0.7
    for side, step in ((-1, -1.0), (1, 1.0)):
        foot, knee = step * stride, step * stride * 0.6
        canvas.tube(pose.at(0, hip, side * 0.09), pose.at(knee, 0.5, side * 0.1), (0.12, 0.1), trousers, "person")
        canvas.tube(pose.at(knee, 0.5, side * 0.1), pose.at(foot, 0.08, side * 0.1), (0.1, 0.08), trousers, "person")
        heel, toe = pose.at(foot - 0.03, 0.05, side * 0.1), pose.at(foot + 0.16, 0.05, side * 0.1)
        canvas.tube(heel, toe, (0.07, 0.06), shoe, "person")
        hand = pose.at(-step * swing, 0.86, side * 0.3)
        canvas.tube(pose.at(0, shoulder - 0.03, side * 0.21), hand, (0.08, 0.065), scaled(top, 0.82), "person")
        canvas.ball(hand, 0.07, pick(rng, SKIN, 6), "person")
    canvas.tube(pose.at(0, hip - 0.02), pose.at(0, shoulder - 0.1), (0.19, 0.21), top, "person")
    if rng.random() < 0.35:
        canvas.tube(pose.at(0, hip), pose.at(0, 0.5), (0.19, 0.26), top, "person", round_=False)
    if rng.random() < 0.35:
        canvas.tube(pose.at(-0.2, 1.0), pose.at(-0.2, 1.32), (0.14, 0.14), pick(rng, CLOTHES), "person")
    _paint_head(canvas, pose.at(0.02, tall), 0.145, "person", False, rng)


def paint_bicycle(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    """A bicycle; the disc of a wheel counts as bicycle, as in the annotation of real streets."""
    canvas.shade(pose.footprint(1.9, 0.7), 0.4)
    frame = pick(rng, CLOTHES, 20)
    for forward in (-0.54, 0.54):
        disc = pose.ring(forward, 0.36, 0.36)
        canvas.polygon(disc, (120, 120, 120), "bicycle")
        for turn in range(0, 20, 2):
            canvas.tube(pose.at(forward, 0.36), disc[turn], (0.008, 0.008), (188, 188, 186), None, round_=False)
        for start, end in zip(disc, disc[1:] + disc[:1], strict=True):
            canvas.tube(start, end, (0.05, 0.05), BLACK, "bicycle", round_=False)
    rear, front, pedal = pose.at(-0.54, 0.36), pose.at(0.54, 0.36), pose.at(-0.05, 0.32)
    seat, neck, bar = pose.at(-0.2, 0.92), pose.at(0.38, 0.9), pose.at(0.36, 1.08)
    for start, ends in ((rear, (pedal, seat)), (pedal, (seat, neck)), (seat, (neck,)), (neck, (front, bar))):
        for end in ends:
            canvas.tube(start, end, (0.045, 0.045), frame, "bicycle")
    canvas.tube(pose.at(-0.34, 0.96), pose.at(-0.06, 0.96), (0.07, 0.05), BLACK, "bicycle")
    canvas.tube(pose.at(0.36, 1.08, -0.3), pose.at(0.36, 1.08, 0.3), (0.04, 0.04), BLACK, "bicycle")


def paint_rider(canvas: Canvas, pose: Pose, rng: np.random.Generator) -> None:
    """A cyclist: the bicycle first, the body over it."""
    paint_bicycle(canvas, pose, rng)
    top, trousers = pick(rng, JERSEYS if rng.random() < 0.75 else CLOTHES, 14), pick(rng, CLOTHES)
    hip, shoulder = (-0.2, 1.02), (0.1, 1.52)
    for side, knee, foot in ((-1, (0.22, 0.72), (0.02, 0.44)), (1, (0.2, 0.62), (-0.1, 0.22))):
        canvas.tube(pose.at(*hip, side * 0.1), pose.at(*knee, side * 0.13), (0.13, 0.1), trousers, "rider")
        canvas.tube(pose.at(*knee, side * 0.13), pose.at(*foot, side * 0.12), (0.1, 0.075), trousers, "rider")
        heel, toe = (pose.at(foot[0] + step, foot[1] - 0.04, side * 0.12) for step in (-0.04, 0.14))
        canvas.tube(heel, toe, (0.065, 0.06), BLACK, "rider")
        arm, hand = pose.at(*shoulder, side * 0.2), pose.at(0.36, 1.12, side * 0.26)
        canvas.tube(arm, hand, (0.08, 0.065), scaled(top, 0.8), "rider")
    canvas.tube(pose.at(*hip), pose.at(shoulder[0], shoulder[1] - 0.08), (0.19, 0.22), top, "rider")
    _paint_head(canvas, pose.at(0.18, 1.8), 0.15, "rider", bool(rng.random() < 0.85), rng)
