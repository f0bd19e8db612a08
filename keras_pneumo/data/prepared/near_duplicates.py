"""Finds images that are nearly the same by a hash of their pixels: copies with another size, coding, window or border.

In: prepared images. Out: a difference hash of each, and for each image the nearest of others. Hashes of files and of
pixels change with every bit; this one hardly changes where an image was stored again.

The hash (dHash, after N. Krawetz, "Kind of like that", 2013): the image is reduced by area to 17 x 17 grey values, and
each of 16 x 16 is compared with its right and with its lower neighbour: 512 bits, 1 where the neighbour is darker.
Krawetz's 8 x 8 with right neighbours only is too coarse here, since all frontal radiographs are alike: see
:data:`NEAR`. A mirrored or turned copy has another hash and is not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from keras_pneumo.data.prepared.arrays import open_arrays
from keras_pneumo.data.prepared.folder import PreparedFolder
from keras_pneumo.errors import PneumoError
from keras_pneumo.storage.workers import available_cores

SIDE = 16
BITS = 2 * SIDE * SIDE

NEAR = 40
"""Bits, of 512, up to which two hashes count as near duplicates.

Measured on 251 real radiographs of SIIM-ACR at 128 pixels (docs/evaluate.md): of copies stored as JPEG of quality 50,
made smaller by a quarter, with another gamma (0.6, 1.6) or window, with noise of 5 grey levels or cut by 1% at each
side at least 99 of 100 differ by no more. Of 31,375 pairs of different radiographs the nearest differ by 75 bits (1 in
10,000 by less than 84), so of some ten million pairs a few are taken for copies by chance.
"""

_BLOCK = 2048
"""Images compared at once: a table of 2048 x N distances."""


def difference_hash(image: np.ndarray) -> str:
    """The hash of a grey image, uint8 (S, S): 128 hexadecimal digits."""
    small = cv2.resize(image, (SIDE + 1, SIDE + 1), interpolation=cv2.INTER_AREA).astype(np.int16)
    right = small[:SIDE, 1:] < small[:SIDE, :-1]
    lower = small[1:, :SIDE] < small[:-1, :SIDE]
    return np.packbits(np.concatenate([right.ravel(), lower.ravel()])).tobytes().hex()


def difference_hashes(prepared: PreparedFolder, image_ids: Sequence[str]) -> list[str]:
    """The hash of each prepared image, of the smallest prepared size.

    Raises:
        PneumoError: an image is missing or damaged.
    """
    size = min(int(size) for size in prepared.manifest["sizes"])
    arrays = open_arrays(prepared, size)  # at a training's start there mostly are some, and nothing is decoded

    def hash_of(image_id: str) -> str:
        if arrays is not None:
            return difference_hash(arrays.images[arrays.image_rows[image_id]].reshape(size, size))
        path = prepared.image_path(image_id, size)
        try:
            image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
        except (OSError, cv2.error):
            image = None
        if image is None:
            raise PneumoError(f"{path} is missing or damaged. Prepare the folder again.")
        return difference_hash(np.asarray(image, np.uint8))

    with ThreadPoolExecutor(available_cores()) as pool:  # OpenCV decodes without Python's lock
        return list(pool.map(hash_of, image_ids))


def nearest(hashes: Sequence[str], others: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """For each hash the nearest of some others, all pairs compared.

    Args:
        hashes: (n,), from :func:`difference_hash`.
        others: (m,), at least one.

    Returns:
        The number of the nearest one, the first where several are, int64 (n,); and the differing bits, int64 (n,).
    """
    # With bits as -1 and 1 the product of two hashes is BITS - 2 * (differing bits), exact in float32.
    reference = _signs(others).T
    index, distance = np.zeros(len(hashes), np.int64), np.zeros(len(hashes), np.int64)
    for start in range(0, len(hashes), _BLOCK):
        alike = _signs(hashes[start : start + _BLOCK]) @ reference
        best = alike.argmax(axis=1)
        index[start : start + _BLOCK] = best
        distance[start : start + _BLOCK] = (BITS - alike[np.arange(len(best)), best].astype(np.int64)) // 2
    return index, distance


def _signs(hashes: Sequence[str]) -> np.ndarray:
    """Bits as -1 and 1, float32 (n, BITS)."""
    packed = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), BITS // 8)
    return np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1
