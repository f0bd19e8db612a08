"""Finds text that may be burnt into the border of a radiograph, from its pixels alone.

In comes a grey image, out come boxes around what looks like a line of letters: small, crisp, bright or dark strokes of
one height beside or below one another, as names and dates are burnt in by modalities and by screenshots. It finds
candidates for a person to look at and reads nothing. Side markers with a few initials are no line. Handwriting, large
letters far apart and text across the middle of the lungs are not found.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

WORKING_SIDE = 1536
"""Longest side, in pixels, at which an image is searched; larger ones are reduced: letters of 8 pixels stay legible."""

BORDER = 0.25
"""Share of the image's sides that counts as its border."""

FEWEST_LETTERS = 4
"""Letters that make a line: initials with a date have more, side markers and "AP" fewer."""

_CONTRAST = 48
"""Grey levels that a stroke differs from what surrounds it."""
_ABOVE_MEAN = 24
"""Grey levels that it differs from the mean of what surrounds it."""
_HEIGHTS = (6, 72)
"""Height of a letter in pixels, of WORKING_SIDE."""
_STROKE = 0.012
"""Widest stroke of a letter, in parts of the image's longer side: what is wider belongs to the body."""


class TextBox(NamedTuple):
    """A line that may be text, in pixels of the image."""

    left: int
    top: int
    width: int
    height: int
    letters: int


def burnt_in_text(pixels: np.ndarray) -> list[TextBox]:
    """Lines in the border of a radiograph that may be text.

    Args:
        pixels: uint8 (H, W).

    Returns:
        A box around each line, in the image's own pixels, from the top; none for an image below 64 pixels, in which no
        letter is legible.
    """
    rows, columns = pixels.shape
    if min(rows, columns) < 64:
        return []
    scale = min(1.0, WORKING_SIDE / max(rows, columns))
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    image = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    width = 2 * max(2, round(_STROKE * max(image.shape))) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (width, width))
    # Around letters with an edge of the other grey the background stands out from the edge, but not from its mean.
    mean = cv2.blur(image, (width, width))
    boxes: list[TextBox] = []  # around bright letters, then dark ones
    for operation, over_mean in (
        (cv2.MORPH_TOPHAT, cv2.subtract(image, mean)),
        (cv2.MORPH_BLACKHAT, cv2.subtract(mean, image)),
    ):
        stands_out = (cv2.morphologyEx(image, operation, kernel) >= _CONTRAST) & (over_mean >= _ABOVE_MEAN)
        strokes = stands_out.astype(np.uint8)
        boxes += _lines(_letters(strokes), image.shape)
        turned = _lines(_letters(np.ascontiguousarray(strokes.T)), image.shape[::-1])  # letters below one another
        boxes += [TextBox(box.top, box.left, box.height, box.width, box.letters) for box in turned]
    boxes.sort(key=lambda box: (box.top, box.left))
    return [
        box._replace(
            left=round(box.left / scale),
            top=round(box.top / scale),
            width=round(box.width / scale),
            height=round(box.height / scale),
        )
        for box in boxes
    ]


def _letters(strokes: np.ndarray) -> np.ndarray:
    """Boxes (left, top, width, height) of the connected strokes that have a letter's size and filling: (n, 4)."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(strokes, connectivity=8)
    left, top, width, height, area = stats[1:].T
    low, high = _HEIGHTS
    filled = area / np.maximum(width * height, 1)
    fits = (height >= low) & (height <= high) & (width <= 1.6 * height) & (filled >= 0.15)
    # A stroke such as I, l or 1 fills its whole box.
    fits &= (filled <= 0.85) | (width <= 0.5 * height)
    return np.stack([left, top, width, height], axis=1)[fits]


def _lines(letters: np.ndarray, shape: tuple[int, ...]) -> list[TextBox]:
    """Letters of one height that stand beside one another in the image's border."""
    rows, columns = shape
    boxes = []
    rest = sorted(map(tuple, letters.tolist()))  # from the left
    while rest:
        line = [rest.pop(0)]
        for letter in list(rest):
            left, top, _, height = letter
            before = line[-1]
            gap = left - (before[0] + before[2])
            if gap > 2.5 * before[3]:
                if left > before[0] + before[2] + 2.5 * _HEIGHTS[1]:
                    break  # all that follow are further to the right
                continue
            same_line = abs((top + height) - (before[1] + before[3])) <= 0.3 * before[3]
            same_height = 0.6 <= height / before[3] <= 1.7
            if gap >= -1 and same_line and same_height:
                line.append(letter)
                rest.remove(letter)
        if len(line) >= FEWEST_LETTERS:
            boxes.append(_around(line))
    return [box for box in boxes if _is_in_border(box, rows, columns)]


def _around(line: list[tuple[int, ...]]) -> TextBox:
    left, top = min(letter[0] for letter in line), min(letter[1] for letter in line)
    right = max(letter[0] + letter[2] for letter in line)
    bottom = max(letter[1] + letter[3] for letter in line)
    return TextBox(left, top, right - left, bottom - top, len(line))


def _is_in_border(box: TextBox, rows: int, columns: int) -> bool:
    """Whether a line's middle is within the border on any side."""
    x, y = (box.left + box.width / 2) / columns, (box.top + box.height / 2) / rows
    return min(x, 1 - x, y, 1 - y) < BORDER
