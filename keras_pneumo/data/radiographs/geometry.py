"""Brings radiographs of any shape to the square that networks see, and answers back to the radiograph's own pixels.

In come grey pixels, masks or maps; out they come on the other grid. The rule: an image is padded with black to a square
about its centre and resized to the canonical frame, in which all masks and run-length texts are 1024x1024. Both teams'
pixels are made here, so a change of this rule changes every result.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SHORTEST = 32
"""Rows and columns that a radiograph has at least, as the smallest networks' images do."""

LONGEST = 4
"""How many times as long as the shorter side the longer one may be: padding makes a square of the longer one."""


@dataclass(frozen=True)
class Placement:
    """Where an image of some rows and columns lies in its square, in the image's own pixels."""

    rows: int
    columns: int

    @property
    def side(self) -> int:
        """Of the square: the longer of the image's sides."""
        return max(self.rows, self.columns)

    @property
    def top(self) -> int:
        """Black rows above the image; one more may lie below it."""
        return (self.side - self.rows) // 2

    @property
    def left(self) -> int:
        """Black columns to the left of the image; one more may lie to the right."""
        return (self.side - self.columns) // 2

    def box(self, size: int) -> tuple[int, int, int, int]:
        """The image's top, bottom, left and right edge in a square of ``size`` pixels, to the nearest pixel.

        The image keeps at least one pixel each way.
        """
        top, bottom = _edges(self.top, self.rows, size / self.side, size)
        left, right = _edges(self.left, self.columns, size / self.side, size)
        return top, bottom, left, right


def placement_of(image: np.ndarray) -> Placement:
    """The :class:`Placement` of an array (H, W, ...)."""
    return Placement(*image.shape[:2])


def shape_fault(pixels: np.ndarray) -> str:
    """Why pixels (H, W) are no radiograph, as a part of a sentence; blank when they may be one."""
    rows, columns = pixels.shape
    if min(rows, columns) < SHORTEST:
        return f"it has {rows} rows and {columns} columns; a radiograph has at least {SHORTEST} of each"
    if max(rows, columns) > LONGEST * min(rows, columns):
        return f"it has {rows} rows and {columns} columns; one side is more than {LONGEST} times as long as the other"
    return ""


def proportions_fault(mask: tuple[int, int], image: tuple[int, int]) -> str:
    """Why a mask of some rows and columns is not of an image of others, as a part of a sentence; blank when it may be.

    Of two grids of the same field each is the other scaled, and rounded to whole pixels, up or down.
    """
    if _is_scaled(mask, image) or _is_scaled(image, mask):
        return ""
    return (
        f"its mask has {mask[0]} rows and {mask[1]} columns, the image {image[0]} and {image[1]}: the proportions "
        "differ, so where the mask lies is not known"
    )


def _is_scaled(grid: tuple[int, int], of: tuple[int, int]) -> bool:
    """Whether one factor brings both sides of a grid within a pixel of those of another."""
    low = max((side - 1) / other for side, other in zip(grid, of, strict=True))
    return low < min((side + 1) / other for side, other in zip(grid, of, strict=True))


def size_note(rows: int, columns: int, size: int) -> str:
    """A sentence when an image is enlarged to (size, size), since that adds no detail; otherwise blank."""
    side = max(rows, columns)
    return (
        f"The longer side of the image has {side} pixels, fewer than the {size} that the network sees: it was enlarged."
        if side < size
        else ""
    )


def pad_to_square(image: np.ndarray) -> np.ndarray:
    """An array (H, W) padded with zeros to a square about its centre; a square one is returned as it is."""
    rows, columns = image.shape
    if rows == columns:
        return image
    place = placement_of(image)
    square = np.zeros((place.side, place.side), image.dtype)
    square[place.top : place.top + rows, place.left : place.left + columns] = image
    return square


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """A uint8 image (H, W), padded to a square and resized to (size, size).

    It is reduced by area (cv2 INTER_AREA), which is antialiased, and enlarged linearly (INTER_LINEAR).
    """
    square = pad_to_square(image)
    if square.shape == (size, size):
        return square
    way = cv2.INTER_AREA if len(square) > size else cv2.INTER_LINEAR
    return cv2.resize(square, (size, size), interpolation=way)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """A 0/1 mask (H, W) of an image, padded to a square and resized to (size, size), uint8.

    On a smaller grid a pixel is in the mask when at least half of its area is. On a larger grid a pixel has the value
    at its centre.
    """
    return _resized_mask(pad_to_square(mask), size)


def mask_on_image(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A mask in the canonical frame, uint8 (S, S) of 0 and 1, on the image's own pixels, uint8 (rows, columns).

    The reverse of :func:`resize_mask`, by the same rule for smaller and larger grids.
    """
    place = Placement(rows, columns)
    return _cut(_resized_mask(mask, place.side), place)


def map_on_image(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A map over the square, (S, S), linearly on the image's own pixels: (rows, columns), same dtype."""
    place = Placement(rows, columns)
    return _cut(np.asarray(cv2.resize(values, (place.side, place.side), interpolation=cv2.INTER_LINEAR)), place)


def without_padding(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """A mask in the canonical frame, (S, S), without its pixels beyond the image of these rows and columns."""
    if rows == columns or not mask.any():
        return mask
    top, bottom, left, right = Placement(rows, columns).box(len(mask))
    kept = np.zeros_like(mask)
    kept[top:bottom, left:right] = mask[top:bottom, left:right]
    return kept


def _cut(square: np.ndarray, place: Placement) -> np.ndarray:
    if place.rows == place.columns:
        return square
    return np.ascontiguousarray(square[place.top : place.top + place.rows, place.left : place.left + place.columns])


def _resized_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """A square mask on another square grid."""
    if mask.shape == (size, size):
        return mask
    if len(mask) < size:
        # Not by OpenCV: INTER_NEAREST takes the value at a pixel's corner, which moves the mask by up to a pixel, and
        # before OpenCV 5 INTER_NEAREST_EXACT misses a pixel's centre on some grids.
        at = (2 * np.arange(size) + 1) * len(mask) // (2 * size)
        return np.ascontiguousarray(mask.astype(np.uint8).take(at, 1).take(at, 0))
    share = cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    return (share >= 0.5).astype(np.uint8)


def _edges(start: int, length: int, scale: float, size: int) -> tuple[int, int]:
    first = min(round(start * scale), size - 1)
    return first, max(first + 1, min(size, round((start + length) * scale)))
