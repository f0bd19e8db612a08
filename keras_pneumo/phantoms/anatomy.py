"""A patient's build and position, and the outlines of lungs, heart and mediastinum.

In: random streams of the patient (for the build) and of one image (for the position). Out: outlines in centimetres.
Proportions were read off frontal radiographs: every lung outline is the same twenty-odd control points, as shares of
the chest's half-width and of the lung's height, moved a little from patient to patient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keras_pneumo.phantoms.geometry import Pose, smooth_curve

RIGHT, LEFT = -1, 1
"""The patient's sides, as the sign of x in the image: the patient's right is the image's left."""

# Share of the half-width, share of the height: up the inner border, over the apex, down the chest wall.
_WALL = np.array(
    [
        (0.105, 0.34), (0.11, 0.20), (0.13, 0.10), (0.20, 0.03), (0.33, 0.0), (0.49, 0.022), (0.62, 0.07), (0.73, 0.14),
        (0.83, 0.28), (0.89, 0.43), (0.935, 0.58), (0.965, 0.72), (0.985, 0.84), (0.998, 0.94),
    ]
)  # fmt: skip
# From the costophrenic angle inwards over the dome, and back up the inner border; heights relative to the dome.
_DOME = np.array([(0.99, 1.0), (0.93, 0.71), (0.82, 0.34), (0.66, 0.07), (0.51, 0.0), (0.36, 0.06), (0.23, 0.19)])
_INNER = np.array([(0.12, 0.80), (0.10, 0.65), (0.10, 0.50)])


@dataclass(frozen=True)
class Build:
    """One patient's body, in centimetres: half-width and height of the lungs, layers, and individual details."""

    width: float
    height: float
    wall: float
    neck: float
    thickness: float
    heart_left: float
    heart_right: float
    knob: float
    dome: float
    left_dome: float
    breast: float
    breast_height: float
    curve: tuple[float, float]
    wobble: np.ndarray
    bone: float
    rib_pitch: float
    rib_tilt: float
    clavicle: float
    vessels: int
    wires: bool


@dataclass(frozen=True)
class Position:
    """How the patient is positioned: standing with the shoulders rolled forward (PA), or in bed (AP)."""

    view: str
    breath: float
    arm_angle: float
    shoulder: float
    magnify: float


def make_build(random: np.random.Generator, sex: str, age: int) -> Build:
    """Draw a patient's body at random; it is the same for every image of that patient."""
    male = sex == "M"
    grown = min(1.0, 0.72 + 0.28 * (age - 6) / 10)
    girth = float(random.normal())
    return Build(
        width=grown * float(np.clip(random.normal(14.3 if male else 12.9, 0.75), 11.3, 16.2)),
        height=grown * float(np.clip(random.normal(24.6 if male else 22.2, 1.3), 19, 28)),
        wall=grown * float(np.clip(2.5 + 0.7 * girth, 1.5, 5.0)),
        neck=grown * float(np.clip((6.3 if male else 5.4) + 0.35 * girth, 4.6, 7.6)),
        thickness=grown * float(np.clip(21.5 + 1.8 * girth, 18, 27)),
        heart_left=float(np.clip(random.normal(0.59, 0.07), 0.44, 0.80)),
        heart_right=float(np.clip(random.normal(0.25, 0.04), 0.16, 0.38)),
        knob=float(np.clip(random.normal(0.215 + 0.0006 * (age - 45), 0.02), 0.14, 0.27)),
        dome=float(np.clip(random.normal(0.865, 0.02), 0.81, 0.91)),
        left_dome=float(np.clip(random.normal(0.045, 0.018), 0.0, 0.09)),
        breast=0.0 if male or age < 13 else float(np.clip(random.normal(1.0 + 0.15 * girth, 0.25), 0.35, 1.6)),
        breast_height=float(np.clip(random.normal(0.80, 0.06), 0.66, 0.98)),
        curve=(float(random.normal(0, 0.35)), float(random.uniform(0, 2 * np.pi))),
        wobble=random.normal(0, 0.015, (2, 40, 2)),
        bone=float(np.clip(random.normal(1.0 - 0.004 * max(0, age - 50), 0.12), 0.65, 1.3)),
        rib_pitch=float(np.clip(random.normal(0.101, 0.004), 0.09, 0.112)),
        rib_tilt=float(np.clip(random.normal(0.43, 0.035), 0.34, 0.52)),
        clavicle=float(random.normal(0.0, 1.0)),
        vessels=int(random.integers(2**31)),
        wires=bool(age > 40 and random.random() < 0.08),
    )


def make_position(random: np.random.Generator, view: str) -> Position:
    """Draw at random how the patient is positioned for one image."""
    bed = view == "AP"
    return Position(
        view=view,
        breath=float(random.normal(-0.10 if bed else 0.0, 0.05 if bed else 0.02)),
        arm_angle=float(random.uniform(0.03, 0.25) if bed else random.uniform(0.35, 0.75)),
        shoulder=float(random.normal(-0.8 if bed else 0.0, 0.5)),
        magnify=1.12 if bed else 1.0,
    )


def make_pose(random: np.random.Generator, view: str, build: Build) -> Pose:
    """Draw at random where the patient is on the detector plate: PA is straight, AP in bed is tilted and off centre."""
    bed = view == "AP"
    whole = 1024 / (2 * build.width + (10.5 if bed else 8.5))
    return Pose(
        scale=float(np.clip(whole * random.normal(1.02, 0.065), 22, 44)),
        x=float(random.normal(511.5, 34 if bed else 16)),
        y=float(random.normal(150 if bed else 110, 42 if bed else 26)),
        angle=float(np.deg2rad(random.normal(0, 3.2 if bed else 0.9))),
    )


def midline(build: Build, y: np.ndarray) -> np.ndarray:
    """Return x of the spine's middle at heights ``y``, in cm: a slight curve."""
    amplitude, phase = build.curve
    return amplitude * np.sin(2 * np.pi * np.asarray(y) / (1.6 * build.height) + phase)


def wall_at(build: Build, y: np.ndarray) -> np.ndarray:
    """Return the inner half-width of the chest at heights ``y``, in cm."""
    return build.width * np.interp(np.asarray(y) / build.height, _WALL[4:, 1], _WALL[4:, 0])


def dome_height(build: Build, position: Position, side: int) -> float:
    """Return y of the top of the diaphragm on one side, in cm; the right one stands higher."""
    return build.height * (build.dome + position.breath + (build.left_dome if side == LEFT else 0.0))


def lung_outline(build: Build, position: Position, side: int) -> np.ndarray:
    """Return one lung's outline in cm, closed, shape (n, 2): inner border, apex, chest wall, angle, diaphragm."""
    top = dome_height(build, position, side) / build.height
    angle = min(1.0, top + 0.155)
    wall = _WALL[_WALL[:, 1] < angle - 0.06]
    dome = np.stack([_DOME[:, 0], top + (angle - top) * _DOME[:, 1]], axis=1)
    inner = _INNER * (1.0, top / 0.86)
    points = np.concatenate([wall, dome, inner])
    # The chest wall is nearly straight between two control points: move neighbours together.
    wobble = build.wobble[max(side, 0), : len(points)]
    points = points + (wobble + np.roll(wobble, 1, axis=0) + np.roll(wobble, -1, axis=0)) / 3
    outline = smooth_curve(points * (side * build.width, build.height), closed=True)
    return outline + np.stack([0.5 * midline(build, outline[:, 1]), np.zeros(len(outline))], axis=1)


def heart_outline(build: Build, position: Position) -> np.ndarray:
    """Return the heart's outline in cm, closed; its widths are shares of the chest's half-width."""
    left, right = build.heart_left * position.magnify, -build.heart_right * position.magnify
    low = position.breath + build.dome + 0.04
    shape = np.array(
        [
            (-0.04, 0.40), (0.62 * right, 0.50), (right, 0.63), (1.02 * right, 0.74), (0.9 * right, low),
            (0.6 * right, low + 0.12),
            (0.2, low + 0.14), (0.6 * left, low + 0.12), (0.94 * left, low + 0.045), (left, low - 0.05),
            (0.9 * left, low - 0.16),
            (0.72 * left, 0.60), (0.55 * left, 0.50), (0.42 * left, 0.43), (0.1, 0.37),
        ]
    )  # fmt: skip
    return smooth_curve(shape * (build.width, build.height), closed=True)


def mediastinum_outline(build: Build) -> np.ndarray:
    """Return the outline in cm of what is between the lungs: great vessels, the aortic knob, the spine's edge."""
    knob = build.knob
    # fmt: off
    shape = np.array(
        [
            (-0.12, -0.4), (-0.115, 0.0), (-0.125, 0.1), (-0.155, 0.22), (-0.18, 0.34), (-0.185, 0.42), (-0.15, 0.55),
            (-0.13, 0.8), (-0.14, 1.3), (0.14, 1.3), (0.135, 0.8), (0.16, 0.6), (0.215, 0.51), (0.225, 0.45),
            (0.80 * knob, 0.39), (0.97 * knob, 0.345), (knob, 0.30), (0.88 * knob, 0.25), (0.135, 0.2), (0.12, 0.1),
            (0.115, 0.0), (0.12, -0.4),
        ]
    )
    # fmt: on
    outline = smooth_curve(shape * (build.width, build.height), closed=True)
    return outline + np.stack([midline(build, outline[:, 1]), np.zeros(len(outline))], axis=1)
