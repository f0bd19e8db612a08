"""The overlay: the radiograph with the outline of the mask and the label "research use only".

In: a radiograph, uint8 (N, N), and a mask on the grid of 1024x1024. Out: the mask as (N, N), and a picture of the same
(N, N), pixel for pixel on the source.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from keras_pneumo.data.labels import rle
from keras_pneumo.data.radiographs.geometry import resize_mask

OUTLINE = (255, 196, 0)
"""Red, green, blue: amber differs clearly from every grey."""

RESEARCH_USE = "Research use only"


def mask_at_size(mask: np.ndarray, side: int) -> np.ndarray:
    """A mask, uint8 (1024, 1024) of 0 and 1, on a square radiograph's own grid, uint8 (side, side).

    On a smaller grid a pixel is in the mask when at least half of its area is. On a larger grid a pixel has the value
    at its centre.
    """
    if side <= rle.MASK_SIZE:
        return resize_mask(mask, side)
    # INTER_NEAREST takes the value at a pixel's corner: it would move the mask by up to a pixel on some grids.
    return np.asarray(cv2.resize(mask, (side, side), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def overlay_mask(image: np.ndarray, mask: np.ndarray, lines: Sequence[str] = ()) -> np.ndarray:
    """The radiograph with the mask's outline and some lines of text in its lower left corner.

    Args:
        image: uint8 (N, N).
        mask: uint8 (N, N), 0 or 1.
        lines: texts of ASCII letters; they must not name the patient.

    Returns:
        The picture in red, green, blue: uint8 (N, N, 3).
    """
    side = image.shape[0]
    picture = np.repeat(image[..., None], 3, axis=2)
    contours, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, OUTLINE, max(1, round(side / 500)), cv2.LINE_AA)
    ink = np.zeros((side, side), np.uint8)
    for number, line in enumerate(reversed(lines)):
        position = (round(side * 0.015), round(side * (0.985 - 0.03 * number)))
        cv2.putText(ink, line, position, cv2.FONT_HERSHEY_SIMPLEX, side / 1400, 255, max(1, side // 700), cv2.LINE_AA)
    if lines:
        rim = max(3, side // 256) | 1
        shade = cv2.dilate(ink, np.ones((rim, rim), np.uint8)).astype(np.float32)[..., None] / 255
        letters = ink.astype(np.float32)[..., None] / 255
        picture = np.rint(picture * (1 - shade) * (1 - letters) + 255 * letters)
    return np.asarray(picture, np.uint8)


def encode_png(picture: np.ndarray) -> bytes:
    """Encode a picture, uint8 (H, W) or (H, W, 3) in red, green, blue, as PNG."""
    stored = picture if picture.ndim == 2 else picture[..., ::-1]
    encoded, data = cv2.imencode(".png", np.ascontiguousarray(stored), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not encoded:
        raise RuntimeError("OpenCV could not write a PNG")
    return bytes(data.tobytes())
