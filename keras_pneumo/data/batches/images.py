"""Opens the images of a prepared folder at one size: its array, else held in memory, else read as they are used."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from keras_pneumo.data.batches.ahead import threads
from keras_pneumo.data.prepared.arrays import decode_grey, open_arrays, packed, unpacked
from keras_pneumo.data.prepared.folder import PreparedFolder, verify_files
from keras_pneumo.data.prepared.rendering import image_name, mask_name
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.files import sha256_bytes

log = logging.getLogger(__name__)

MEMORY_SHARE = 0.4
"""Images are held in memory, decoded, when they take at most this share of what is free; else they are read anew."""


@dataclass(frozen=True)
class ImageSet:
    """Images (and masks) of one size, by their index in ``image_ids``; :meth:`image` and :meth:`mask` give one.

    ``images`` is uint8 (M, S, S), mapped or held in memory, else None, and then ``paths`` are read when used.
    ``image_rows`` says which row is whose; None: the rows are those of ``image_ids``. ``masks`` has rows only for
    images with a mask, uint8 (P, S, ceil(S / 8)), packed by :func:`~keras_pneumo.data.prepared.arrays.packed`;
    ``mask_rows`` says which, -1 for none. ``mask_paths`` is "" for a negative.
    """

    image_ids: tuple[str, ...]
    labels: np.ndarray
    size: int
    paths: tuple[str, ...]
    mask_paths: tuple[str, ...]
    images: np.ndarray | None = None
    masks: np.ndarray | None = None
    image_rows: np.ndarray | None = None
    mask_rows: np.ndarray | None = None
    recorded: Mapping[str, str] | None = None
    """The SHA-256 of each path that is read when used; None: files are taken as they are."""

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    def image(self, index: int) -> np.ndarray:
        """An image's pixels, uint8 (S, S); not to be written to.

        Raises:
            PneumoError: its file is missing, of another size, or not the one that is recorded.
        """
        if self.images is None:
            return _read(self.paths[index], self.size, self.recorded)
        row = index if self.image_rows is None else self.image_rows[index]
        return self.images[row].reshape(self.size, self.size)

    def mask(self, index: int) -> np.ndarray | None:
        """An image's mask, uint8 (S, S), 0 or 255; None when it has none.

        Raises:
            PneumoError: its file is missing, of another size, or not the one that is recorded.
        """
        if self.masks is None or self.mask_rows is None:
            return _read(self.mask_paths[index], self.size, self.recorded) if self.mask_paths[index] else None
        row = self.mask_rows[index]
        return unpacked(self.masks[row], self.size) if row >= 0 else None


def open_source(
    prepared: PreparedFolder,
    image_ids: Sequence[str],
    size: int,
    with_masks: bool = False,
    memory_bytes: int | None = None,
    verify: bool = True,
    make_array: bool = False,
) -> ImageSet:
    """The images of ``image_ids`` at ``size``: mapped from the folder's array, else held in memory when they fit.

    Args:
        prepared: a prepared folder.
        image_ids: which images, in which order.
        size: one of the folder's sizes, in pixels.
        with_masks: whether masks are wanted too.
        memory_bytes: most memory that decoded images may take; None: :data:`MEMORY_SHARE` of what is free. When it is
            given, the folder's array is left alone.
        verify: whether the pixels must be those that the manifest records: of an array whose files are as they were
            when it was made, else of files that are hashed now, and again whenever one is read later.
        make_array: whether the folder's array is made where there is none.

    Raises:
        PneumoError: an image cannot be read; the message names it. With ``verify`` also: the size was not prepared, or
            a file is missing or damaged.
    """
    positive = prepared.cases.set_index("image_id")["pneumothorax"].astype(int)
    labels = positive.loc[list(image_ids)].to_numpy()
    # Text rather than a Path for each file: with 100,000 of them that takes seconds.
    paths = tuple(f"{prepared.folder}/{image_name(image_id, size)}" for image_id in image_ids)
    arrays = open_arrays(prepared, size, make=make_array) if memory_bytes is None else None
    if arrays is not None:
        image_rows = np.array([arrays.image_rows[image_id] for image_id in image_ids], np.int64)
        mask_rows = np.array([arrays.mask_rows.get(image_id, -1) for image_id in image_ids], np.int64)
        mask_paths = tuple(
            f"{prepared.folder}/{mask_name(image_id, size)}" if row >= 0 else ""
            for image_id, row in zip(image_ids, mask_rows, strict=True)
        )
        return ImageSet(
            tuple(image_ids), labels, size, paths, mask_paths, arrays.images, arrays.masks, image_rows, mask_rows
        )
    if verify:
        verify_files(prepared, size, image_ids)
    mask_paths = tuple(
        str(path) if label and (path := prepared.mask_path(image_id, size)).exists() else ""
        for image_id, label in zip(image_ids, labels, strict=True)
    )
    recorded = _recorded(prepared, (*paths, *mask_paths)) if verify else None
    outlined = [path for path in mask_paths if path] if with_masks else []
    needed = len(paths) * size * size + len(outlined) * size * -(-size // 8)
    allowed = int(free_memory() * MEMORY_SHARE) if memory_bytes is None else memory_bytes
    if needed > allowed:
        log.info("Images take %.1f GB decoded; they are read from disk as they are used.", needed / 1e9)
        return ImageSet(tuple(image_ids), labels, size, paths, mask_paths, recorded=recorded)
    images = np.empty((len(paths), size, size), np.uint8)
    _read_rows(paths, images, size, recorded)
    if not with_masks:
        return ImageSet(tuple(image_ids), labels, size, paths, mask_paths, images, recorded=recorded)
    masks = np.empty((len(outlined), size, -(-size // 8)), np.uint8)
    _read_rows(outlined, masks, size, recorded)
    has_mask = np.array([bool(path) for path in mask_paths])
    mask_rows = np.where(has_mask, np.cumsum(has_mask) - 1, -1)
    return ImageSet(tuple(image_ids), labels, size, paths, mask_paths, images, masks, None, mask_rows, recorded)


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


def _recorded(prepared: PreparedFolder, paths: Sequence[str]) -> dict[str, str]:
    """The SHA-256 that the manifest has for each path."""
    files, start = prepared.manifest["files"], len(f"{prepared.folder}/")
    return {path: files[path[start:]] for path in paths if path}


def _read_rows(paths: Sequence[str], rows: np.ndarray, size: int, recorded: Mapping[str, str] | None) -> None:
    """Decode grey PNG files into the rows of an array, whole or packed as its width says, in all cores."""

    def read(row: int) -> None:
        pixels = _read(paths[row], size, recorded)
        rows[row] = pixels if rows.shape[-1] == size else packed(pixels)

    for _ in threads().map(read, range(len(paths))):  # raises the first error
        pass


def _read(path: str, size: int, recorded: Mapping[str, str] | None) -> np.ndarray:
    try:
        data = Path(path).read_bytes()
    except OSError:
        data = b""
    if data and recorded is not None and sha256_bytes(data) != recorded[path]:
        raise PneumoError(f"{path} was changed after it was prepared. Run prepare on this folder again.")
    return decode_grey(data, path, size)


def images_of(source: ImageSet, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Some images of a source, uint8 (n, S, S, 1)."""
    return np.stack([source.image(int(row)) for row in rows])[..., None]


def masks_of(source: ImageSet, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """The masks of some images of a source, uint8 (n, S, S, 1), 0 outside the mask."""
    masks = np.zeros((len(rows), source.size, source.size, 1), np.uint8)
    for out, row in zip(masks, rows, strict=True):
        if (mask := source.mask(int(row))) is not None:
            out[:, :, 0] = mask
    return masks
