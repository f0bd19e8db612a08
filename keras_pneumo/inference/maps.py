"""From a segmenter's outputs to probability maps on the grid that masks are scored on, a few bytes at a time.

In: one or more networks and batches of images. Out: for each image a map of levels (uint8, a probability times 255),
which is enlarged to 1024x1024 as it is, before any threshold: a mask cut at the small size and then enlarged would have
steps for edges. Only one map is ever held at the full size; kept ones are packed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from keras_pneumo.data.labels import rle
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.inference.predictor import Predictor

LEVELS = 256
"""Levels of a map; level k is a probability of k / 255, so a map is exact to 0.002."""


def outputs_of(model: Predictor, images: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Mask logits, float32 (B, S, S), and image logits, float32 (B,), of a segmenter; None without an image head."""
    found = model.predict_on_batch(images)
    if isinstance(found, dict):
        return np.asarray(found["mask"])[..., 0], np.asarray(found["image"])[:, 0]
    return np.asarray(found)[..., 0], None


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float32, of logits of any size, without overflow."""
    return np.exp(-np.logaddexp(np.float32(0), -logits.astype(np.float32)))


def predict_maps(
    models: Sequence[Predictor], images: np.ndarray, flip_averaging: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean probabilities of several networks and, where asked, of the mirror images too, turned back.

    Args:
        models: segmenters, all with an image head or all without.
        images: float32 (B, S, S, 1) in [0, 1].
        flip_averaging: whether mirror images count.

    Returns:
        Map of each image, float32 (B, S, S), and probability of each image by the image heads, float32 (B,), or None.
    """
    maps = np.zeros(images.shape[:3], np.float32)
    image = np.zeros(len(images), np.float32)
    heads = True
    passes = [(model, mirrored) for model in models for mirrored in ([False, True] if flip_averaging else [False])]
    for model, mirrored in passes:
        mask_logits, image_logits = outputs_of(model, images[:, :, ::-1] if mirrored else images)
        probability = sigmoid(mask_logits)
        maps += probability[:, :, ::-1] if mirrored else probability
        if image_logits is None:
            heads = False
        else:
            image += sigmoid(image_logits)
    return maps / len(passes), image / len(passes) if heads else None


def quantise(probability: np.ndarray) -> np.ndarray:
    """Probabilities as levels, uint8 of the same shape, rounded."""
    return np.rint(probability * (LEVELS - 1)).astype(np.uint8)


def enlarge(levels: np.ndarray) -> np.ndarray:
    """A square map of levels on the grid of masks, uint8 (1024, 1024): linear between pixel centres."""
    if levels.shape == (rle.MASK_SIZE, rle.MASK_SIZE):
        return levels
    return np.asarray(cv2.resize(levels, (rle.MASK_SIZE, rle.MASK_SIZE), interpolation=cv2.INTER_LINEAR), np.uint8)


def true_pixels(prepared: PreparedFolder, image_ids: Sequence[str]) -> list[np.ndarray]:
    """Where the true mask of each image is: int32 positions in the flattened (1024, 1024) grid, rows first."""
    texts = prepared.truth.set_index("image_id")["encoded_pixels"].astype(str)
    empty = np.empty(0, np.int32)
    return [
        empty if rle.is_empty(text) else np.flatnonzero(rle.decode(text)).astype(np.int32)
        for text in texts.loc[list(image_ids)].tolist()
    ]


@dataclass(frozen=True)
class PackedMap:
    """A map of levels, compressed: most of a radiograph is far from any pneumothorax, so it takes a few kilobytes."""

    packed: bytes
    size: int

    @classmethod
    def of(cls, levels: np.ndarray) -> PackedMap:
        """Pack levels, uint8 (S, S)."""
        return cls(zlib.compress(np.ascontiguousarray(levels).tobytes(), 1), levels.shape[0])

    def levels(self) -> np.ndarray:
        """The levels again, uint8 (S, S)."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.size, self.size)


def level_counts(levels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How many pixels have each level, of all pixels and of those truly in the mask: int32 (2, 256).

    Args:
        levels: a map, uint8 (1024, 1024).
        truth: positions of the true mask's pixels, as :func:`true_pixels` gives them.
    """
    counts = np.zeros((2, LEVELS), np.int32)
    counts[0] = cv2.calcHist([levels], [0], None, [LEVELS], [0, LEVELS]).ravel()
    if len(truth):
        counts[1] = np.bincount(levels.ravel()[truth], minlength=LEVELS)
    return counts
