"""What is written on a film: a side marker, and sometimes initials and the words of the technician.

In come how the patient stands and a random stream; out go the letters and the boxes round them. The stream is one of
its own, which knows nothing of the label.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from keras_pneumo.data.phantom_anatomy import Stance
from keras_pneumo.data.phantom_geometry import SIZE

LEAD = 2.6
"""Attenuation of a full lead letter."""

Box = tuple[int, int, int, int]
"""x, y, width and height in pixels."""


@dataclass(frozen=True)
class Writing:
    """Markers and words: ``lead`` letters laid on the plate and ``ink`` burned in afterwards (both uint8 1024x1024, 255
    where it is full), the side marker's box, and the box of each word beside it."""

    lead: np.ndarray
    ink: np.ndarray
    box: Box
    words: tuple[Box, ...]


def writing(stance: Stance, random: np.random.Generator) -> Writing:
    """A side marker, and on films in bed sometimes the words of the technician."""
    lead, ink = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    bed = stance.view == "AP"
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
    """A marker as a uint8 picture: thick, outlined in a ring, or a cut-out; turned a little, sometimes mirrored."""
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
    """Put a picture centred at (x, y), cut at the film's edge; the box of its lit pixels."""
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
