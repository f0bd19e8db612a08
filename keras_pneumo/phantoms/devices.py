"""All that is in an image beside the patient: chest tubes, electrodes with wires, lines, other tubes, and writing.

In: the case of an image. Out: maps of extra attenuation, masks of what was drawn, boxes round the writing, and the rows
of ``devices.csv``. Tube, leads and writing are drawn from one random stream each; the streams of leads and writing do
not know the label. None of it needs the rest of the image, so the table of a folder can be written again without
drawing its images.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from keras_pneumo.data.labels import rle
from keras_pneumo.data.labels.devices import LEADS, MARKER, TUBE, WORDS, box_pixels
from keras_pneumo.phantoms.anatomy import LEFT, RIGHT, Build, Position, make_build, make_pose, make_position, wall_at
from keras_pneumo.phantoms.cohort import Case, make_patient, stream
from keras_pneumo.phantoms.geometry import SIZE, Pose, blur, ellipse, fill, resampled, smooth_curve, stroke

LEAD = 2.6
"""Attenuation of a full lead letter."""

Box = tuple[int, int, int, int]
"""x, y, width and height in pixels."""


@dataclass(frozen=True)
class DeviceLocations:
    """Where devices and writing are: bool masks 1024x1024, empty without the device; boxes x, y, width, height."""

    tube: np.ndarray
    leads: np.ndarray
    marker: Box
    words: tuple[Box, ...]

    def rows(self, image_id: str) -> list[tuple[str, str, str]]:
        """Return rows of ``devices.csv``: image id, kind and EncodedPixels."""
        devices = [(TUBE, rle.encode(self.tube))] if self.tube.any() else []
        devices += [(MARKER, box_pixels(*self.marker)), *((WORDS, box_pixels(*box)) for box in self.words)]
        devices += [(LEADS, rle.encode(self.leads))] if self.leads.any() else []
        return [(image_id, kind, pixels) for kind, pixels in devices]


@dataclass(frozen=True)
class DrawnDevices:
    """What is drawn over the patient in one image."""

    tube: Tube | None
    leads: Leads
    writing: Writing

    @property
    def locations(self) -> DeviceLocations:
        """The masks and boxes of all of it."""
        tube = self.tube.mask if self.tube is not None else np.zeros((SIZE, SIZE), bool)
        return DeviceLocations(tube, self.leads.mask, self.writing.box, self.writing.words)


def draw_devices(case: Case, build: Build, position: Position, pose: Pose) -> DrawnDevices:
    """Draw what is in one image beside the patient."""
    key = (case.patient, case.image)
    side = RIGHT if case.side == "right" else LEFT
    tube = chest_tube(build, pose, side, stream(case.seed, 11, *key)) if case.tube else None
    lines = leads(build, position, pose, stream(case.seed, 12, *key))
    return DrawnDevices(tube, lines, writing(position, stream(case.seed, 13, *key)))


def device_rows(case: Case) -> list[tuple[str, str, str]]:
    """Return an image's rows of ``devices.csv``, without drawing the image."""
    return draw_devices(case, *position_patient(case)).locations.rows(case.image_id)


def position_patient(case: Case) -> tuple[Build, Position, Pose]:
    """Return the patient's build, position, and pose in the image."""
    key = (case.patient, case.image)
    person = make_patient(case.seed, case.patient, 0.0)
    build = make_build(stream(case.seed, 3, case.patient), person.sex, person.age)
    position = make_position(stream(case.seed, 4, *key), case.view)
    return build, position, make_pose(stream(case.seed, 5, *key), case.view, build)


@dataclass(frozen=True)
class Tube:
    """A chest tube: its attenuation (float32) and its mask (bool), both 1024x1024."""

    attenuation: np.ndarray
    mask: np.ndarray


def chest_tube(build: Build, pose: Pose, side: int, random: np.random.Generator) -> Tube:
    """Draw a drain from between two ribs up to the apex or along the diaphragm, with its radiopaque stripe."""
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


@dataclass(frozen=True)
class Leads:
    """All devices but a chest tube: their attenuation (float32) and their mask (bool), both 1024x1024."""

    attenuation: np.ndarray
    mask: np.ndarray


def leads(build: Build, position: Position, pose: Pose, random: np.random.Generator) -> Leads:
    """Draw electrodes with their wires, and sometimes lines and a breathing tube; mostly in bed."""
    bed = position.view == "AP"
    total = np.zeros((SIZE, SIZE), np.float32)
    thin, wide = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    mask = np.zeros((SIZE, SIZE), bool)
    w, h = build.width, build.height
    if random.random() < (0.7 if bed else 0.06):
        sites = np.array(
            [
                (-0.75 * w, 0.12 * h),
                (0.75 * w, 0.10 * h),
                (0.70 * w, 0.85 * h),
                (-0.1 * w, 0.45 * h),
                (-0.7 * w, 0.9 * h),
            ]
        )
        for site in sites[random.permutation(5)[: random.integers(2, 5)]]:
            site = site + random.normal(0, 1.4, 2)
            ring = pose.pixels(ellipse(float(site[0]), float(site[1]), 0.55, 0.55))
            stroke(wide, ring, 210, 3, closed=True)
            mask |= fill(ring) > 0  # the electrode is the whole disc, though only its rim is seen
            turn = random.uniform(0, 2 * np.pi)
            tab = site + np.array([np.cos(turn), np.sin(turn)]) * np.linspace(0, 1.5, 4)[:, None]
            stroke(wide, pose.pixels(tab), 255, 6)
            away = np.array([np.sign(site[0]) * (w + 12), random.uniform(-4, h + 8)])
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


@dataclass(frozen=True)
class Writing:
    """Markers and words: ``lead`` letters on the plate and ``ink`` burned in afterwards (both uint8 1024x1024, 255 is
    full), the side marker's box, and the boxes of the other words."""

    lead: np.ndarray
    ink: np.ndarray
    box: Box
    words: tuple[Box, ...]


def writing(position: Position, random: np.random.Generator) -> Writing:
    """Draw a side marker, and in bed sometimes the words of the technician."""
    lead, ink = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    bed = position.view == "AP"
    right = random.random() < 0.15
    letter = "R" if right else "L"
    x = int(random.uniform(45, 150) if right else random.uniform(874, 975))
    y = int(random.uniform(40, 190))
    as_lead = random.random() < 0.8
    target = lead if as_lead else ink
    glyph = _glyph(letter, random, plain=as_lead)
    box = _paste(target, glyph, x, y)
    boxes: list[Box] = []
    if random.random() < 0.45 and as_lead:
        initials = "".join(random.choice(list("ABCDGJKLMRSV0123456789"), int(random.integers(2, 4))))
        small = _word(initials, 0.7, 2)
        small = np.rot90(small) if random.random() < 0.4 else small
        boxes.append(_paste(target, small, x, y + glyph.shape[0] // 2 + 26))
    if bed and random.random() < 0.5:
        words = [
            word
            for word, chance in (("PORTABLE", 0.9), ("AP", 0.6), ("SUPINE", 0.3), ("UPRIGHT", 0.15))
            if random.random() < chance
        ]
        column = int(random.choice([120, 180, 700, 880]))
        for line, word in enumerate(words):
            boxes.append(_paste(ink, _word(word, 0.72, 2), column, int(28 + 62 * line + random.integers(0, 8))))
    return Writing(lead, ink, box, tuple(boxes))


def _glyph(letter: str, random: np.random.Generator, plain: bool) -> np.ndarray:
    """Draw a marker as a uint8 image: thick, outlined in a ring, or a cut-out; turned a little, sometimes mirrored."""
    side = 96
    canvas = np.zeros((side, side), np.uint8)
    scale, thick = float(random.uniform(1.1, 1.7)), int(random.integers(4, 9))
    (width, height), _ = cv2.getTextSize(letter, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    cv2.putText(
        canvas,
        letter,
        ((side - width) // 2, (side + height) // 2),
        cv2.FONT_HERSHEY_SIMPLEX,
        scale,
        255,
        thick,
        cv2.LINE_AA,
    )
    if not plain and random.random() < 0.6:
        cv2.circle(canvas, (side // 2, side // 2), 34, 255, 2, cv2.LINE_AA)
    if plain and random.random() < 0.3:
        canvas = np.ascontiguousarray(canvas[:, ::-1])
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), float(random.normal(0, 14 if plain else 0.01)), 1.0)
    return cv2.warpAffine(canvas, turn, (side, side), flags=cv2.INTER_LINEAR)


def _word(text: str, scale: float, thick: int) -> np.ndarray:
    (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    canvas = np.zeros((height + base + 6, width + 6), np.uint8)
    cv2.putText(canvas, text, (3, height + 3), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, thick, cv2.LINE_AA)
    return canvas


def _paste(canvas: np.ndarray, glyph: np.ndarray, x: int, y: int) -> Box:
    """Paste a glyph centred at (x, y), cut at the image's edge; return the box of its lit pixels."""
    height, width = glyph.shape
    top, left = y - height // 2, x - width // 2
    rows = slice(max(0, top), min(SIZE, top + height))
    columns = slice(max(0, left), min(SIZE, left + width))
    part = glyph[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    canvas[rows, columns] = np.maximum(canvas[rows, columns], part)
    lit_rows, lit_columns = np.nonzero(part > 64)
    return (
        int(columns.start + lit_columns.min()),
        int(rows.start + lit_rows.min()),
        int(np.ptp(lit_columns) + 1),
        int(np.ptp(lit_rows) + 1),
    )
