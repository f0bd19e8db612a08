"""The rungs of pixels: files to grey, grey to a size, normalised, and augmented at given parameters.

The package's own functions, as ``prepare`` and ``train`` call them; what PyTorch's process does with the same files is
written independently in ``experiments/torch_team/ladder.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_pneumo.data.radiographs.geometry import resize_image
from keras_pneumo.data.radiographs.reading import read_radiograph


def decoded(files: Sequence[Path]) -> dict[str, np.ndarray]:
    """uint8 pixels of each file, by its number and ending."""
    return {f"file {number} ({path.suffix[1:]})": read_radiograph(path).pixels for number, path in enumerate(files)}


def resized(pixels: dict[str, np.ndarray], sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """The square ones of them at each size."""
    return {
        f"{name} at {size}": resize_image(image, size)
        for name, image in pixels.items()
        for size in sizes
        if image.shape[0] == image.shape[1] >= size
    }


def augmented(images: np.ndarray, masks: np.ndarray, parameters: np.ndarray) -> dict[str, np.ndarray]:
    """Image and mask of each row of parameters, float32 in [0, 1].

    Args:
        images: uint8 (n, h, w, 1).
        masks: uint8 (n, h, w, 1).
        parameters: float32 (n, 10), see :data:`keras_pneumo.data.batches.augmentation.PARAMETERS`.
    """
    from keras_pneumo.data.batches.augmentation import augment, augment_masks
    from keras_pneumo.parity.inputs import AUGMENTATION

    seeds = np.zeros((len(images), 2), np.int32)
    changed = augment(AUGMENTATION, images, parameters, seeds).numpy()
    moved = augment_masks(AUGMENTATION, masks, parameters).numpy()
    return {f"image {number}": one for number, one in enumerate(changed)} | {
        f"mask {number}": one for number, one in enumerate(moved)
    }


def grey_levels_apart(images: np.ndarray, size: int, theirs: np.ndarray) -> dict[str, float]:
    """How many grey levels, on average, other ways of resizing are from ours; a remark, not a rung.

    Args:
        images: uint8 (n, h, w).
        size: side to reduce to.
        theirs: what torchvision's antialiased bilinear resize gives, float (n, size, size), 0 to 255.
    """
    import tensorflow as tf

    ours = np.stack([resize_image(image, size) for image in images]).astype(np.float64)
    batch = images[..., None].astype(np.float32)
    found = {"torchvision's antialiased bilinear": theirs}
    for name, antialias in (("tf.image's antialiased bilinear", True), ("tf.image's default bilinear", False)):
        found[name] = tf.image.resize(batch, (size, size), antialias=antialias).numpy()[..., 0]
    return {name: float(np.abs(value - ours).mean()) for name, value in found.items()}
