"""Probability maps in 256 levels: packed to be kept, and enlarged to the grid that masks are scored on.

In: a segmenter's probabilities at its image size. Out: uint8 maps (a probability times 255), which are enlarged to
1024x1024 before any threshold: a mask that is cut at the small size and then enlarged would have steps for edges. Only
one map at a time is held at the full size; those that are kept are packed.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.data.radiographs.geometry import without_padding

LEVELS = 256
"""Levels of a map; level k is a probability of k / 255, so a map is exact to 0.002."""


@dataclass(frozen=True)
class PackedMap:
    """A quantised map, compressed to a few kilobytes: most of a radiograph is far from any pneumothorax."""

    packed: bytes
    size: int

    @classmethod
    def of(cls, quantised: np.ndarray) -> PackedMap:
        """Pack a map, uint8 (S, S)."""
        return cls(zlib.compress(np.ascontiguousarray(quantised).tobytes(), 1), quantised.shape[0])

    def unpack(self) -> np.ndarray:
        """The map again, uint8 (S, S)."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.size, self.size)


@dataclass(frozen=True)
class MapSet:
    """The packed maps of some images, and the probabilities by the image heads, (n,); None without image heads."""

    image_ids: list[str]
    maps: list[PackedMap]
    image_probability: np.ndarray | None
    shapes: list[tuple[int, int]] | None = None
    """Rows and columns of each image's file, for what is black on both sides of it; None where all are square."""

    def enlarged(self) -> Iterator[np.ndarray]:
        """Each map on the grid of masks, uint8 (1024, 1024), 0 on the black that was added to make a square."""
        for number, packed in enumerate(self.maps):
            full = enlarge(packed.unpack())
            yield full if self.shapes is None else without_padding(full, *self.shapes[number])


def quantise(probability: np.ndarray) -> np.ndarray:
    """Probabilities in 256 levels, uint8 of the same shape, rounded."""
    return np.rint(probability * (LEVELS - 1)).astype(np.uint8)


def enlarge(quantised: np.ndarray) -> np.ndarray:
    """A square quantised map on the grid of masks, uint8 (1024, 1024): linear between pixel centres."""
    if quantised.shape == (rle.MASK_SIZE, rle.MASK_SIZE):
        return quantised
    return np.asarray(cv2.resize(quantised, (rle.MASK_SIZE, rle.MASK_SIZE), interpolation=cv2.INTER_LINEAR), np.uint8)


def level_histogram(quantised: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many pixels have each level, of all pixels and of those in the true mask: int32 (2, 256).

    Args:
        quantised: a map, uint8 (1024, 1024).
        truth: positions of the true mask's pixels, as :func:`true_pixels` gives them.
    """
    counts = np.zeros((2, LEVELS), np.int32)
    counts[0] = cv2.calcHist([quantised], [0], None, [LEVELS], [0, LEVELS]).ravel()
    if len(truth):
        counts[1] = np.bincount(quantised.ravel()[truth], minlength=LEVELS)
    return counts


def image_shapes(prepared: PreparedFolder, image_ids: Sequence[str]) -> list[tuple[int, int]] | None:
    """Rows and columns of each image's file; None where all are square, or the folder is older than these columns."""
    cases = prepared.cases
    if "rows" not in cases or (cases["rows"] == cases["columns"]).all():
        return None
    shapes = cases.set_index("image_id").loc[list(image_ids), ["rows", "columns"]]
    return [(int(rows), int(columns)) for rows, columns in shapes.itertuples(index=False)]


def true_pixels(prepared: PreparedFolder, image_ids: Sequence[str]) -> list[np.ndarray]:
    """The true mask of each image: int32 positions in the flattened (1024, 1024) grid, rows first."""
    texts = prepared.encoded_pixels()
    empty = np.empty(0, np.int32)
    return [
        empty if rle.is_empty(text) else np.flatnonzero(rle.decode(text)).astype(np.int32)
        for text in texts.loc[list(image_ids)].tolist()
    ]
