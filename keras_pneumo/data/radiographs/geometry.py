"""Resizes radiographs and masks to the square that networks see: the one rule for it.

In come grey pixels or a mask, out comes a square of a given size, or the reason why there is none. Both teams' pixels
are made here, so a change of this rule changes every result.
"""

from __future__ import annotations

import cv2
import numpy as np


def size_fault(pixels: np.ndarray, size: int) -> str:
    """Why pixels (H, W) cannot be brought to (size, size), as a part of a sentence; blank when they can."""
    height, width = pixels.shape
    if height != width:
        return f"it has {height} rows and {width} columns; a square image is expected, so pad it to a square"
    return f"its side of {height} pixels is shorter than the {size} that are needed" if height < size else ""


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """A square uint8 image reduced to (size, size) by area (cv2 INTER_AREA), which is antialiased."""
    return image if image.shape == (size, size) else cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """A square 0/1 mask reduced to (size, size): a pixel is in when at least half of its area is."""
    if mask.shape == (size, size):
        return mask
    share = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return (share >= 0.5).astype(np.uint8)
