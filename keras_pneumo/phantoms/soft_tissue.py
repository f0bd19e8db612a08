"""The soft parts of the chest along each beam: body, lungs, heart, mediastinum, windpipe, breasts, bowel gas.

In: a patient's build, position and pose. Out: maps in centimetres of tissue and of lung. A body part is a slab with a
round rim, so that its edge in the image is as sharp as the real one's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keras_pneumo.phantoms.anatomy import (
    LEFT,
    RIGHT,
    Build,
    Position,
    dome_height,
    heart_outline,
    lung_outline,
    mediastinum_outline,
    midline,
)
from keras_pneumo.phantoms.geometry import (
    HALF,
    Pose,
    blur,
    ellipse,
    fill,
    resampled,
    rounded,
    slab,
    smooth_curve,
    texture,
)


@dataclass(frozen=True)
class SoftParts:
    """Maps at :data:`HALF` size, in cm along the beam, and the two lungs' masks in [0, 1] at the same size."""

    tissue: np.ndarray
    lung: np.ndarray
    lungs: dict[int, np.ndarray]
    body: np.ndarray


def soft_tissue_maps(build: Build, position: Position, pose: Pose, random: np.random.Generator) -> SoftParts:
    """Return tissue and lung along each beam, in cm, at :data:`HALF` size."""
    per_cm = pose.per_cm(HALF)
    x, y = pose.grid()

    body = _body(build, position, pose, y)
    lungs = {side: fill(pose.pixels(lung_outline(build, position, side), HALF), HALF) for side in (RIGHT, LEFT)}
    depth = (0.62 * build.thickness + 1.0) * np.interp(y / build.height, [0, 0.12, 0.4, 1], [0.42, 0.66, 0.97, 1.0])
    lung = sum(rounded(mask, 3.6 * per_cm) for mask in lungs.values()) * depth.astype(np.float32)
    heart = slab(pose.pixels(heart_outline(build, position), HALF), 4.0 * per_cm) * (0.46 * build.thickness)
    middle = slab(pose.pixels(mediastinum_outline(build), HALF), 2.4 * per_cm) * (0.62 * build.thickness)
    lung = np.maximum(0, lung - np.maximum(heart, middle))
    roots = sum(_root(build, side, x, y) for side in (RIGHT, LEFT))
    lung = lung * (1 - 0.5 * roots)
    gas = _windpipe(build, pose) + _bowel_gas(build, position, pose, random)
    tissue = body + _breasts(build, pose, y) - lung - gas
    # Fat, muscle and folds: a few per cent, in patches a few centimetres wide.
    tissue *= 1 + 0.016 * texture(random, HALF, 1.6 * per_cm) + 0.010 * texture(random, HALF, 0.5 * per_cm)
    return SoftParts(np.maximum(tissue, 0), lung, lungs, body)


def _body(build: Build, position: Position, pose: Pose, y: np.ndarray) -> np.ndarray:
    w, wall, neck, drop = build.width, build.wall, build.neck, position.shoulder
    half = np.array(
        [
            (neck, -25), (neck * 0.98, -8), (neck * 1.05, -5.2), (neck + 2.2, -3.4 + 0.3 * drop),
            (0.75 * w, -1.9 + drop),
            (w, -1.0 + drop), (w + 3.2, 0.6 + drop), (w + 5.0, 3.0 + drop), (w + 4.6, 6.0),
            (w + 0.62 * wall + 1.2, 9.5),
            (w + wall, 13), (w + wall + 0.2, 18), (w + wall, 24), (w + 0.8 * wall, 30), (w + wall, 40), (w + wall, 60),
        ]
    )  # fmt: skip
    outline = smooth_curve(np.concatenate([half, half[::-1] * (-1, 1)]), closed=True)
    deep = build.thickness * np.interp(y, [-9, -4, 1, 6, 12, 19, 30], [0.50, 0.52, 0.64, 0.82, 0.96, 1.03, 1.12])
    per_cm = pose.per_cm(HALF)
    torso = slab(pose.pixels(outline, HALF), 5.4 * per_cm) * deep.astype(np.float32)
    arms = np.zeros_like(torso)
    for side in (RIGHT, LEFT):
        start = np.array([w + 3.6, 3.2 + drop])
        along = np.array([np.sin(position.arm_angle), np.cos(position.arm_angle)])
        across = np.array([along[1], -along[0]])
        radius = 4.1 + 0.35 * build.wall
        arm = np.concatenate(
            [start + across * radius, start + along * 34 + across * radius * 0.85,
            start + along * 34 - across * radius * 0.85,
             start + along * 5 - across * radius, start - across * radius]
        ).reshape(-1, 2) * (side, 1)  # fmt: skip
        deltoid = ellipse(side * (w + 3.2), 3.4 + drop, 4.6, 4.6)
        arms = np.maximum(arms, slab(pose.pixels(deltoid, HALF), 4.2 * per_cm) * np.float32(9.5))
        arms = np.maximum(arms, slab(pose.pixels(arm, HALF), radius * per_cm) * np.float32(1.75 * radius))
    return blur(np.maximum(torso, arms), 1.2)


def _root(build: Build, side: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the hilum: large vessels, bronchi and nodes instead of lung; a share of the depth, in [0, 1]."""
    centre = (side * 0.21 * build.width, (0.46 if side == RIGHT else 0.425) * build.height)
    return np.exp(-(((x - centre[0]) / (0.11 * build.width)) ** 2) - ((y - centre[1]) / (0.10 * build.height)) ** 2)


def _windpipe(build: Build, pose: Pose) -> np.ndarray:
    fork = 0.335 * build.height
    down = np.linspace(-14, fork, 20)
    trunk = np.stack([midline(build, down) - 0.25 + 0.12 * np.sin(down / 3), down], axis=1)
    root = trunk[-1]
    branches = [
        (trunk, 0.85, 1.5),
        (root + np.array([(0.0, -0.3), (-1.4, 1.2), (-2.7, 3.2)]), 0.62, 0.9),
        (root + np.array([(0.0, -0.3), (1.8, 1.3), (3.9, 2.6)]), 0.55, 0.8),
    ]
    per_cm = pose.per_cm(HALF)
    air = np.zeros((HALF, HALF), np.float32)
    for line, radius, depth in branches:
        curve = resampled(smooth_curve(line), 0.2)
        normal = np.gradient(curve, axis=0)[:, ::-1] * (1, -1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        outline = np.concatenate([curve + radius * normal, (curve - radius * normal)[::-1]])
        tube = slab(pose.pixels(outline, HALF), radius * per_cm) * np.float32(depth)
        air = np.maximum(air, tube)
    return blur(air, 1.5)


def _bowel_gas(build: Build, position: Position, pose: Pose, random: np.random.Generator) -> np.ndarray:
    gas = np.zeros((HALF, HALF), np.float32)
    top = dome_height(build, position, LEFT)
    bubbles = []
    if random.random() < 0.75:
        across, down = random.uniform(1.2, 3.2), random.uniform(0.7, 1.7)
        centre = (random.uniform(0.3, 0.55) * build.width, top + down + random.uniform(0.9, 1.9))
        bubbles.append((ellipse(*centre, across, down), random.uniform(2.0, 4.0), position.view == "PA"))
    if random.random() < 0.45:
        for _ in range(int(random.integers(2, 6))):
            centre = (random.uniform(0.35, 0.95) * build.width, top + random.uniform(4.0, 10.0))
            loop = ellipse(*centre, random.uniform(0.8, 2.0), random.uniform(0.8, 1.8), random.uniform(0, 3))
            bubbles.append((loop, random.uniform(1.5, 3.0), False))
    for outline, depth, level in bubbles:
        if level:  # standing, the fluid's surface is flat
            outline = outline * 1.0
            outline[:, 1] = np.minimum(outline[:, 1], outline[:, 1].mean() + 0.25)
        gas = np.maximum(gas, slab(pose.pixels(outline, HALF), 1.3 * pose.per_cm(HALF)) * np.float32(depth))
    return blur(gas, 1.6)


def _breasts(build: Build, pose: Pose, y: np.ndarray) -> np.ndarray:
    if not build.breast:
        return np.zeros((HALF, HALF), np.float32)
    centre = build.breast_height * build.height
    across, down = 0.47 * build.width * build.breast**0.3, 6.6 * build.breast**0.5
    breasts = np.zeros((HALF, HALF), np.float32)
    for side in (RIGHT, LEFT):
        outline = ellipse(side * 0.60 * build.width, centre, across, down, side * 0.25)
        breasts += slab(pose.pixels(outline, HALF), 4.2 * pose.per_cm(HALF))
    fade = np.clip((y - (centre - down)) / (1.5 * down), 0, 1)
    return blur(breasts * (fade * fade * 4.6 * build.breast).astype(np.float32), 1.5)
