"""Opens the images of a prepared folder at one size: in memory where they fit, else read from disk as they are used."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil

from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import PneumoError

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.4
"""Images are held in memory, decoded, when they take at most this share of what is free; else they are read anew."""


@dataclass(frozen=True)
class ImageSet:
    """Images (and masks) of one size, by their index in ``image_ids``.

    ``images`` is uint8 (N, S, S, 1) when all are held in memory, else None, and then ``paths`` are read when used;
    the same for masks. ``mask_paths`` is "" for a negative.
    """

    image_ids: tuple[str, ...]
    labels: np.ndarray
    size: int
    paths: tuple[str, ...]
    mask_paths: tuple[str, ...]
    images: np.ndarray | None
    masks: np.ndarray | None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)


def open_source(
    prepared: PreparedFolder,
    image_ids: Sequence[str],
    size: int,
    with_masks: bool = False,
    memory_bytes: int | None = None,
) -> ImageSet:
    """The images of ``image_ids`` at ``size``, held in memory when they fit.

    Args:
        prepared: a prepared folder.
        image_ids: which images, in which order.
        size: one of the folder's sizes, in pixels.
        with_masks: whether masks are wanted too.
        memory_bytes: most memory that decoded images may take; None: :data:`MEMORY_SHARE` of what is free.

    Raises:
        PneumoError: an image cannot be read; the message names it.
    """
    positive = prepared.cases.set_index("image_id")["pneumothorax"].astype(int)
    labels = positive.loc[list(image_ids)].to_numpy()
    paths = tuple(str(prepared.image_path(image_id, size)) for image_id in image_ids)
    mask_paths = tuple(
        str(path) if label and (path := prepared.mask_path(image_id, size)).exists() else ""
        for image_id, label in zip(image_ids, labels, strict=True)
    )
    needed = len(paths) * size * size * (2 if with_masks else 1)
    allowed = int(free_memory() * MEMORY_SHARE) if memory_bytes is None else memory_bytes
    resident = needed <= allowed
    if not resident:
        log.info("Images take %.1f GB decoded; they are read from disk as they are used.", needed / 1e9)
    images = read_all(paths, size) if resident else None
    masks = read_all(mask_paths, size) if resident and with_masks else None
    return ImageSet(tuple(image_ids), labels, size, paths, mask_paths, images, masks)


def free_memory() -> int:
    """Bytes of memory that can be used without swapping; a container's limit counts, where there is one."""
    free = psutil.virtual_memory().available
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(free, 0)


def read_all(paths: Sequence[str], size: int) -> np.ndarray:
    """The grey PNGs at ``paths``, uint8 (n, size, size, 1); zeros where a path is "".

    Raises:
        PneumoError: a file is missing or of another size.
    """
    images = np.zeros((len(paths), size, size, 1), np.uint8)
    for row, path in enumerate(paths):
        if path:
            images[row, :, :, 0] = _read(path, size)
    return images


def _read(path: str, size: int) -> np.ndarray:
    pixels = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    if pixels is None or pixels.shape != (size, size):
        raise PneumoError(f"{path} is missing or is no grey PNG of {size}x{size}. Run prepare on this folder again.")
    return pixels


def masks_of(source: ImageSet, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """The masks of some images of a source, uint8 (n, S, S, 1), 0 outside the mask."""
    if source.masks is not None:
        return source.masks[rows]
    return read_all([source.mask_paths[row] for row in rows], source.size)
