"""Things that lie on the patient: chest tubes, electrodes with their wires, lines and other tubes.

In come the pose and a random stream; out go maps of extra attenuation and the masks of what was drawn. Leads are drawn
from a stream of their own, which knows nothing of the label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keras_pneumo.data.phantom_anatomy import LEFT, RIGHT, Build, Stance, wall_at
from keras_pneumo.data.phantom_geometry import SIZE, Pose, blur, ellipse, fill, resampled, smooth_curve, stroke


@dataclass(frozen=True)
class Tube:
    """A chest tube: its attenuation (float32) and where it lies (bool), both 1024x1024."""

    attenuation: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Leads:
    """All that lies on the patient but a chest tube: its attenuation (float32) and where it lies (bool), 1024x1024."""

    attenuation: np.ndarray
    mask: np.ndarray


def chest_tube(build: Build, pose: Pose, side: int, random: np.random.Generator) -> Tube:
    """A drain from between two ribs up to the apex or along the diaphragm, with its radiopaque stripe."""
    h = build.height
    entry = random.uniform(0.45, 0.8) * h
    out = float(wall_at(build, np.array(entry)))
    tip = np.array([random.uniform(0.25, 0.55) * build.width, random.uniform(0.06, 0.22) * h])
    if random.random() < 0.2:
        tip = np.array([random.uniform(0.2, 0.45) * build.width, random.uniform(0.55, 0.75) * h])
    middle = (np.array([out, entry]) + tip) / 2 + random.normal(0, 1.1, 2) + (random.uniform(0.5, 2.4), 0)
    skin = out + build.wall
    points = np.array([(skin + 3.0, entry + 9), (skin + 0.4, entry + 3.0), (out - 0.4, entry), middle, tip])
    curve = resampled(smooth_curve(points * (side, 1)), 0.06)
    radius = random.uniform(0.28, 0.46)
    normal = np.gradient(curve, axis=0)[:, ::-1] * (1, -1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    outline = np.concatenate([curve + radius * normal, (curve - radius * normal)[::-1]])
    mask = fill(pose.pixels(outline))
    lines = np.zeros((SIZE, SIZE), np.uint8)
    for offset in (-radius, radius):
        stroke(lines, pose.pixels(curve + offset * normal), 120, 2)
    stripe = np.zeros((SIZE, SIZE), np.uint8)
    side_of_stripe = random.choice([-0.55, 0.55]) * radius
    hole = len(curve) - int(random.uniform(2.5, 4.5) / 0.06)  # the stripe breaks at the side hole
    for part in (slice(0, hole), slice(hole + 14, len(curve))):
        stroke(stripe, pose.pixels(curve[part] + side_of_stripe * normal[part]), 255, 2)
    attenuation = (
        0.07 * mask
        + blur(lines, 0.8).astype(np.float32) * (0.16 / 255)
        + blur(stripe, 0.8).astype(np.float32) * (0.85 / 255)
    )
    return Tube(attenuation.astype(np.float32), mask > 0.5)


def leads(build: Build, stance: Stance, pose: Pose, random: np.random.Generator) -> Leads:
    """Electrodes with their wires, and sometimes lines and a breathing tube; mostly in bed."""
    bed = stance.view == "AP"
    total = np.zeros((SIZE, SIZE), np.float32)
    thin, wide = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    mask = np.zeros((SIZE, SIZE), bool)
    w, h = build.width, build.height
    if random.random() < (0.7 if bed else 0.06):
        places = np.array(
            [
                (-0.75 * w, 0.12 * h),
                (0.75 * w, 0.10 * h),
                (0.70 * w, 0.85 * h),
                (-0.1 * w, 0.45 * h),
                (-0.7 * w, 0.9 * h),
            ]
        )
        for place in places[random.permutation(5)[: random.integers(2, 5)]]:
            place = place + random.normal(0, 1.4, 2)
            ring = pose.pixels(ellipse(float(place[0]), float(place[1]), 0.55, 0.55))
            stroke(wide, ring, 210, 3, closed=True)
            mask |= fill(ring) > 0  # the electrode is the whole disc, though only its rim is seen
            turn = random.uniform(0, 2 * np.pi)
            tab = place + np.array([np.cos(turn), np.sin(turn)]) * np.linspace(0, 1.5, 4)[:, None]
            stroke(wide, pose.pixels(tab), 255, 6)
            away = np.array([np.sign(place[0]) * (w + 12), random.uniform(-4, h + 8)])
            wire = np.array(
                [
                    tab[-1],
                    tab[-1] * 0.65 + away * 0.35 + random.normal(0, 2.2, 2),
                    tab[-1] * 0.3 + away * 0.7 + random.normal(0, 3, 2),
                    away,
                ]
            )
            stroke(thin, pose.pixels(smooth_curve(wire)), 150, 3)
    if bed and random.random() < 0.35:  # breathing tube in the windpipe
        x = random.normal(-0.2, 0.25)
        for offset in (-0.45, 0.45):
            line = np.array(
                [
                    (x + offset + random.normal(0, 0.05), -12),
                    (x + offset, -4),
                    (x + offset, random.uniform(0.1, 0.22) * h),
                ]
            )
            stroke(thin, pose.pixels(smooth_curve(line)), 120, 2)
    if random.random() < (0.45 if bed else 0.05):  # central line
        side = random.choice([RIGHT, LEFT])
        line = np.array(
            [
                (side * 0.75 * w, -4.5),
                (side * 0.45 * w, 0.10 * h),
                (-0.08 * w, 0.16 * h),
                (-0.14 * w, 0.30 * h),
                (-0.15 * w, random.uniform(0.4, 0.5) * h),
            ]
        )
        stroke(thin, pose.pixels(smooth_curve(line + random.normal(0, 0.3, line.shape))), 190, 2)
    if bed and random.random() < 0.3:  # stomach tube
        line = np.array([(0.1, -12), (0.2, 0.0), (0.3, 0.5 * h), (1.0, 0.9 * h), (0.3 * w, 1.02 * h)])
        stroke(thin, pose.pixels(smooth_curve(line + random.normal(0, 0.25, line.shape))), 110, 3)
    if build.wires:  # wires of a closed breastbone
        for y in np.linspace(0.3, 0.8, 6) * h:
            stroke(
                wide,
                pose.pixels(ellipse(float(random.normal(0, 0.2)), float(y), 0.55, 0.4, float(random.normal(0, 0.3)))),
                255,
                2,
                closed=True,
            )
    for canvas, weight in ((thin, 0.30), (wide, 0.85)):
        if canvas.any():
            total += blur(canvas, 0.85).astype(np.float32) * (weight / 255)
            mask |= canvas > 0
    return Leads(total, mask)
