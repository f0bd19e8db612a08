"""Decodes and encodes EncodedPixels: ``gap length gap length ...`` down the columns of 1024x1024 pixels, or ``-1``."""

from __future__ import annotations

import numpy as np

MASK_SIZE = 1024


def decode(text: str) -> np.ndarray:
    """Decode a text to its mask, bool (1024, 1024)."""
    mask = np.zeros(MASK_SIZE * MASK_SIZE, bool)
    runs = [] if text.strip() in ("-1", "") else list(map(int, text.split()))
    end = 0
    for gap, length in zip(runs[0::2], runs[1::2], strict=True):
        mask[end + gap : end + gap + length] = True
        end += gap + length
    return mask.reshape(MASK_SIZE, MASK_SIZE).T


def encode(mask: np.ndarray) -> str:
    """Encode a mask, shape (1024, 1024)."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]]).astype(np.int8)
    changes = np.flatnonzero(np.diff(flat))
    starts, ends = changes[0::2], changes[1::2]
    gaps = starts - np.append(0, ends[:-1])
    return " ".join(map(str, np.stack([gaps, ends - starts], 1).ravel())) if len(starts) else "-1"
