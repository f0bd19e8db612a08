"""Converts masks between EncodedPixels text, COCO runs and drawn pixels.

SIIM-ACR writes a mask as ``gap length gap length ...`` over the pixels of a 1024x1024 image numbered down the columns,
each gap counted from the end of the run before. That is COCO's uncompressed run-length form without its last gap, so
pycocotools does the arithmetic (area, union, intersection, drawing) in C; what is ours is the text, its checks and the
rule for "no pneumothorax" (``-1``, or blank).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from keras_pneumo.errors import PneumoError

MASK_SIZE = 1024
"""Height and width, in pixels, of the grid that every EncodedPixels text refers to."""

EMPTY = "-1"
"""How an empty mask is written."""

Runs = dict[str, Any]
"""A mask as pycocotools' compressed runs: ``{"size": [height, width], "counts": bytes}``."""


_MAX_DIGITS = 12
# int() alone would also take "1_0", "+5" and the digits of other scripts, and choke on thousands of digits.
_WHOLE_NUMBER = re.compile(rf"-?[0-9]{{1,{_MAX_DIGITS}}}")
_WHOLE_NUMBERS = re.compile(rf"(?:{_WHOLE_NUMBER.pattern} )*+{_WHOLE_NUMBER.pattern}")


_NO_MASK = re.compile(r"-1[.]0*|nan|none|null|na|n/a|<na>", re.IGNORECASE)
"""How tables are found to write "no mask" where they mean ``-1``; a float column of pandas gives the first two."""


class RleError(PneumoError):
    """An EncodedPixels text that is not a mask; the message says which rule it breaks."""


def is_empty(text: object) -> bool:
    """Whether ``text`` states that there is no pneumothorax: ``-1`` (spaces allowed), blank, or a missing value."""
    if text is None or (isinstance(text, float) and np.isnan(text)):
        return True
    return str(text).strip() in ("", "-1")


def counts_of(text: str, pixels: int = MASK_SIZE * MASK_SIZE) -> list[int]:
    """COCO's uncompressed counts (gap, run, ..., last gap) of one EncodedPixels text.

    Args:
        text: ``-1``, blank, or pairs of gap and run length.
        pixels: number of pixels of the image.

    Returns:
        Counts that sum to ``pixels``; ``[pixels]`` for an empty mask.

    Raises:
        RleError: a word is no whole number, their count is odd, a gap is negative, a run is shorter than one pixel, or
            the runs end past the last pixel.
    """
    if is_empty(text):
        return [pixels]
    if plain := _plain_counts(str(text), pixels):
        return plain
    words = str(text).split()
    if len(words) == 1 and _NO_MASK.fullmatch(words[0]):
        raise RleError(f"EncodedPixels holds {words[0]!r}; write -1 where there is no mask")
    if not _WHOLE_NUMBERS.fullmatch(" ".join(words)):
        bad = next(word for word in words if not _WHOLE_NUMBER.fullmatch(word))
        raise RleError(f"EncodedPixels holds {bad[:40]!r}, which is not a whole number of at most {_MAX_DIGITS} digits")
    counts = list(map(int, words))
    if len(counts) % 2:
        raise RleError(f"EncodedPixels holds {len(counts)} numbers; they must come in pairs of gap and run length")
    if min(counts[0::2]) < 0:
        raise RleError(f"EncodedPixels holds the negative gap {min(counts[0::2])}")
    if min(counts[1::2]) < 1:
        raise RleError(f"EncodedPixels holds a run of length {min(counts[1::2])}; a run has at least one pixel")
    end = sum(counts)
    if end > pixels:
        raise RleError(f"EncodedPixels ends at pixel {end}, but the image has {pixels}")
    return [*counts, pixels - end]


def _plain_counts(text: str, pixels: int) -> list[int]:
    """The counts of a valid text of digits and spaces, read by NumPy in a sixth of the time; else an empty list.

    Six zeros in a row may begin a word of more digits than allowed; such texts are left to the exact way.
    """
    if "000000" in text or not text.encode("utf-8", "replace").translate(None, b" ").isdigit():
        return []
    counts = np.fromstring(text, np.int64, sep=" ")
    if len(counts) % 2 or counts.max() > pixels or counts[1::2].min() < 1 or (end := int(counts.sum())) > pixels:
        return []
    return [*counts.tolist(), pixels - end]


def text_of(counts: Sequence[int]) -> str:
    """The EncodedPixels text of COCO's uncompressed counts (gap first); ``-1`` when no pixel is set.

    Neighbouring runs with no gap between them are written as one, so the text of a mask is unique.
    """
    merged: list[int] = []
    for position, count in enumerate(counts):
        if count == 0 and position > 0:
            continue
        is_run = position % 2
        if merged and is_run == (len(merged) - 1) % 2:
            merged[-1] += count
        else:
            merged.append(count)
    if len(merged) % 2:
        merged.pop()  # the last gap is not written
    return " ".join(map(str, merged)) if merged else EMPTY


def runs_of(text: str, height: int = MASK_SIZE, width: int = MASK_SIZE) -> Runs:
    """Compressed COCO runs of one EncodedPixels text; see :func:`counts_of` for what it refuses."""
    return runs_of_counts(counts_of(text, height * width), height, width)


def runs_of_counts(counts: Sequence[int], height: int = MASK_SIZE, width: int = MASK_SIZE) -> Runs:
    """Compressed COCO runs of the counts that :func:`counts_of` returns, for those who have parsed the text already."""
    return coco.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)


def unite(texts: Iterable[str], height: int = MASK_SIZE, width: int = MASK_SIZE) -> Runs:
    """The union of several rows of one image, as compressed COCO runs. Overlaps count once; no row at all is empty."""
    parts = [runs_of(text, height, width) for text in texts]
    return unite_runs(parts) if parts else runs_of(EMPTY, height, width)


def unite_runs(parts: Sequence[Runs]) -> Runs:
    """The union of the masks of one image; overlaps count once, and no mask at all is an empty one of full size."""
    if len(parts) == 1:
        return parts[0]
    return coco.merge(list(parts), intersect=False) if parts else runs_of(EMPTY)


def counts_of_runs(runs: Runs) -> list[int]:
    """Uncompressed counts of compressed runs, read from COCO's text form.

    Each count is a little-endian base-32 number in characters from code 48 on: 5 bits of value, bit 6 says that more
    characters follow, the last character's bit 5 is the sign; from the fourth count on it is the difference to the
    count two before (cocoapi, maskApi.c, ``rleToString``).
    """
    counts: list[int] = []
    value, shift = 0, 0
    packed = runs["counts"]
    for code in packed.encode() if isinstance(packed, str) else packed:
        code -= 48
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    return counts


def encode_runs(runs: Runs) -> str:
    """The EncodedPixels text of compressed runs."""
    if not area(runs):
        return EMPTY  # four of five masks
    return text_of(counts_of_runs(runs))


def encode(mask: np.ndarray) -> str:
    """The EncodedPixels text of a drawn mask, shape (height, width), any dtype; every non-zero pixel is in the mask."""
    if mask.ndim != 2:
        raise ValueError(f"a mask has two dimensions, this one {mask.ndim}")
    return encode_runs(coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8)))


def draw(runs: Runs) -> np.ndarray:
    """The mask drawn: uint8, shape (height, width), 0 or 1."""
    # pycocotools draws down the columns; numpy's own copying into rows takes longer than the drawing.
    return cv2.transpose(coco.decode(runs).T)


def decode(text: str, height: int = MASK_SIZE, width: int = MASK_SIZE) -> np.ndarray:
    """The mask of one EncodedPixels text drawn: uint8, shape (height, width), 0 or 1."""
    return draw(runs_of(text, height, width))


def area(runs: Runs) -> int:
    """Number of pixels in the mask."""
    return int(coco.area(runs))


def intersection_area(first: Runs, second: Runs) -> int:
    """Number of pixels in both masks."""
    return int(coco.area(coco.merge([first, second], intersect=True)))
