"""The content of the lungs: vessels that branch from the hila, and the pneumothorax that pushes them away.

In: a patient's build, one image's pose and the lung outlines. Out: a map of vessels in centimetres, and for a
positive image the air between chest wall and lung, with one mask for each label row. Both are described in polar
coordinates about the hilum: the air is the crescent between the chest wall and a lung edge drawn in towards the
hilum, and the vessels shrink with that edge, so none lies in the air.
A negative image goes through the same code with no crescent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keras_pneumo.phantoms.anatomy import LEFT, RIGHT, Build, Position, lung_outline
from keras_pneumo.phantoms.geometry import SIZE, Pose, blur, fill, stroke_all

THINNEST = 0.034
"""Radius in cm below which a vessel no longer branches."""

VESSEL_CONTRAST = 2.8
"""Vessels run with bronchi and sheaths of the same width; a lone vessel would be paler than on real radiographs."""

_ANGLES = 720


@dataclass(frozen=True)
class Crescent:
    """Air in one chest half. ``edge`` and ``wall``: distance from the hilum, in pixels, of the lung's edge and of the
    chest wall at :data:`_ANGLES` angles; ``rows``: one bool mask per label row; ``air``: their union; all 1024x1024."""

    side: int
    edge: np.ndarray
    wall: np.ndarray
    rows: tuple[np.ndarray, ...]
    air: np.ndarray


def hilum(build: Build, side: int) -> np.ndarray:
    """Return where the vessels of one lung start, (x, y) in cm."""
    return np.array([side * 0.25 * build.width, (0.47 if side == RIGHT else 0.435) * build.height])


def polar(points: np.ndarray, centre: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the angle (0 up, pi/2 towards the side, +-pi down) and distance of points about a centre."""
    away = points - centre
    return np.arctan2(side * away[..., 0], -away[..., 1]), np.hypot(away[..., 0], away[..., 1])


def wall_distance(outline: np.ndarray, centre: np.ndarray, side: int) -> np.ndarray:
    """Return the distance from the centre to the lung's outline at :data:`_ANGLES` angles from -pi to pi."""
    steps = np.linspace(0, 1, 8, endpoint=False)[:, None, None]
    dense = (outline * (1 - steps) + np.roll(outline, -1, axis=0) * steps).reshape(-1, 2)
    angle, distance = polar(dense, centre, side)
    bins = ((angle + np.pi) / (2 * np.pi) * _ANGLES).astype(int) % _ANGLES
    reach = np.zeros(_ANGLES)
    np.maximum.at(reach, bins, distance)
    filled = np.flatnonzero(reach)
    return np.interp(np.arange(_ANGLES), filled, reach[filled], period=_ANGLES)


def crescent(
    build: Build,
    position: Position,
    pose: Pose,
    side: int,
    area: float,
    rows: int,
    overlap: bool,
    random: np.random.Generator,
) -> Crescent:
    """Return a pneumothorax covering the share ``area`` of the image, as far as the lung has room for it."""
    outline = pose.pixels(lung_outline(build, position, side))
    centre = pose.pixels(hilum(build, side)[None])[0]
    wall = wall_distance(outline, centre, side)
    lung = fill(outline) > 0.5
    row, column = np.nonzero(lung)
    angle, distance = polar(np.stack([column, row], axis=1).astype(float), centre, side)
    wanted = int(np.clip(round(area * SIZE * SIZE), 30, 0.72 * len(row)))
    reach = wall[_bin(angle)]
    # Where the lung reaches further from the hilum it also recoils further, and corners are rounded off.
    recoil = (wall / np.median(wall)) ** 1.5
    gap = np.maximum(reach - distance, 0) / recoil[_bin(angle)]
    stretch = 1.0
    # The costophrenic angle is the corner furthest down and out: there the chest wall ends and the diaphragm begins.
    corner = outline[np.argmax(side * outline[:, 0] + outline[:, 1])]
    last = float(polar(corner, centre, side)[0]) - 0.03
    plan = _plan(wanted, rows, overlap, last, random)
    while True:
        shapes = [_bump(angle, start, centre_at, end, stretch) * size for start, centre_at, end, size in plan]
        # A pixel is air where its distance to the wall is less than height * bump: so the height that makes the air
        # exactly as large as wanted is an order statistic.
        bump = np.max(shapes, axis=0)
        needed = np.where(bump > 0, gap / np.maximum(bump, 1e-9), np.inf)
        height = float(np.partition(needed, wanted)[wanted])
        if height < 0.52 * float(np.median(wall)) or (stretch > 4 and np.isfinite(height)):
            break
        stretch *= 1.2
    air = np.zeros((SIZE, SIZE), bool)
    masks = []
    for shape in shapes:
        mask = np.zeros((SIZE, SIZE), bool)
        mask[row, column] = gap < height * shape
        masks.append(mask)
        air |= mask
    at = np.linspace(-np.pi, np.pi, _ANGLES, endpoint=False) + np.pi / _ANGLES
    depth = height * recoil * np.max([_bump(at, a, b, c, stretch) * size for a, b, c, size in plan], axis=0)
    edge = np.maximum(wall - depth, 0.12 * wall)
    return Crescent(side, edge, wall, tuple(mask for mask in masks if mask.any()), air)


def _plan(
    wanted: int, rows: int, overlap: bool, last: float, random: np.random.Generator
) -> list[tuple[float, float, float, float]]:
    """Choose start, peak and end angle (at most ``last``) and relative height of each bump."""
    # A pneumothorax of 8,771 pixels, SIIM's median, is about 30 pixels deep and 450 long; others keep its proportions.
    long = wanted / (0.33 * np.sqrt(wanted) * random.lognormal(0, 0.3)) / 0.62 / 260
    kind = random.choice(3, p=[0.72, 0.20, 0.08])  # apical, lateral, basal
    if wanted > 15_000:  # a large one reaches from the apex downwards
        kind = 0
    peak = (random.normal(0.25, 0.18), random.normal(1.35, 0.2), min(random.normal(2.05, 0.12), last - 0.15))[kind]
    before = random.uniform(0.3, 0.5) * (0.8 if kind == 0 else 1.0)
    # No further inwards than the apex's inner side, nor than the costophrenic angle.
    start, end = max(peak - before * long, -0.3), min(peak + (1 - before) * long, last)
    if rows < 2:
        return [(start, peak, end, 1.0)]
    if overlap or wanted > 9000:  # two deep pockets side by side are one
        middle = start + random.uniform(0.45, 0.6) * (end - start)
        slack = 0.18 * (end - start)
        first = (start, (start + middle) / 2, middle + slack, 1.0)
        return [first, (middle - slack, (middle + end) / 2, end, random.uniform(0.6, 1.1))]
    half = 0.35 * long
    return [
        (max(0.25 - half, -0.3), 0.25, 0.25 + min(1.1 * half, 0.65), 1.0),
        (1.75 - min(half, 0.75), 1.75, 1.75 + min(half, last - 1.75), random.uniform(0.4, 0.9)),
    ]


def _bump(angle: np.ndarray, start: float, peak: float, end: float, stretch: float) -> np.ndarray:
    """Return a hump from 0 to 1 and back between two angles, blunt in the middle, running out thin."""
    left, right = stretch * (peak - start), stretch * (end - peak)
    turn = (angle - peak + np.pi) % (2 * np.pi) - np.pi  # a large one may reach round below the hilum
    away = np.where(turn < 0, -turn / max(left, 1e-3), turn / max(right, 1e-3))
    return (1 - np.minimum(away, 1) ** 2.2) ** 1.25


def _bin(angle: np.ndarray) -> np.ndarray:
    return ((angle + np.pi) / (2 * np.pi) * _ANGLES).astype(int) % _ANGLES


def edge_curve(shape: Crescent, build: Build, pose: Pose) -> np.ndarray:
    """Return the visible lung edge in pixels, shape (n, 3): x, y, and how deep the air is there, in pixels."""
    at = np.linspace(-np.pi, np.pi, _ANGLES, endpoint=False) + np.pi / _ANGLES
    centre = pose.pixels(hilum(build, shape.side)[None])[0]
    deep = shape.wall - shape.edge
    kept = deep > 0.3
    x = centre[0] + shape.side * np.sin(at) * shape.edge
    y = centre[1] - np.cos(at) * shape.edge
    return np.stack([x, y, deep], axis=1)[kept]


def vessels(build: Build, position: Position, pose: Pose, shape: Crescent | None) -> np.ndarray:
    """Return blood along each beam, in cm, 1024x1024; pulled in towards the hilum where there is air."""
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    for side in (RIGHT, LEFT):
        _draw_tree(canvas, build, position, pose, side, shape)
    return blur(canvas, 0.75).astype(np.float32) * (VESSEL_CONTRAST / 255)


def _draw_tree(
    canvas: np.ndarray, build: Build, position: Position, pose: Pose, side: int, shape: Crescent | None
) -> None:
    random = np.random.default_rng([build.vessels, side + 1])
    outline = lung_outline(build, position, side)
    root = hilum(build, side)
    curves, radius = _tree(build, side, root, wall_distance(outline, root, side), random)
    points, centre = pose.pixels(curves), pose.pixels(root[None])[0]
    if shape is not None and shape.side == side:
        at = _bin(polar(points, centre, side)[0])
        points = centre + (points - centre) * (shape.edge[at] / shape.wall[at])[..., None]
    # Thin ones first, so that a thick one covers what it crosses; a dozen thicknesses are enough for the eye.
    classes = np.rint(np.log(radius / THINNEST) / 0.2).astype(int)
    for step in np.unique(classes):
        thick = THINNEST * np.exp(0.2 * step)
        width = 2 * thick * pose.scale
        # A vessel thinner than a pixel is drawn one pixel wide and paler.
        value = 255 * min(1.0, (2 * thick) ** 0.7) * min(1.0, width)
        stroke_all(canvas, points[classes == step], round(value), round(width))


def _tree(
    build: Build, side: int, root: np.ndarray, wall: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return branches, shape (n, 5, 2) in cm, and their radii (n,) in cm: each forks into a thicker and a thinner one.

    A branch ends where it is too thin or at the chest wall, whose distance from ``root`` is ``wall`` (in cm).
    """
    angle = np.array(
        [0.0, 0.35, 0.75, 1.15, 1.55, 1.90, 2.2, 2.5, 2.8, 0.25, 1.0, 1.75, 2.35, 2.65, 0.5, 1.35, 2.05, 3.0]
    )
    radius = np.array([26, 22, 22, 20, 23, 26, 33, 38, 32, 16, 15, 16, 19, 17, 14, 13, 14, 18]) / 100
    angle = angle + random.normal(0, 0.09, len(angle))
    radius = radius * random.lognormal(-0.05, 0.14, len(radius)) * build.width / 13.6
    tip = root + random.normal(0, 0.5, (len(radius), 2))
    steps = 4
    curves, radii = [], []
    while len(angle):
        n = len(angle)
        length = (0.8 + 5.5 * radius) * random.lognormal(0, 0.25, n)
        bend = np.cumsum(random.normal(0, 0.11, (n, steps)), axis=1) + random.normal(0, 0.04, (n, 1)) * np.arange(steps)
        heading = angle[:, None] + bend
        step = (length / steps)[:, None]
        path = np.stack([side * np.sin(heading) * step, -np.cos(heading) * step], axis=2).cumsum(axis=1)
        curves.append(np.concatenate([tip[:, None], path + tip[:, None]], axis=1))
        radii.append(radius)
        fork = np.sign(random.normal(size=n)) * random.uniform(0.05, 0.25, n)
        spread = random.uniform(0.35, 0.85, n)
        thicker, thinner = random.uniform(0.80, 0.92, n), random.uniform(0.5, 0.76, n)
        tip = np.concatenate([path[:, -1] + tip] * 2)
        angle = np.concatenate([heading[:, -1] + fork, heading[:, -1] - np.sign(fork) * spread])
        radius = np.concatenate([radius * thicker, radius * thinner])
        towards, distance = polar(tip, root, side)
        alive = (radius > THINNEST) & (distance < 0.97 * wall[_bin(towards)])
        tip, angle, radius = tip[alive], angle[alive], radius[alive]
    return np.concatenate(curves), np.concatenate(radii)
