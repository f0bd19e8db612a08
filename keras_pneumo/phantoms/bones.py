"""The skeleton of a frontal chest radiograph: spine, ribs, clavicles, shoulder blades, upper arms.

In: a patient's build and position. Out: one map, in centimetres of compact bone along the beam. Ribs are tilted
rings seen from the front: their back halves run down and outwards, their front halves inwards and fainter, and where
they turn at the chest wall the beam runs along the bone and they become bright, as on a real radiograph.
"""

from __future__ import annotations

import numpy as np

from keras_pneumo.phantoms.anatomy import LEFT, RIGHT, Build, Position, midline, wall_at
from keras_pneumo.phantoms.geometry import (
    HALF,
    Pose,
    blur,
    fill,
    hollow,
    resampled,
    smooth_curve,
    stroke,
    texture,
    tubes,
)

RIBS = 11


def bones(build: Build, position: Position, pose: Pose, random: np.random.Generator) -> np.ndarray:
    """Return compact bone along each beam, in cm, at :data:`HALF` size."""
    jitter = random.normal(0, 1, (2, RIBS, 3))
    back = _tubes(_ribs(build, jitter, back=True), pose, 0.16, 1.6)
    front = _tubes(_ribs(build, jitter, back=False), pose, 0.16, 0.6)
    girdle = _tubes(_clavicles(build, position), pose, 0.15, 1.8, round_ends=True)
    for arm in _upper_arms(build, position):
        girdle += _tubes([arm], pose, 0.22, 2.2, round_ends=True)
    total = back + front + girdle + _shoulder_blades(build, position, pose) + _spine(build, pose)
    grain = 1 + 0.05 * texture(random, HALF, 1.6)
    # A small patient's bones are also thin along the beam.
    return blur((total * grain * (build.bone * build.width / 13.6)).astype(np.float32), 0.5)


def _ribs(build: Build, jitter: np.ndarray, back: bool) -> list[np.ndarray]:
    """Return centre lines as (x, y, radius, brightness), cm; brightness is the beam's path, 1 for head-on."""
    curves = []
    tilt = build.rib_tilt * build.height
    for side in (RIGHT, LEFT):
        for number in range(RIBS if back else RIBS - 3):  # the lowest reach the front only as cartilage
            shift, turn, size = jitter[max(side, 0), number]
            start = build.height * (build.rib_pitch * (number - 1) + 0.088) + 0.10 * shift
            fall = tilt * (1 + 0.03 * turn) * (0.62, 0.85, 0.95)[number] if number < 3 else tilt * (1 + 0.03 * turn)
            ring = wall_at(build, np.array(start + 0.5 * fall)).item() - 0.10
            ring = min(ring, (0.47, 0.66, 0.80)[number] * build.width) if number < 3 else ring
            deep = 0.62 * ring
            # The halves overlap round the turn, where one fades into the other.
            span = (0.0, 0.54) if back else (0.45, 0.80 if number else 0.86)
            turn_at = np.pi * np.linspace(*span, 70)
            root = 1.9 if back else 0.0
            x = root + (ring - root) * np.sin(turn_at)
            y = start + fall * (1 - np.cos(turn_at)) / 2 - (0.55 * np.sin(2 * turn_at) if back else 0.0)
            depth = -deep * np.cos(turn_at)
            run = np.stack([np.gradient(x), np.gradient(y), np.gradient(depth)], axis=1)
            seen = np.hypot(run[:, 0], run[:, 1]) / np.linalg.norm(run, axis=1)
            radius = 0.60 * (1 + 0.05 * size) * build.width / 13.6 * np.interp(turn_at, [1.6, 2.4], [1.0, 1.3])
            bright = np.minimum(1 / np.maximum(seen, 0.3), 1.45)
            if back:
                bright = (
                    bright
                    * np.interp(turn_at / np.pi, [0.0, 0.06, 0.45, 0.54], [0.5, 1, 1, 0])
                    * (0.55 if number > 8 else 1.0)
                )
            else:
                fading = np.clip((turn_at[-1] - turn_at) / 0.35, 0.0, 1)
                bright = bright * fading * np.interp(turn_at / np.pi, [0.45, 0.54], [0, 1])
            curves.append(np.stack([side * x + midline(build, y), y, radius, bright], axis=1))
    return curves


def _clavicles(build: Build, position: Position) -> list[np.ndarray]:
    curves = []
    h, w, lift = build.height, build.width, 0.5 * build.clavicle + 0.6 * position.shoulder
    for side in (RIGHT, LEFT):
        shape = np.array(
            [
                (1.9, 0.165 * h),
                (0.26 * w, 0.145 * h),
                (0.5 * w, 0.075 * h),
                (0.80 * w, -0.005 * h),
                (1.10 * w, -0.02 * h),
            ]
        )
        shape[:, 1] += lift * np.array([0.3, 0.5, 0.9, 1.2, 1.3])
        curve = smooth_curve(shape)
        radius = np.interp(curve[:, 0], [1.9, 3.0, 0.5 * w, 1.1 * w], [0.85, 0.72, 0.55, 0.66])
        curves.append(
            np.stack(
                [side * curve[:, 0] + midline(build, curve[:, 1]), curve[:, 1], radius, np.ones(len(curve))], axis=1
            )
        )
    return curves


def _upper_arms(build: Build, position: Position) -> list[np.ndarray]:
    curves = []
    for side in (RIGHT, LEFT):
        head = np.array([build.width + 4.4, 2.6 + position.shoulder])
        along = np.array([np.sin(position.arm_angle * 1.1 + 0.12), np.cos(position.arm_angle * 1.1 + 0.12)])
        reach = np.array([-0.1, 0.8, 2.0, 3.6, 6, 10, 20, 34])[:, None]
        radius = np.array([2.25, 2.3, 2.1, 1.5, 1.2, 1.1, 1.05, 1.05])
        curve = np.concatenate([(head + along * reach) * (side, 1), radius[:, None], np.full((8, 1), 1.0)], axis=1)
        curves.append(smooth_curve(curve))
    return curves


def _tubes(curves: list[np.ndarray], pose: Pose, wall: float, depth: float, round_ends: bool = False) -> np.ndarray:
    lines, radii, brightness = [], [], []
    for curve in curves:
        pixels = np.concatenate([pose.pixels(curve[:, :2], HALF), curve[:, 2:]], axis=1)
        fine = resampled(pixels, 0.6)
        lines.append(fine[:, :2])
        radii.append(fine[:, 2] * pose.per_cm(HALF))
        brightness.append(fine[:, 3])
    at, offset, point = tubes(lines, radii, round_ends)
    flat = np.zeros(HALF * HALF, np.float32)
    flat[at] = hollow(offset, depth, wall) * np.concatenate(brightness).astype(np.float32)[point]
    return flat.reshape(HALF, HALF)


def _shoulder_blades(build: Build, position: Position, pose: Pose) -> np.ndarray:
    """Draw a thin plate with a thick outer border and a spine across it; rolled off the lungs when standing."""
    w = build.width
    inward = 2.6 if position.view == "AP" else 0.9
    drop = position.shoulder
    plate = np.zeros((HALF, HALF), np.float32)
    edges = np.zeros((HALF, HALF), np.uint8)
    wide = max(1, round(0.16 * pose.per_cm(HALF)))
    for side in (RIGHT, LEFT):
        shape = np.array(
            [
                (w + 2.7, 2.3), (w + 2.3, 4.4), (w + 1.0, 7.4), (w - inward + 0.8, 11.6), (w - inward - 0.3, 12.9),
                (w - inward - 1.5, 11.0), (w - inward - 2.6, 6.0), (w - inward - 2.2, 2.6), (w - 0.4, 1.0),
                (w + 1.5, 1.2),
            ]
        )  # fmt: skip
        shape[:, 1] += drop
        outline = pose.pixels(smooth_curve(shape * (side, 1), closed=True), HALF)
        plate += 0.16 * fill(outline, HALF)
        stroke(edges, pose.pixels(smooth_curve(shape[:5] * (side, 1)), HALF), 200, wide)
        stroke(edges, outline, 70, 1, closed=True)
        ridge = np.array([(w - inward - 2.0, 3.6), (w + 0.5, 1.5), (w + 3.0, -0.7), (w + 5.2, -0.5)])
        ridge = ridge + np.array((0, drop))
        stroke(edges, pose.pixels(smooth_curve(ridge * (side, 1)), HALF), 110, wide + 1)
        glenoid = np.array([(w + 2.5, 0.9), (w + 3.0, 2.4), (w + 2.5, 4.0)]) + np.array((0, drop))
        stroke(edges, pose.pixels(smooth_curve(glenoid * (side, 1)), HALF), 190, wide)
    return plate + blur(edges.astype(np.float32) * (0.85 / 255), 1.2)


def _spine(build: Build, pose: Pose) -> np.ndarray:
    """Draw vertebral bodies with bright end-plates, pedicles as rings, the spinous processes as drops in the middle."""
    bone = np.zeros((HALF, HALF), np.float32)
    x, y = pose.grid()
    across = x - midline(build, y).astype(np.float32)
    columns = np.flatnonzero(np.abs(across).min(axis=0) < 4.5)
    if not len(columns):
        return bone
    part = slice(columns[0], columns[-1] + 1)
    across, y = across[:, part], y[:, part]
    half = np.interp(y, [-14, -4, 2, 12, 28, 40], [1.35, 1.45, 1.6, 1.75, 2.2, 2.4]).astype(np.float32)
    # The height of a vertebra grows from 1.7 cm in the neck to 3.4 cm in the loins: number = integral of 1 / height.
    heights = np.linspace(-20, 60, 400)
    pitch = np.interp(heights, [-12, -2, 10, 22, 34], [1.75, 2.0, 2.35, 2.85, 3.5])
    number = np.interp(y, heights, np.cumsum((heights[1] - heights[0]) / pitch)).astype(np.float32)
    fraction = number - np.floor(number)
    out = np.abs(across / half)
    waist = 0.09 * np.cos(2 * np.pi * fraction)
    rim = np.clip((1.12 - out - waist) / 0.35, 0, 1)
    inside = np.clip((0.5 - np.abs(fraction - 0.5)) / 0.10 - 0.3, 0, 1)
    plates = np.exp(-(((np.abs(fraction - 0.5) - 0.40) / 0.045) ** 2)) * rim
    sides = np.exp(-(((out - 0.95 + waist) / 0.10) ** 2)) * inside
    pedicle = np.hypot((out - 0.62) / 0.22, (fraction - 0.36) / 0.17)
    rings = np.exp(-(((pedicle - 1) / 0.35) ** 2))
    process = np.hypot(across / half / 0.15, (fraction - 0.80) / 0.20)
    drop = np.exp(-(((process - 0.8) / 0.4) ** 2)) + 0.5 * (process < 0.8)
    wings = np.exp(-(((fraction - 0.34 + 0.12 * (out - 1)) / 0.13) ** 2)) * np.clip((1.9 - out) / 0.5, 0, 1)
    wings *= np.clip((out - 0.8) / 0.2, 0, 1)
    bone[:, part] = 0.55 * rim * (0.66 + 0.34 * inside) + 0.28 * plates + 0.20 * sides + 0.14 * rings + 0.24 * drop
    bone[:, part] += 0.22 * wings
    return blur(bone, 1.0)
