"""The overlay: the radiograph with the outline of the mask and the label "research use only".

In: a radiograph, uint8 (H, W), and its mask, of the same rows and columns. Out: a picture of these rows and columns, so
that it lies pixel for pixel on the source.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

OUTLINE = (255, 196, 0)
"""Red, green, blue: amber differs clearly from every grey."""

RESEARCH_USE = "Research use only"


def overlay_mask(image: np.ndarray, mask: np.ndarray, lines: Sequence[str] = ()) -> np.ndarray:
    """The radiograph with the mask's outline and some lines of text in its lower left corner.

    Args:
        image: uint8 (H, W).
        mask: uint8 (H, W), 0 or 1.
        lines: texts of ASCII letters; they must not name the patient.

    Returns:
        The picture in red, green, blue: uint8 (H, W, 3).
    """
    rows, columns = image.shape
    side = min(columns, 2 * rows)  # the text must fit into both
    picture = np.repeat(image[..., None], 3, axis=2)
    draw_outline(picture, mask, OUTLINE, max(1, round(max(rows, columns) / 500)))
    ink = np.zeros((rows, columns), np.uint8)
    for number, line in enumerate(reversed(lines)):
        position = (round(side * 0.015), round(rows - side * (0.015 + 0.03 * number)))
        cv2.putText(ink, line, position, cv2.FONT_HERSHEY_SIMPLEX, side / 1400, 255, max(1, side // 700), cv2.LINE_AA)
    if lines:
        rim = max(3, side // 256) | 1
        shade = cv2.dilate(ink, np.ones((rim, rim), np.uint8)).astype(np.float32)[..., None] / 255
        letters = ink.astype(np.float32)[..., None] / 255
        picture = np.rint(picture * (1 - shade) * (1 - letters) + 255 * letters)
    return np.asarray(picture, np.uint8)


def draw_outline(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], width: int = 1) -> None:
    """Draw a mask's outline, holes included, into a picture of its rows and columns.

    Args:
        picture: uint8 (H, W, 3), changed in place.
        mask: uint8 (H, W), 0 or 1.
        colour: of the line, in the picture's order of channels.
        width: of the line, in pixels.
    """
    contours, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, colour, width, cv2.LINE_AA)


def encode_png(picture: np.ndarray) -> bytes:
    """Encode a picture, uint8 (H, W) or (H, W, 3) in red, green, blue, as PNG."""
    stored = picture if picture.ndim == 2 else picture[..., ::-1]
    encoded, data = cv2.imencode(".png", np.ascontiguousarray(stored), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not encoded:
        raise RuntimeError("OpenCV could not write a PNG")
    return bytes(data.tobytes())
